// Vectors of float for kernel files, in the namespace of their instruction set.
//
// All arithmetic is IEEE and named: fma() is one rounding where the instruction set has it and two roundings where it
// has not, the same in every loop of that instruction set (the build sets -ffp-contract=off).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if !defined(LUMOS_ISA)
#error "cpu/simd.h is for kernel files (*_cpu.cpp) only"
#endif

#define LUMOS_INLINE inline __attribute__((always_inline))

namespace lumos::LUMOS_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t ivec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t uvec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t hvec __attribute__((vector_size(2 * kLanes)));

struct bfloat16 {
  uint16_t bits;
};

LUMOS_INLINE vec broadcast(float x) { return x - vec{}; }

LUMOS_INLINE vec load(const float* p) {
  vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

// 16 lanes are named here because gcc widens and narrows them in pieces otherwise; a mask of ones leaves nothing
// undefined.
LUMOS_INLINE uvec widened(hvec half) {
#if defined(__AVX512F__)
  return (uvec)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)half);
#else
  return __builtin_convertvector(half, uvec);
#endif
}

LUMOS_INLINE hvec narrowed(uvec x) {
#if defined(__AVX512F__)
  return (hvec)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)x);
#else
  return __builtin_convertvector(x, hvec);
#endif
}

LUMOS_INLINE vec load(const bfloat16* p) {
  hvec half;
  std::memcpy(&half, p, sizeof half);
  return (vec)(widened(half) << 16);
}

LUMOS_INLINE void store(float* p, vec x) { std::memcpy(p, &x, sizeof x); }

// To bf16, in the upper halves; the lower ones hold anything. Rounds to nearest even; NaN stays NaN.
LUMOS_INLINE uvec rounded_bits(vec x) {
  const uvec bits = (uvec)x;
  return x != x ? (bits | 0x400000u) : bits + 0x7fffu + ((bits >> 16) & 1u);
}

LUMOS_INLINE void store(bfloat16* p, vec x) {
  const hvec half = narrowed(rounded_bits(x) >> 16);
  std::memcpy(p, &half, sizeof half);
}

// a and b side by side. In bf16 one store instead of two, which counts where memory is the limit.
LUMOS_INLINE void store(float* p, vec a, vec b) {
  store(p, a);
  store(p + kLanes, b);
}

LUMOS_INLINE void store(bfloat16* p, vec a, vec b) {
#if defined(__AVX512F__)
  typedef uint16_t halves __attribute__((vector_size(64)));
  const halves both =
      __builtin_shufflevector((halves)rounded_bits(a), (halves)rounded_bits(b), 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21,
                              23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63);
  std::memcpy(p, &both, sizeof both);
#else
  store(p, a);
  store(p + kLanes, b);
#endif
}

LUMOS_INLINE float to_float(float x) { return x; }

LUMOS_INLINE float to_float(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

LUMOS_INLINE void from_float(float* p, float x) { *p = x; }

LUMOS_INLINE void from_float(bfloat16* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = x != x ? (bits | 0x400000u) : bits + 0x7fffu + ((bits >> 16) & 1u);
  p->bits = static_cast<uint16_t>(bits >> 16);
}

// a b + c
LUMOS_INLINE vec fma(vec a, vec b, vec c) {
#if defined(__AVX512F__)
  return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

LUMOS_INLINE float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

}  // namespace lumos::LUMOS_ISA
