// Arithmetic of f16 and bf16, alone and packed: each result is rounded once from a float or double that is exact, or
// near enough that the second rounding changes nothing.
#include <limits>

#include "ptxvm/float_functions.h"
#include "ptxvm/half.h"

namespace lumos::ptxvm {
namespace {

constexpr uint8_t kFlush = 1, kSaturate = 2, kRelu = 4;  // Inst::flags

// a * b is exact in double. The sum may not be: rounding it to an odd last place keeps the side on which the exact one
// lies of any value with fewer places.
struct OddFusedSum {
  double operator()(double a, double b, double c) const {
    const double product = a * b, sum = product + c;
    const double of_c = sum - product, error = (product - (sum - of_c)) + (c - of_c);
    const auto bits = bits_as<uint64_t>(sum);
    const bool inexact = (error < 0) | (error > 0);  // not if it is a NaN, the error of an infinite sum
    const uint64_t away_from_zero = (error > 0) == (sum > 0);
    return inexact & !(bits & 1) ? bits_as<double>(bits + 2 * away_from_zero - 1) : sum;
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

template <class F, int kArity>
void decode_half(const Decoding& d, Class cls) {
  using H = HalfArithmetic<F, Half>;
  using B = HalfArithmetic<F, Bfloat>;
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
  decode_half<OddFusedSum, 3>(d, Class::half);
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
