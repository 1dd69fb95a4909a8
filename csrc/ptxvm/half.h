// Narrow floating-point formats: fp16, bf16, tf32 from and to float and double, by integer arithmetic without branches,
// so that loops over lanes vectorise on any machine.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ptxvm/instruction.h"
#include "ptxvm/lanes.h"

namespace lumos::ptxvm {

// Directions a result that lies between two values goes: .rn, .rz, .rm, .rp and .rna.
enum class Rounding : uint8_t { nearest_even, zero, down, up, nearest_away };

template <int kExponent, int kMantissa>
struct Format {
  static constexpr int exponent_bits = kExponent, mantissa_bits = kMantissa;
  static constexpr int bias = (1 << (kExponent - 1)) - 1;
  static constexpr uint32_t infinity = ((1u << kExponent) - 1) << kMantissa;
  static constexpr uint32_t nan = (1u << (kExponent + kMantissa)) - 1;  // the one that arithmetic yields
};
using Half = Format<5, 10>;
using Bfloat = Format<8, 7>;
using Tensor = Format<8, 10>;  // tf32 without the 13 low bits that fill its register
using Single = Format<8, 23>;

// Bits of `x`, float or double, rounded once to a narrower format; a NaN becomes To::nan with the sign of `x`.
template <class To, Rounding kRounding, class From>
inline uint32_t narrow(From x) {
  using Bits = std::conditional_t<sizeof(From) == 4, uint32_t, uint64_t>;
  constexpr int kMantissa = sizeof(From) == 4 ? 23 : 52, kSign = 8 * sizeof(From) - 1;
  constexpr Bits kImplicit = Bits(1) << kMantissa, kInfinity = (Bits(1) << kSign) - kImplicit;
  // Exponent field in From of the smallest normal value of To.
  constexpr Bits kSmallest = (sizeof(From) == 4 ? 127 : 1023) - To::bias + 1;

  const Bits bits = bits_as<Bits>(x), sign = bits >> kSign, magnitude = bits & ~(Bits(1) << kSign);
  const Bits field = magnitude >> kMantissa, exponent = field ? field : 1;
  const Bits significand = (magnitude & (kImplicit - 1)) | (field ? kImplicit : 0);
  // Below the smallest normal value the last place stays where it is. A shift past all bits leaves less than a half.
  const Bits scale = exponent > kSmallest ? exponent : kSmallest;
  const Bits distance = kMantissa - To::mantissa_bits + scale - exponent;
  const Bits shift = distance < kMantissa + 2 ? distance : kMantissa + 2;
  const Bits twice = (significand << 1) >> shift, kept = twice >> 1, half = twice & 1;
  const Bits rest = (significand << 1) != twice << shift;
  Bits increment = 0, to_infinity = 1;
  if constexpr (kRounding == Rounding::nearest_even) increment = half & (rest | kept);
  if constexpr (kRounding == Rounding::nearest_away) increment = half;
  if constexpr (kRounding == Rounding::zero) to_infinity = 0;
  if constexpr (kRounding == Rounding::down) increment = (half | rest) & sign, to_infinity = sign;
  if constexpr (kRounding == Rounding::up) increment = (half | rest) & (sign ^ 1), to_infinity = sign ^ 1;
  Bits result = ((scale - kSmallest) << To::mantissa_bits) + kept + increment;
  const Bits overflow = To::infinity - ((to_infinity | (magnitude == kInfinity)) ^ 1);
  result = result < To::infinity ? result : overflow;
  result = magnitude > kInfinity ? Bits(To::nan) : result;
  return uint32_t(result | sign << (To::exponent_bits + To::mantissa_bits));
}

// Exact. A NaN keeps its payload.
template <class From>
inline float widen(uint32_t bits);

template <>
inline float widen<Half>(uint32_t bits) {
  const uint32_t magnitude = (bits & 0x7fff) << 13;
  // The exponent is too small by the difference of the biases; multiplying mends it for subnormals too.
  const uint32_t finite = bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude < Half::infinity << 13 ? 0 : Single::infinity;
  return bits_as<float>(finite | special | (bits & 0x8000) << 16);
}

template <>
inline float widen<Bfloat>(uint32_t bits) {
  return bits_as<float>(bits << 16);
}

// A value of type f16 or bf16 as functions of lanes get it; made of its bits, or of a float rounded to nearest.
template <class F>
struct Narrow {
  using Format = F;
  Narrow() = default;
  explicit Narrow(uint32_t bits) : bits(static_cast<uint16_t>(bits)) {}
  explicit Narrow(float x) : Narrow(narrow<F, Rounding::nearest_even>(x)) {}
  operator float() const { return widen<F>(bits); }
  uint16_t bits;
};

template <>
struct ValueOf<Type::f16> {
  using type = Narrow<Half>;
};
template <>
struct ValueOf<Type::bf16> {
  using type = Narrow<Bfloat>;
};

inline float half_to_float(uint32_t bits) { return widen<Half>(bits); }
inline float bfloat_to_float(uint32_t bits) { return widen<Bfloat>(bits); }
inline uint32_t float_to_half(float x) { return narrow<Half, Rounding::nearest_even>(x); }
inline uint32_t float_to_bfloat(float x) { return narrow<Bfloat, Rounding::nearest_even>(x); }
template <Rounding kRounding>
inline uint32_t float_to_tf32(float x) {
  return narrow<Tensor, kRounding>(x) << 13;
}

}  // namespace lumos::ptxvm
