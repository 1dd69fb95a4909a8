// Conversions. Integers pass through 64 bits: what differs between their types is data that the handler reads from the
// instruction. Floats pass through float, or double where one of the types is f64 or an integer.
#include <cmath>
#include <limits>

#include "ptxvm/float_functions.h"
#include "ptxvm/half.h"
#include "ptxvm/lanes.h"

namespace lumos::ptxvm {
namespace {

constexpr uint8_t kFlush = 1, kSaturate = 2, kRelu = 4, kSignedSource = 8, kSignedResult = 16;  // Inst::flags

struct IntegerType {
  IntegerType(int bits, bool is_signed) : mask(~0ull >> (64 - bits)), sign(is_signed ? mask ^ mask >> 1 : 0) {}
  uint64_t least() const { return 0 - sign; }
  uint64_t most() const { return mask ^ sign; }
  // The value of its bits, the lowest of `x`.
  uint64_t extended(uint64_t x) const { return ((x & mask) ^ sign) - sign; }
  uint64_t mask, sign;
};

// Inst::aux: a byte each for the bits of the source, of the result, and of the register that the result fills, by
// extension if it is wider.
struct IntegerSource : IntegerType {
  explicit IntegerSource(const Inst& inst) : IntegerType(inst.aux & 0xff, inst.flags & kSignedSource) {}
};

struct IntegerResult : IntegerType {
  explicit IntegerResult(const Inst& inst)
      : IntegerType(inst.aux >> 8 & 0xff, inst.flags & kSignedResult),
        filled(~0ull >> (64 - (inst.aux >> 16 & 0xff))) {}
  uint64_t filling(uint64_t x) const { return extended(x) & filled; }
  uint64_t filled;
};

template <bool kSigned>
class IntegerToInteger {
  using Wide = std::conditional_t<kSigned, int64_t, uint64_t>;
  using Limits = std::numeric_limits<Wide>;

 public:
  explicit IntegerToInteger(const Inst& inst) : from_(inst), to_(inst) {
    if (!(inst.flags & kSaturate)) return;
    if (kSigned) least_ = static_cast<Wide>(to_.least());
    if (to_.most() < static_cast<uint64_t>(Limits::max())) most_ = static_cast<Wide>(to_.most());
  }
  uint64_t operator()(uint64_t x) const {
    const auto value = static_cast<Wide>(from_.extended(x));
    return to_.filling(static_cast<uint64_t>(value < least_ ? least_ : value > most_ ? most_ : value));
  }

 private:
  IntegerSource from_;
  IntegerResult to_;
  Wide least_ = Limits::min(), most_ = Limits::max();
};

// .sat of an integer leaves 0 and 1.
template <class To, bool kSigned>
class IntegerToFloat {
 public:
  explicit IntegerToFloat(const Inst& inst) : from_(inst), saturate_(inst.flags & kSaturate) {}
  To operator()(uint64_t x) const {
    using Wide = std::conditional_t<kSigned, int64_t, uint64_t>;
    const auto value = static_cast<Wide>(from_.extended(x));
    return static_cast<To>(saturate_ ? Wide{value > 0} : value);
  }

 private:
  IntegerSource from_;
  bool saturate_;
};

template <class Format, Rounding kRounding>
class IntegerToHalf {
 public:
  explicit IntegerToHalf(const Inst& inst) : from_(inst), saturate_(inst.flags & kSaturate) {}
  Narrow<Format> operator()(uint64_t x) const {
    const bool negative = x & from_.sign;
    const uint64_t value = from_.extended(x), magnitude = negative ? 0 - value : value;
    // What double has no places for still tells on which side of a rounding the value lies.
    const uint64_t kept = magnitude >> 11 | ((magnitude & 0x7ff) != 0);
    const double exact = magnitude >> 53 ? static_cast<double>(kept) * 0x1p11 : static_cast<double>(magnitude);
    const double result = saturate_ & (exact > 1) ? 1 : exact;
    return Narrow<Format>(narrow<Format, kRounding>(negative ? saturate_ ? 0 : -result : result));
  }

 private:
  IntegerSource from_;
  bool saturate_;
};

// To an integer value.
template <Rounding kRounding, class T>
T rounded(T x) {
  switch (kRounding) {
    case Rounding::zero: return std::trunc(x);
    case Rounding::down: return std::floor(x);
    case Rounding::up: return std::ceil(x);
    default: return std::nearbyint(x);
  }
}

template <class T>
T flushed(T x, T smallest) {
  return std::abs(x) < smallest ? std::copysign(T{0}, x) : x;
}

// Values beyond the type become its extremes. A NaN becomes zero between types of less than 64 bits.
template <class From, Rounding kRounding>
class FloatToInteger {
 public:
  explicit FloatToInteger(const Inst& inst)
      : to_(inst),
        smallest_(inst.flags & kFlush ? std::numeric_limits<float>::min() : 0),
        least_(-static_cast<double>(to_.sign)),
        end_(2 * static_cast<double>(to_.most() / 2 + 1)),
        nan_(sizeof(From) == 8 || to_.mask == ~0ull ? to_.mask ^ to_.mask >> 1 : 0) {}
  uint64_t operator()(double x) const {
    const double value = rounded<kRounding>(flushed(x, smallest_));
    const bool below = value < least_, above = value >= end_, large = value >= 0x1p63;
    const double inside = (value >= least_) & !above ? large ? value - 0x1p63 : value : 0;
    const uint64_t converted = static_cast<uint64_t>(static_cast<int64_t>(inside)) ^ uint64_t { large } << 63;
    return to_.filling(x == x ? below ? to_.least() : above ? to_.most() : converted : nan_);
  }

 private:
  IntegerResult to_;
  double smallest_, least_, end_;
  uint64_t nan_;
};

// kToInteger: the result is an integer value.
template <class To, class From, Rounding kRounding, bool kToInteger>
class FloatToFloat {
  static constexpr bool kDouble = sizeof(To) == 8 || sizeof(From) == 8;
  using Wide = std::conditional_t<kDouble, double, float>;

 public:
  explicit FloatToFloat(const Inst& inst)
      : smallest_(inst.flags & kFlush ? std::numeric_limits<float>::min() : 0),
        least_(inst.flags & (kSaturate | kRelu) ? 0 : -std::numeric_limits<Wide>::infinity()),
        most_(inst.flags & kSaturate ? 1 : std::numeric_limits<Wide>::infinity()),
        saturate_(inst.flags & kSaturate) {}

  To operator()(From from) const {
    Wide x = flushed(static_cast<Wide>(from), std::is_same_v<From, float> ? smallest_ : 0);
    if (kToInteger) x = rounded<kRounding>(x);
    x = x > least_ ? x : x == x ? least_ : saturate_ ? 0 : x;
    x = x > most_ ? most_ : x;
    if constexpr (sizeof(To) == 8) {
      return x;
    } else if constexpr (sizeof(To) == 4) {
      float result = x;
      if constexpr (kDouble) result = bits_as<float>(narrow<Single, kRounding>(x));
      result = flushed<float>(result, smallest_);
      return result == result ? result : bits_as<float>(Single::nan);
    } else {
      return To(x == x ? narrow<typename To::Format, kRounding>(x) : To::Format::nan);
    }
  }

 private:
  Wide smallest_, least_, most_;
  bool saturate_;
};

template <class Format, Rounding kRounding>
class FloatsToPair {
 public:
  explicit FloatsToPair(const Inst& inst) : convert_(inst) {}
  uint32_t operator()(float high, float low) const {
    return static_cast<uint32_t>(convert_(high).bits) << 16 | convert_(low).bits;
  }

 private:
  FloatToFloat<Narrow<Format>, float, kRounding, false> convert_;
};

template <Rounding kRounding>
class FloatToTf32 {
 public:
  explicit FloatToTf32(const Inst& inst) : relu_(inst.flags & kRelu) {}
  uint32_t operator()(float x) const {
    const float clamped = relu_ & (x < 0) ? 0 : x;
    return x == x ? float_to_tf32<kRounding>(clamped) : Single::nan;
  }

 private:
  bool relu_;
};

// c moves up, and two saturated values come below it.
class PackSaturated {
 public:
  explicit PackSaturated(const Inst& inst) : to_(inst), bits_(inst.aux >> 8 & 0xff) {}
  uint32_t operator()(int32_t a, int32_t b, uint32_t c) const {
    const uint64_t pair = saturated(a) << bits_ | saturated(b);
    return static_cast<uint32_t>(uint64_t{c} << 2 * bits_ | pair);
  }

 private:
  uint64_t saturated(int64_t x) const {
    const auto least = static_cast<int64_t>(to_.least()), most = static_cast<int64_t>(to_.most());
    return static_cast<uint64_t>(x < least ? least : x > most ? most : x) & to_.mask;
  }
  IntegerResult to_;
  int bits_;
};

bool is_signed(Type type) { return type == Type::s8 || type == Type::s16 || type == Type::s32 || type == Type::s64; }
bool is_integer(Type type) {
  return is_signed(type) || type == Type::u8 || type == Type::u16 || type == Type::u32 || type == Type::u64;
}

struct NamedRounding {
  const char* name;
  Rounding rounding;
};
constexpr NamedRounding kToInteger[] = {
    {"rni", Rounding::nearest_even}, {"rzi", Rounding::zero}, {"rmi", Rounding::down}, {"rpi", Rounding::up}};
constexpr NamedRounding kToFloat[] = {
    {"rn", Rounding::nearest_even}, {"rz", Rounding::zero}, {"rm", Rounding::down}, {"rp", Rounding::up}};

const NamedRounding* rounding_among(const Decoding& d, const NamedRounding (&known)[4]) {
  for (const NamedRounding& rounding : known) {
    if (d.has(rounding.name)) return &rounding;
  }
  return nullptr;
}

template <Rounding kRounding>
using RoundingTag = std::integral_constant<Rounding, kRounding>;
template <class T>
struct Tag {
  using type = T;
};

// Calls f with the tag of one of the roundings. Unknown if there is none.
template <class F>
void with_rounding(const Decoding& d, const NamedRounding (&known)[4], F f) {
  const NamedRounding* found = rounding_among(d, known);
  if (!found) d.wrong("it needs a rounding");
  switch (found->rounding) {
    case Rounding::zero: return f(RoundingTag<Rounding::zero>());
    case Rounding::down: return f(RoundingTag<Rounding::down>());
    case Rounding::up: return f(RoundingTag<Rounding::up>());
    default: return f(RoundingTag<Rounding::nearest_even>());
  }
}

template <class F>
void with_float(const Decoding& d, Type type, F f) {
  switch (type) {
    case Type::f16: return f(Tag<Narrow<Half>>());
    case Type::bf16: return f(Tag<Narrow<Bfloat>>());
    case Type::f32: return f(Tag<float>());
    case Type::f64: return f(Tag<double>());
    default: d.unknown();
  }
}

// Of a register that may be wider than the integer; tells whether its row is one of 64 bits.
bool decode_integer(const Decoding& d, int i, Type type) {
  const Operand& operand = d.source.operands[i];
  int bytes = size_bytes(type);
  if (operand.kind == Operand::Kind::reg) {
    if (operand.negated || size_bytes(d.rows.type_of(operand.reg)) < bytes) d.wrong("a register is too narrow");
    bytes = size_bytes(d.rows.type_of(operand.reg));
  }
  const bool is_result = i == 0;
  d.out.op[i] = d.row(operand, type);
  if (is_signed(type)) d.out.flags |= is_result ? kSignedResult : kSignedSource;
  d.out.aux |= is_result ? static_cast<uint64_t>(size_bytes(type)) << 11 | static_cast<uint64_t>(bytes) << 19
                         : static_cast<uint64_t>(size_bytes(type)) << 3;
  return bytes == 8;
}

template <class F, class To>
Handler from_row(bool wide) {
  return wide ? map<F, To, uint64_t> : map<F, To, uint32_t>;
}

template <class F, class To>
Handler from_row_directed(bool wide) {
  return wide ? directed<map<F, To, uint64_t>> : directed<map<F, To, uint32_t>>;
}

void decode_integer_to_integer(const Decoding& d, Type to, Type from) {
  d.allow({"sat"});
  const bool wide_result = decode_integer(d, 0, to), wide = decode_integer(d, 1, from);
  const auto handler = [&](auto tag) {
    using F = typename decltype(tag)::type;
    return wide_result ? from_row<F, uint64_t>(wide) : from_row<F, uint32_t>(wide);
  };
  d.out.run = is_signed(from) ? handler(Tag<IntegerToInteger<true>>()) : handler(Tag<IntegerToInteger<false>>());
}

void decode_integer_to_float(const Decoding& d, Type to, Type from) {
  d.allow({"rn", "rz", "rm", "rp", "sat", "ftz"});
  const bool wide = decode_integer(d, 1, from);
  d.out.op[0] = operand_row(d, d.source.operands[0], to);
  with_float(d, to, [&](auto result) {
    using To = typename decltype(result)::type;
    with_rounding(d, kToFloat, [&](auto rounding) {
      if constexpr (sizeof(To) == 2) {
        d.out.run = from_row<IntegerToHalf<typename To::Format, rounding()>, To>(wide);
      } else {
        const auto handler = [&](auto tag) {
          using F = typename decltype(tag)::type;
          return set_rounding_mode(d) ? from_row_directed<F, To>(wide) : from_row<F, To>(wide);
        };
        d.out.run =
            is_signed(from) ? handler(Tag<IntegerToFloat<To, true>>()) : handler(Tag<IntegerToFloat<To, false>>());
      }
    });
  });
}

void decode_float_to_integer(const Decoding& d, Type to, Type from) {
  d.allow({"rni", "rzi", "rmi", "rpi", "sat", "ftz"});
  const bool wide = decode_integer(d, 0, to);
  d.out.op[1] = operand_row(d, d.source.operands[1], from);
  with_float(d, from, [&](auto source) {
    using From = typename decltype(source)::type;
    with_rounding(d, kToInteger, [&](auto rounding) {
      using F = FloatToInteger<From, rounding()>;
      d.out.run = wide ? map<F, uint64_t, From> : map<F, uint32_t, From>;
    });
  });
}

void decode_float_to_float(const Decoding& d, Type to, Type from) {
  const bool to_half = size_bytes(to) == 2, narrower = size_bytes(to) < size_bytes(from) || (to_half && to != from);
  if (narrower) {
    to_half ? d.allow({"rn", "rz", "rm", "rp", "sat", "ftz", "relu"}) : d.allow({"rn", "rz", "rm", "rp", "sat", "ftz"});
  } else {
    to == from ? d.allow({"rni", "rzi", "rmi", "rpi", "sat", "ftz"}) : d.allow({"sat", "ftz"});
  }
  decode_operands(d, {to, from});
  with_float(d, to, [&](auto result) {
    with_float(d, from, [&](auto source) {
      using To = typename decltype(result)::type;
      using From = typename decltype(source)::type;
      if constexpr (sizeof(To) < sizeof(From) || (sizeof(To) == 2 && sizeof(From) == 2 && !std::is_same_v<To, From>)) {
        with_rounding(d, kToFloat,
                      [&](auto rounding) { d.out.run = map<FloatToFloat<To, From, rounding(), false>, To, From>; });
      } else {
        d.out.run = map<FloatToFloat<To, From, Rounding::nearest_even, false>, To, From>;
      }
      if constexpr (std::is_same_v<To, From>) {
        if (!rounding_among(d, kToInteger)) return;
        with_rounding(d, kToInteger,
                      [&](auto rounding) { d.out.run = map<FloatToFloat<To, From, rounding(), true>, To, From>; });
      }
    });
  });
}

template <class Format>
void decode_floats_to_pair(const Decoding& d, Type to) {
  d.allow({"rn", "rz", "relu"});
  with_rounding(d, kToFloat,
                [&](auto rounding) { d.out.run = map<FloatsToPair<Format, rounding()>, uint32_t, float, float>; });
  decode_operands(d, {to, Type::f32, Type::f32});
}

void decode_float_to_tf32(const Decoding& d) {
  d.allow({"rna", "rn", "rz", "relu"});
  if (d.has("rna")) {
    d.out.run = map<FloatToTf32<Rounding::nearest_away>, uint32_t, float>;
  } else {
    with_rounding(d, kToFloat, [&](auto rounding) { d.out.run = map<FloatToTf32<rounding()>, uint32_t, float>; });
  }
  decode_operands(d, {Type::b32, Type::f32});
}

// cvt.pack.sat.TYPE.s32 d, a, b and cvt.pack.sat.TYPE.s32.b32 d, a, b, c for types of 16 and 8 bits.
void decode_pack(const Decoding& d) {
  d.allow({"pack", "sat"});
  const bool has_c = d.type() == Type::b32;
  const Type to = d.type(has_c + 1);
  const int num_bits = 8 * size_bytes(to);
  if (!d.has("sat") || d.type(has_c) != Type::s32 || !is_integer(to) || num_bits != (has_c ? 8 : 16)) d.unknown();
  if (is_signed(to)) d.out.flags |= kSignedResult;
  d.out.aux = static_cast<uint64_t>(num_bits) << 8 | 32 << 16;
  d.out.run = map<PackSaturated, uint32_t, int32_t, int32_t, uint32_t>;
  if (has_c) return decode_operands(d, {Type::b32, Type::s32, Type::s32, Type::b32});
  decode_operands(d, {Type::b32, Type::s32, Type::s32});
  d.out.op[3] = d.rows.of_constant(0, 4);
}

void decode_cvt(const Decoding& d) {
  const Type to = d.type(1), from = d.type(0);
  d.out.cls = Class::convert;
  d.out.flags = (d.has("ftz") ? kFlush : 0) | (d.has("sat") ? kSaturate : 0) | (d.has("relu") ? kRelu : 0);
  if (d.has("pack")) return decode_pack(d);
  if (d.type(2) != Type::none) d.unknown();
  if (from == Type::f32) {
    if (to == Type::f16x2) return decode_floats_to_pair<Half>(d, to);
    if (to == Type::bf16x2) return decode_floats_to_pair<Bfloat>(d, to);
    if (to == Type::tf32) return decode_float_to_tf32(d);
  }
  if (d.has("ftz") && to != Type::f32 && from != Type::f32) d.unknown();
  if (d.source.operands.size() != 2) d.wrong("wrong number of operands");
  if (is_integer(to))
    return is_integer(from) ? decode_integer_to_integer(d, to, from) : decode_float_to_integer(d, to, from);
  is_integer(from) ? decode_integer_to_float(d, to, from) : decode_float_to_float(d, to, from);
}

}  // namespace

const NamedDecoder kConvertDecoders[] = {{"cvt", decode_cvt}, {nullptr, nullptr}};

}  // namespace lumos::ptxvm
