// What needs only the bits of floats, of every format: min, max, abs, neg, copysign, testp.
#include "ptxvm/float_functions.h"

namespace lumos::ptxvm {
namespace {

constexpr uint8_t kFlush = 1, kPropagateNan = 2, kXorSign = 4, kMaximum = 8, kNegate = 16;  // Inst::flags

// Bits of a float whose mantissa has kMantissa places.
template <class T, int kMantissa>
struct Layout {
  using Unsigned = T;
  static constexpr T sign = T(1) << (8 * sizeof(T) - 1), magnitude = T(sign - 1);
  static constexpr T smallest_normal = T(1) << kMantissa, infinity = T(sign - smallest_normal), nan = magnitude;
  // .ftz: magnitudes below `limit`, smallest_normal or 0, become zero.
  static T flushed(T x, T limit) { return (x & magnitude) < limit ? T(x & sign) : x; }
  static bool is_nan(T x) { return (x & magnitude) > infinity; }
};
using Layout16 = Layout<uint16_t, 10>;
using LayoutB16 = Layout<uint16_t, 7>;
using Layout32 = Layout<uint32_t, 23>;
using Layout64 = Layout<uint64_t, 52>;

// -0 is less than +0; an operand that is no NaN wins.
template <class L>
class Extremum {
  using T = typename L::Unsigned;

 public:
  explicit Extremum(const Inst& inst)
      : limit_(inst.flags & kFlush ? L::smallest_normal : 0),
        kept_(inst.flags & kXorSign ? L::magnitude : T(~T(0))),
        propagate_(inst.flags & kPropagateNan),
        flip_(inst.flags & kMaximum ? T(~T(0)) : 0) {}

  T operator()(T a, T b) const {
    const T sign = (a ^ b) & ~kept_;
    const T x = L::flushed(a, limit_) & kept_, y = L::flushed(b, limit_) & kept_;
    const bool x_nan = L::is_nan(x), y_nan = L::is_nan(y), take_y = (key(y) < key(x)) & !y_nan;
    const bool is_nan = (x_nan & y_nan) | (propagate_ & (x_nan | y_nan));
    const T chosen = take_y | x_nan ? y : x;
    return is_nan ? L::nan : T(chosen | sign);
  }

 private:
  // Grows with the value, or falls for the maximum.
  T key(T x) const { return T(x ^ (x & L::sign ? T(~T(0)) : L::sign) ^ flip_); }

  T limit_, kept_;
  bool propagate_;
  T flip_;
};

// abs, or neg.
template <class L>
class SignChange {
  using T = typename L::Unsigned;

 public:
  explicit SignChange(const Inst& inst)
      : limit_(inst.flags & kFlush ? L::smallest_normal : 0),
        kept_(inst.flags & kNegate ? T(~T(0)) : L::magnitude),
        changed_(inst.flags & kNegate ? L::sign : 0) {}
  T operator()(T x) const { return (L::flushed(x, limit_) & kept_) ^ changed_; }

 private:
  T limit_, kept_, changed_;
};

template <class L>
struct CopySign {
  using T = typename L::Unsigned;
  T operator()(T sign, T magnitude) const { return (sign & L::sign) | (magnitude & L::magnitude); }
};

// Inst::aux has one bit for each kind of value: zero, subnormal, normal, infinite, NaN.
template <class L>
class KindIs {
 public:
  explicit KindIs(const Inst& inst) : kinds_(static_cast<uint32_t>(inst.aux)) {}
  template <class T>
  bool operator()(T x) const {
    const T magnitude = x & L::magnitude;
    const uint32_t kind =
        (magnitude > 0) + (magnitude >= L::smallest_normal) + (magnitude >= L::infinity) + (magnitude > L::infinity);
    return kinds_ >> kind & 1;
  }

 private:
  uint32_t kinds_;
};

template <template <class> class F, int kArity>
void decode_bits(const Decoding& d) {
  const auto decode = [&](auto layout, Class cls) {
    using L = decltype(layout);
    using T = typename L::Unsigned;
    if constexpr (sizeof(T) == 2) {
      if (size_bytes(d.type()) == 4) return decode_same(d, kArity, cls, kMapSame<Packed<F<L>, T>, uint32_t, kArity>);
    }
    decode_same(d, kArity, cls, kMapSame<F<L>, T, kArity>);
  };
  switch (d.type()) {
    case Type::f16:
    case Type::f16x2: return decode(Layout16(), Class::half);
    case Type::bf16:
    case Type::bf16x2: return decode(LayoutB16(), Class::half);
    case Type::f32: return decode(Layout32(), Class::fp32);
    case Type::f64: return decode(Layout64(), Class::fp64);
    default: d.unknown();
  }
}

bool can_flush(const Decoding& d) { return d.type() == Type::f32 || d.type() == Type::f16 || d.type() == Type::f16x2; }

void decode_extremum(const Decoding& d, uint8_t flags) {
  if (d.type() == Type::f64) d.allow({});
  can_flush(d) ? d.allow({"ftz", "NaN", "xorsign", "abs"}) : d.allow({"NaN", "xorsign", "abs"});
  if (d.has("xorsign") != d.has("abs")) d.unknown();
  d.out.flags = flags | (d.has("ftz") ? kFlush : 0) | (d.has("NaN") ? kPropagateNan : 0);
  if (d.has("xorsign")) d.out.flags |= kXorSign;
  decode_bits<Extremum, 2>(d);
}

void decode_sign_change(const Decoding& d, uint8_t flags) {
  can_flush(d) ? d.allow({"ftz"}) : d.allow({});
  d.out.flags = flags | (d.has("ftz") ? kFlush : 0);
  decode_bits<SignChange, 1>(d);
}

}  // namespace

void decode_float_min(const Decoding& d) { decode_extremum(d, 0); }
void decode_float_max(const Decoding& d) { decode_extremum(d, kMaximum); }
void decode_float_abs(const Decoding& d) { decode_sign_change(d, 0); }
void decode_float_neg(const Decoding& d) { decode_sign_change(d, kNegate); }

void decode_copysign(const Decoding& d) {
  d.allow({});
  if (d.type() != Type::f32 && d.type() != Type::f64) d.unknown();
  decode_bits<CopySign, 2>(d);
}

void decode_testp(const Decoding& d) {
  static constexpr struct {
    const char* name;
    uint32_t kinds;
  } kTests[] = {{"finite", 0b00111},     {"infinite", 0b01000}, {"number", 0b01111},
                {"notanumber", 0b10000}, {"normal", 0b00101},   {"subnormal", 0b00010}};
  const Type type = d.type();
  if (d.source.modifiers.size() != 2 || (type != Type::f32 && type != Type::f64)) d.unknown();
  for (const auto& test : kTests) {
    if (d.has(test.name)) d.out.aux = test.kinds;
  }
  if (!d.out.aux) d.unknown();
  d.out.cls = type == Type::f32 ? Class::fp32 : Class::fp64;
  d.out.run = type == Type::f32 ? map<KindIs<Layout32>, bool, uint32_t> : map<KindIs<Layout64>, bool, uint64_t>;
  decode_operands(d, {Type::pred, type});
}

}  // namespace lumos::ptxvm
