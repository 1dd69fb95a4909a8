// Functions of floating-point lanes that several formats share. The approximations are within about one ulp of float.
#pragma once

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <limits>

#include "ptxvm/decode.h"
#include "ptxvm/instruction.h"
#include "ptxvm/lanes.h"

namespace lumos::ptxvm {

// Decoders of the formats of 16 bits (ops_half.cpp), and of what only moves bits of floats (ops_float_bits.cpp).
void decode_half_add(const Decoding& d);
void decode_half_sub(const Decoding& d);
void decode_half_mul(const Decoding& d);
void decode_half_fma(const Decoding& d);
void decode_half_ex2(const Decoding& d);
void decode_half_tanh(const Decoding& d);
void decode_float_min(const Decoding& d);
void decode_float_max(const Decoding& d);
void decode_float_abs(const Decoding& d);
void decode_float_neg(const Decoding& d);
void decode_copysign(const Decoding& d);
void decode_testp(const Decoding& d);

template <class T, size_t>
using Repeated = T;
template <class F, class T, size_t... I>
constexpr Handler map_repeated(std::index_sequence<I...>) {
  return map<F, T, Repeated<T, I>...>;
}
// The handler of a result and kArity operands that are all T.
template <class F, class T, int kArity>
constexpr Handler kMapSame = map_repeated<F, T>(std::make_index_sequence<kArity>());

// An instruction whose result and operands have its only type.
inline void decode_same(const Decoding& d, int arity, Class cls, Handler handler) {
  const Type type = d.type();
  if (d.type(1) != Type::none) d.unknown();
  d.out.cls = cls;
  d.out.run = handler;
  if (arity == 1) decode_operands(d, {type, type});
  if (arity == 2) decode_operands(d, {type, type, type});
  if (arity == 3) decode_operands(d, {type, type, type, type});
}

// Directed roundings are the host's own: the handler runs between two changes of the rounding mode. What it computes
// comes from rows of the warp and goes to one, so that nothing moves across these calls.
template <Handler kHandler>
void directed(Warp& warp, const Inst& inst, uint32_t mask) {
  std::fesetround(static_cast<int>(inst.aux >> 32));
  kHandler(warp, inst, mask);
  std::fesetround(FE_TONEAREST);
}

// Tells directed() the mode; false if it is the one to nearest, which needs no change.
inline bool set_rounding_mode(const Decoding& d) {
  const int mode = d.has("rz") ? FE_TOWARDZERO : d.has("rm") ? FE_DOWNWARD : d.has("rp") ? FE_UPWARD : FE_TONEAREST;
  d.out.aux |= static_cast<uint64_t>(mode) << 32;
  return mode != FE_TONEAREST;
}

struct Sum {
  template <class T>
  T operator()(T a, T b) const {
    return a + b;
  }
};

struct Difference {
  template <class T>
  T operator()(T a, T b) const {
    return a - b;
  }
};

struct Product {
  template <class T>
  T operator()(T a, T b) const {
    return a * b;
  }
};

struct PowerOfTwo {
  float operator()(float x) const {
    // Beyond these bounds the result is zero or infinity. A NaN passes both, and makes `fraction` and the result one.
    x = x < -151.0f ? -151.0f : x;
    x = x > 129.0f ? 129.0f : x;
    constexpr float kShifter = 0x1.8p23f;  // leaves the nearest integer in the last places of a sum
    const float shifted = x + kShifter;
    const float fraction = x - (shifted - kShifter);
    const int32_t exponent = bits_as<int32_t>(shifted) - bits_as<int32_t>(kShifter);
    float power = 0x1.44138ap-13f;  // (2^fraction - 1) / fraction, up to 2^-29
    power = std::fma(power, fraction, 0x1.5f089p-10f);
    power = std::fma(power, fraction, 0x1.3b2a54p-7f);
    power = std::fma(power, fraction, 0x1.c6af6cp-5f);
    power = std::fma(power, fraction, 0x1.ebfbep-3f);
    power = std::fma(power, fraction, 0x1.62e43p-1f);
    power = std::fma(power, fraction, 1.0f);
    // Two factors, as 2^exponent may lie beyond the normal values; only the second product rounds.
    const int32_t half = exponent >> 1;
    const auto scale = [](int32_t e) { return bits_as<float>(static_cast<uint32_t>(e + 127) << 23); };
    return power * scale(half) * scale(exponent - half);
  }
};

struct Logarithm {
  float operator()(float x) const {
    const bool subnormal = x < std::numeric_limits<float>::min();
    const auto bits = bits_as<uint32_t>(subnormal ? x * 0x1p24f : x);
    // x = mantissa * 2^exponent with the mantissa between the roots of 1/2 and 2.
    const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3) >> 23;
    const double mantissa = bits_as<float>(bits - (static_cast<uint32_t>(exponent) << 23));
    const double s = (mantissa - 1) / (mantissa + 1), z = s * s;
    const double series =
        ((0.43171769745887384 * z + 0.5767151860190234) * z + 0.96179883880211) * z + 2.8853900798033365;
    const auto result = static_cast<float>(exponent - (subnormal ? 24 : 0) + s * series);
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const float at_end = x == 0 ? -kInfinity : x < 0 ? std::numeric_limits<float>::quiet_NaN() : x;
    return (x > 0) & (x < kInfinity) ? result : at_end;
  }
};

struct HyperbolicTangent {
  float operator()(float x) const { return static_cast<float>(std::tanh(static_cast<double>(x))); }
};

}  // namespace lumos::ptxvm
