// Integer arithmetic. Sums and products are computed in unsigned types, where they wrap.
#include <algorithm>
#include <limits>

#include "ptxvm/lanes.h"

namespace lumos::ptxvm {
namespace {

using Integers = Types<Type::u16, Type::s16, Type::u32, Type::s32, Type::u64, Type::s64>;
using Signed = Types<Type::s16, Type::s32, Type::s64>;
using Words = Types<Type::u32, Type::s32>;
using S32 = Types<Type::s32>;

// Wide enough that a product of two T fits, and the type of T's arithmetic.
template <class T>
using Double =
    std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                       std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                                          std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>>>;
template <class T>
using Wrapping = Cell<T>;

template <class T>
constexpr T saturated(int64_t value) {
  constexpr int64_t least = std::numeric_limits<T>::min(), most = std::numeric_limits<T>::max();
  return static_cast<T>(value < least ? least : value > most ? most : value);
}

struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(Wrapping<T>(a) + Wrapping<T>(b));
  }
};

struct AddSaturated {
  int32_t operator()(int32_t a, int32_t b) const { return saturated<int32_t>(int64_t{a} + b); }
};

struct Subtract {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(Wrapping<T>(a) - Wrapping<T>(b));
  }
};

struct SubtractSaturated {
  int32_t operator()(int32_t a, int32_t b) const { return saturated<int32_t>(int64_t{a} - b); }
};

struct ProductLow {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(Wrapping<T>(a) * Wrapping<T>(b));
  }
};

struct ProductHigh {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(Double<T>(a) * Double<T>(b) >> (8 * sizeof(T)));
  }
};

struct ProductWide {
  template <class T>
  Double<T> operator()(T a, T b) const {
    return Double<T>(a) * Double<T>(b);
  }
};

// Of the low 24 bits of each operand.
template <int kShift>
struct Product24 {
  template <class T>
  T operator()(T a, T b) const {
    const auto low24 = [](T x) { return Double<T>(static_cast<T>(Wrapping<T>(x) << 8) >> 8); };
    return static_cast<T>(low24(a) * low24(b) >> kShift);
  }
};

template <class Product>
struct MultiplyAdd {
  template <class T, class C>
  C operator()(T a, T b, C c) const {
    return Add()(static_cast<C>(Product()(a, b)), c);
  }
};

template <class Product>
struct MultiplyAddSaturated {
  int32_t operator()(int32_t a, int32_t b, int32_t c) const { return AddSaturated()(Product()(a, b), c); }
};

struct SumOfDifference {
  template <class T>
  T operator()(T a, T b, T c) const {
    return Add()(c, a < b ? Subtract()(b, a) : Subtract()(a, b));
  }
};

// Division by zero yields what the hardware does: all ones, and the dividend as the remainder.
struct Divide {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (sizeof(T) == 8) {
      if (b == 0) return static_cast<T>(-1);
      if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Subtract()(T{0}, a);  // 2**63 has no place
      return a / b;
    } else {
      // Quotients of doubles are vectors, and exact: they come no closer to the next integer than 2**-32 of their size.
      const double quotient = static_cast<double>(a) / static_cast<double>(b ? b : T{1});
      return b ? static_cast<T>(static_cast<int64_t>(quotient)) : static_cast<T>(-1);
    }
  }
};

struct Remainder {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) return a;
    return Subtract()(a, ProductLow()(Divide()(a, b), b));
  }
};

struct Negate {
  template <class T>
  T operator()(T a) const {
    return Subtract()(T{0}, a);
  }
};

struct Absolute {
  template <class T>
  T operator()(T a) const {
    return a < 0 ? Negate()(a) : a;
  }
};

struct Minimum {
  template <class T>
  T operator()(T a, T b) const {
    return std::min(a, b);
  }
};

struct Maximum {
  template <class T>
  T operator()(T a, T b) const {
    return std::max(a, b);
  }
};

template <class F>
struct Relu {
  template <class T>
  T operator()(T a, T b) const {
    return std::max(F()(a, b), T{0});
  }
};

// Sums of several words. The condition code is one bit a lane: what was carried out of a sum, borrowed by a difference.
constexpr uint8_t kCarryIn = 1, kCarryOut = 2;

struct NoProduct {};

// a + b, a - b, or Product(a, b) + c.
template <class T, class Product, bool kSubtract>
void sum_with_carry(Warp& warp, const Inst& inst, uint32_t mask) {
  using Word = Wrapping<T>;
  const Source<T> a(warp, inst.op[1]), b(warp, inst.op[2]), c(warp, inst.op[3]);
  const uint32_t carries = inst.flags & kCarryIn ? warp.carry : 0;
  Result<T> result;
  uint32_t out = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    Word x = a[lane], y = b[lane];
    if constexpr (!std::is_same_v<Product, NoProduct>) {
      x = Product()(a[lane], b[lane]);
      y = c[lane];
    }
    const Word carry = carries >> lane & 1;
    const Word partial = kSubtract ? x - y : x + y, sum = kSubtract ? partial - carry : partial + carry;
    const bool over = kSubtract ? (x < y) | (partial < carry) : (partial < x) | (sum < carry);
    result.set(lane, static_cast<T>(sum));
    out |= over ? 1u << lane : 0;
  }
  result.store(warp, inst.op[0], mask);
  if (inst.flags & kCarryOut) warp.carry = (warp.carry & ~mask) | (out & mask);
}

template <class Product, bool kSubtract>
void decode_with_carry(const Decoding& d, bool carry_in) {
  d.out.flags = (carry_in ? kCarryIn : 0) | (d.has("cc") ? kCarryOut : 0);
  const Type type = d.type();
  if (d.type(1) != Type::none) d.unknown();
  switch (type) {
    case Type::u32: d.out.run = sum_with_carry<uint32_t, Product, kSubtract>; break;
    case Type::s32: d.out.run = sum_with_carry<int32_t, Product, kSubtract>; break;
    case Type::u64: d.out.run = sum_with_carry<uint64_t, Product, kSubtract>; break;
    case Type::s64: d.out.run = sum_with_carry<int64_t, Product, kSubtract>; break;
    default: d.unknown();
  }
  if constexpr (std::is_same_v<Product, NoProduct>) {
    decode_operands(d, {type, type, type});
  } else {
    decode_operands(d, {type, type, type, type});
  }
}

bool is_float(Type type) {
  switch (type) {
    case Type::f16:
    case Type::f16x2:
    case Type::bf16:
    case Type::bf16x2:
    case Type::f32:
    case Type::f64: return true;
    default: return false;
  }
}

// u16x2 and s16x2 name no Type: two operands and a result of 32 bits.
template <class F>
bool decode_packed(const Decoding& d) {
  const bool is_unsigned = d.has("u16x2");
  if (!is_unsigned && !d.has("s16x2")) return false;
  if (d.type() != Type::none || (is_unsigned && d.has("s16x2"))) d.unknown();
  d.out.run = is_unsigned ? map<Packed<F, uint16_t>, uint32_t, uint32_t, uint32_t>
                          : map<Packed<F, int16_t>, uint32_t, uint32_t, uint32_t>;
  decode_operands(d, {Type::b32, Type::b32, Type::b32});
  return true;
}

template <class F>
void decode_binary(const Decoding& d) {
  decode_map<F, kSame, kSame, kSame>(d, Integers());
}

void decode_add(const Decoding& d) {
  if (is_float(d.type())) return decode_float(d);
  if (d.has("cc")) {
    d.allow({"cc"});
    return decode_with_carry<NoProduct, false>(d, false);
  }
  if (d.has("sat")) {
    d.allow({"sat"});
    return decode_map<AddSaturated, kSame, kSame, kSame>(d, S32());
  }
  d.allow({"u16x2", "s16x2"});
  if (!decode_packed<Add>(d)) decode_binary<Add>(d);
}

void decode_sub(const Decoding& d) {
  if (is_float(d.type())) return decode_float(d);
  d.allow({"cc", "sat"});
  if (d.has("cc")) {
    if (d.has("sat")) d.unknown();
    return decode_with_carry<NoProduct, true>(d, false);
  }
  if (d.has("sat")) return decode_map<SubtractSaturated, kSame, kSame, kSame>(d, S32());
  decode_binary<Subtract>(d);
}

void decode_addc(const Decoding& d) {
  d.allow({"cc"});
  decode_with_carry<NoProduct, false>(d, true);
}

void decode_subc(const Decoding& d) {
  d.allow({"cc"});
  decode_with_carry<NoProduct, true>(d, true);
}

// The half of the product that is wanted: "lo", "hi" or "wide".
std::string product_mode(const Decoding& d) {
  std::string mode;
  for (const char* name : {"lo", "hi", "wide"}) {
    if (!d.has(name)) continue;
    if (!mode.empty()) d.unknown();
    mode = name;
  }
  if (mode.empty()) d.unknown();
  return mode;
}

void decode_mul(const Decoding& d) {
  if (is_float(d.type())) return decode_float(d);
  d.allow({"lo", "hi", "wide"});
  const std::string mode = product_mode(d);
  if (mode == "lo") return decode_binary<ProductLow>(d);
  if (mode == "hi") return decode_binary<ProductHigh>(d);
  decode_map<ProductWide, kTwice, kSame, kSame>(d, Types<Type::u16, Type::s16, Type::u32, Type::s32>());
}

void decode_mad(const Decoding& d) {
  if (is_float(d.type())) return decode_float(d);
  d.allow({"lo", "hi", "wide", "sat", "cc"});
  const std::string mode = product_mode(d);
  const bool saturate = d.has("sat");
  if (d.has("cc")) {
    if (saturate || mode == "wide") d.unknown();
    return mode == "lo" ? decode_with_carry<ProductLow, false>(d, false)
                        : decode_with_carry<ProductHigh, false>(d, false);
  }
  if (saturate) {
    if (mode != "hi") d.unknown();
    return decode_map<MultiplyAddSaturated<ProductHigh>, kSame, kSame, kSame, kSame>(d, S32());
  }
  if (mode == "lo") return decode_map<MultiplyAdd<ProductLow>, kSame, kSame, kSame, kSame>(d, Integers());
  if (mode == "hi") return decode_map<MultiplyAdd<ProductHigh>, kSame, kSame, kSame, kSame>(d, Integers());
  decode_map<MultiplyAdd<ProductWide>, kTwice, kSame, kSame, kTwice>(
      d, Types<Type::u16, Type::s16, Type::u32, Type::s32>());
}

void decode_madc(const Decoding& d) {
  d.allow({"lo", "hi", "cc"});
  return product_mode(d) == "lo" ? decode_with_carry<ProductLow, false>(d, true)
                                 : decode_with_carry<ProductHigh, false>(d, true);
}

void decode_mul24(const Decoding& d) {
  d.allow({"lo", "hi"});
  if (product_mode(d) == "lo") return decode_map<Product24<0>, kSame, kSame, kSame>(d, Words());
  decode_map<Product24<16>, kSame, kSame, kSame>(d, Words());
}

void decode_mad24(const Decoding& d) {
  d.allow({"lo", "hi", "sat"});
  const bool low = product_mode(d) == "lo";
  if (d.has("sat")) {
    if (low) d.unknown();
    return decode_map<MultiplyAddSaturated<Product24<16>>, kSame, kSame, kSame, kSame>(d, S32());
  }
  if (low) return decode_map<MultiplyAdd<Product24<0>>, kSame, kSame, kSame, kSame>(d, Words());
  decode_map<MultiplyAdd<Product24<16>>, kSame, kSame, kSame, kSame>(d, Words());
}

void decode_sad(const Decoding& d) {
  d.allow({});
  decode_map<SumOfDifference, kSame, kSame, kSame, kSame>(d, Integers());
}

void decode_div(const Decoding& d) {
  if (is_float(d.type())) return decode_float(d);
  d.allow({});
  decode_binary<Divide>(d);
}

void decode_rem(const Decoding& d) {
  d.allow({});
  decode_binary<Remainder>(d);
}

template <class F>
void decode_unary(const Decoding& d) {
  if (is_float(d.type())) return decode_float(d);
  d.allow({});
  decode_map<F, kSame, kSame>(d, Signed());
}

template <class F>
void decode_extremum(const Decoding& d) {
  if (is_float(d.type())) return decode_float(d);
  d.allow({"relu", "u16x2", "s16x2"});
  if (!d.has("relu")) {
    if (!decode_packed<F>(d)) decode_binary<F>(d);
  } else if (d.has("u16x2") || !decode_packed<Relu<F>>(d)) {
    decode_map<Relu<F>, kSame, kSame, kSame>(d, S32());
  }
}

// Sums of products of the parts of two words: kParts bytes of b, times bytes or halves of a.
template <class A, class B, int kFirst, int kParts>
struct DotProduct {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    for (int i = 0; i < kParts; ++i) {
      const auto of_a = static_cast<A>(a >> (8 * sizeof(A) * i));
      const auto of_b = static_cast<B>(b >> (8 * (kFirst + i)));
      c += static_cast<uint32_t>(of_a) * static_cast<uint32_t>(of_b);
    }
    return c;
  }
};

template <class UnsignedA, class SignedA, int kFirst, int kParts>
void decode_dot_product(const Decoding& d) {
  const auto is_signed = [&](int from_last) {
    const Type type = d.type(from_last);
    if (type != Type::u32 && type != Type::s32) d.unknown();
    return type == Type::s32;
  };
  if (d.type(2) != Type::none) d.unknown();
  const bool a = is_signed(1), b = is_signed(0);
  using Word = uint32_t;
  d.out.run = a   ? b ? map<DotProduct<SignedA, int8_t, kFirst, kParts>, Word, Word, Word, Word>
                      : map<DotProduct<SignedA, uint8_t, kFirst, kParts>, Word, Word, Word, Word>
              : b ? map<DotProduct<UnsignedA, int8_t, kFirst, kParts>, Word, Word, Word, Word>
                  : map<DotProduct<UnsignedA, uint8_t, kFirst, kParts>, Word, Word, Word, Word>;
  decode_operands(d, {Type::b32, Type::b32, Type::b32, Type::b32});
}

void decode_dp4a(const Decoding& d) {
  d.allow({});
  decode_dot_product<uint8_t, int8_t, 0, 4>(d);
}

void decode_dp2a(const Decoding& d) {
  d.allow({"lo", "hi"});
  if (product_mode(d) == "lo") return decode_dot_product<uint16_t, int16_t, 0, 2>(d);
  decode_dot_product<uint16_t, int16_t, 2, 2>(d);
}

}  // namespace

const NamedDecoder kIntegerDecoders[] = {{"add", decode_add},
                                         {"addc", decode_addc},
                                         {"sub", decode_sub},
                                         {"subc", decode_subc},
                                         {"mul", decode_mul},
                                         {"mad", decode_mad},
                                         {"madc", decode_madc},
                                         {"mul24", decode_mul24},
                                         {"mad24", decode_mad24},
                                         {"sad", decode_sad},
                                         {"div", decode_div},
                                         {"rem", decode_rem},
                                         {"abs", decode_unary<Absolute>},
                                         {"neg", decode_unary<Negate>},
                                         {"min", decode_extremum<Minimum>},
                                         {"max", decode_extremum<Maximum>},
                                         {"dp4a", decode_dp4a},
                                         {"dp2a", decode_dp2a},
                                         {nullptr, nullptr}};

}  // namespace lumos::ptxvm
