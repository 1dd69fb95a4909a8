// Infinities and NaN among pairs of 16-bit elements.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace lumos {

template <class T>
constexpr uint32_t kExponentBits = 0;
template <>
constexpr uint32_t kExponentBits<__nv_bfloat16> = 0x7f80;
template <>
constexpr uint32_t kExponentBits<__half> = 0x7c00;

template <class T>
constexpr uint32_t kOneBits = 0;
template <>
constexpr uint32_t kOneBits<__nv_bfloat16> = 0x3f80;
template <>
constexpr uint32_t kOneBits<__half> = 0x3c00;

// Bits 15 and 31 are set where the element in the low and the high half is not finite; the others may hold anything.
template <class T>
__device__ inline uint32_t not_finite(uint32_t pair) {
  constexpr uint32_t kLowest = kExponentBits<T> & -kExponentBits<T>;  // bit: added to all ones it carries into the sign
  return (pair & kExponentBits<T> * 0x10001u) + kLowest * 0x10001u;
}
constexpr uint32_t kNotFinite = 0x80008000u;

// Two elements as what is finite of them, and as 1 where they are +inf, -inf or (both) NaN; else 0.
template <class T>
__device__ inline void split(uint32_t pair, uint32_t* finite, uint32_t* plus, uint32_t* minus) {
  constexpr uint32_t kExponent = kExponentBits<T>;
  *finite = *plus = *minus = 0;
#pragma unroll
  for (int shift = 0; shift < 32; shift += 16) {
    const uint32_t x = pair >> shift & 0xffff, one = kOneBits<T> << shift;
    const bool is_finite = (x & kExponent) != kExponent, is_nan = !is_finite && (x & 0x7fff) != kExponent;
    if (is_finite) *finite |= x << shift;
    if (!is_finite && (is_nan || x < 0x8000)) *plus |= one;
    if (!is_finite && (is_nan || x >= 0x8000)) *minus |= one;
  }
}

}  // namespace lumos
