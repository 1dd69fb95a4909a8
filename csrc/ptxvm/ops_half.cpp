// Arithmetic of f16 and bf16, alone and packed: each result is rounded once from a float or double that is exact, or
// near enough that the second rounding changes nothing.
#include <limits>

#include "ptxvm/float_functions.h"
#include "ptxvm/half.h"

namespace lumos::ptxvm {
namespace {

constexpr uint8_t kFlush = 1, kSaturate = 2, kRelu = 4;  // Inst::flags

// Products are exact in Wide, sums may not be. A float with an odd last place stands for an inexact one: it lies on the
// same side of any value of fewer places, so that the second rounding sees what the first has dropped.
template <class Wide>
struct OddFusedSum {
  float operator()(float a, float b, float c) const {
    const Wide product = Wide{a} * Wide{b}, sum = product + c, of_c = sum - product;
    const auto result = static_cast<float>(sum);
    const Wide error = (sum - result) + ((product - (sum - of_c)) + (c - of_c));
    const bool inexact = (error < 0) | (error > 0);  // not if it is a NaN, the error of an infinite sum
    const auto bits = bits_as<uint32_t>(result);
    const uint32_t step = ~bits & 1, towards_zero = (error < 0) ^ bits >> 31;
    return bits_as<float>(bits + (inexact ? towards_zero ? 0 - step : step : 0));
  }
};

template <class F, class Format>
class HalfArithmetic {
 public:
  explicit HalfArithmetic(const Inst& inst)
      : smallest_(inst.flags & kFlush ? 1u << Format::mantissa_bits : 0),
        least_(inst.flags & (kSaturate | kRelu) ? 0 : -std::numeric_limits<float>::infinity()),
        most_(inst.flags & kSaturate ? 1 : std::numeric_limits<float>::infinity()),
        nan_(inst.flags & kSaturate ? 0 : Format::nan) {}

  template <class... A>
  uint16_t operator()(A... operands) const {
    const auto x = F()(widen<Format>(flushed(operands))...);
    const auto above = x > least_ ? x : least_;
    const uint32_t bits = flushed(narrow<Format, Rounding::nearest_even>(above < most_ ? above : most_));
    return static_cast<uint16_t>(x == x ? bits : nan_);
  }

 private:
  uint32_t flushed(uint32_t bits) const { return (bits & 0x7fff) < smallest_ ? bits & 0x8000 : bits; }

  uint32_t smallest_;  // magnitudes below it become zero
  float least_, most_;
  uint32_t nan_;
};

// F for f16, OfBfloat for bf16.
template <class F, int kArity, class OfBfloat = F>
void decode_half(const Decoding& d, Class cls) {
  using H = HalfArithmetic<F, Half>;
  using B = HalfArithmetic<OfBfloat, Bfloat>;
  const Type type = d.type();
  if (d.has("sat") && d.has("relu")) d.unknown();
  d.out.flags = (d.has("ftz") ? kFlush : 0) | (d.has("sat") ? kSaturate : 0) | (d.has("relu") ? kRelu : 0);
  decode_same(d, kArity, cls,
              type == Type::f16     ? kMapSame<H, uint16_t, kArity>
              : type == Type::bf16  ? kMapSame<B, uint16_t, kArity>
              : type == Type::f16x2 ? kMapSame<Packed<H, uint16_t>, uint32_t, kArity>
                                    : kMapSame<Packed<B, uint16_t>, uint32_t, kArity>);
}

bool is_bfloat(const Decoding& d) { return d.type() == Type::bf16 || d.type() == Type::bf16x2; }

template <class F>
void decode_binary(const Decoding& d) {
  is_bfloat(d) ? d.allow({"rn"}) : d.allow({"rn", "ftz", "sat"});
  decode_half<F, 2>(d, Class::half);
}

}  // namespace

void decode_half_add(const Decoding& d) { decode_binary<Sum>(d); }
void decode_half_sub(const Decoding& d) { decode_binary<Difference>(d); }
void decode_half_mul(const Decoding& d) { decode_binary<Product>(d); }

void decode_half_fma(const Decoding& d) {
  if (!d.has("rn")) d.unknown();
  is_bfloat(d) ? d.allow({"rn", "relu"}) : d.allow({"rn", "ftz", "sat", "relu"});
  decode_half<OddFusedSum<float>, 3, OddFusedSum<double>>(d, Class::half);
}

void decode_half_ex2(const Decoding& d) {
  if (!d.has("approx") || is_bfloat(d) != d.has("ftz")) d.unknown();
  d.allow({"approx", "ftz"});
  decode_half<PowerOfTwo, 1>(d, Class::special);
}

void decode_half_tanh(const Decoding& d) {
  if (!d.has("approx")) d.unknown();
  d.allow({"approx"});
  decode_half<HyperbolicTangent, 1>(d, Class::special);
}

}  // namespace lumos::ptxvm
