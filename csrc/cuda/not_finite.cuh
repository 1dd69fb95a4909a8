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

// The elements that are finite; 0 for the others.
template <class T>
__device__ inline uint32_t finite_part(uint32_t pair) {
  const uint32_t bad = not_finite<T>(pair) & kNotFinite;
  return pair & ~((bad >> 15) * 0xffffu);
}

// 1 where an element is NaN or the infinity of this sign (0 or 0x8000), else 0.
template <class T>
__device__ inline uint32_t infinities(uint32_t pair, uint32_t sign) {
  uint32_t found = 0;
#pragma unroll
  for (int shift = 0; shift < 32; shift += 16) {
    const uint32_t x = pair >> shift & 0xffff;
    const bool is_nan = (x & 0x7fff) > kExponentBits<T>;
    if (is_nan || x == (kExponentBits<T> | sign)) found |= kOneBits<T> << shift;
  }
  return found;
}

}  // namespace lumos
