// exp2, reductions and selection by bits for the vectors of cpu/simd.h.
#pragma once

#include "cpu/simd.h"

namespace lumos::LUMOS_ISA {

// bit i of `bits` ? a[i] : b[i]
LUMOS_INLINE vec select(uint64_t bits, vec a, vec b) {
#if defined(__AVX512F__)
  return (vec)_mm512_mask_blend_ps(static_cast<__mmask16>(bits), (__m512)b, (__m512)a);
#else
  ivec lane_bits;
  for (int i = 0; i < kLanes; ++i) lane_bits[i] = 1 << i;
  const ivec chosen = (lane_bits & static_cast<int32_t>(bits & ((1u << kLanes) - 1))) != 0;
  return chosen ? a : b;
#endif
}

LUMOS_INLINE vec max(vec a, vec b) { return a > b ? a : b; }

// Whether every lane is at most `limit`; NaN is not.
LUMOS_INLINE bool all_at_most(vec x, float limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)broadcast(limit), _CMP_NLE_UQ) == 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)broadcast(limit), _CMP_NLE_UQ)) == 0;
#else
  bool all = true;
  for (int i = 0; i < kLanes; ++i) all = all && x[i] <= limit;
  return all;
#endif
}

// Lanes are combined in halves: a fixed order.
LUMOS_INLINE float horizontal_sum(vec x) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 eight =
      _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, (__m512)x, 0), _mm512_maskz_extractf32x8_ps(0xff, (__m512)x, 1));
#else
  const __m256 eight = (__m256)x;
#endif
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  float lanes[kLanes];
  store(lanes, x);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
#endif
}

LUMOS_INLINE float horizontal_max(vec x) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 eight =
      _mm256_max_ps(_mm512_maskz_extractf32x8_ps(0xff, (__m512)x, 0), _mm512_maskz_extractf32x8_ps(0xff, (__m512)x, 1));
#else
  const __m256 eight = (__m256)x;
#endif
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
#else
  float lanes[kLanes];
  store(lanes, x);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  }
  return lanes[0];
#endif
}

#if defined(__AVX512F__)

// Minimax polynomial of (2^f - 1) / f on [0, 1); 2^f then has a relative error of 2.0e-9 before rounding.
constexpr float kExp2[6] = {0x1.62e42cp-1f, 0x1.ebfd58p-3f,  0x1.c6890ep-5f,
                            0x1.3d0bf2p-7f, 0x1.46d234p-10f, 0x1.c54f4cp-13f};

// 2^x within 2 ulp; exactly 1 at 0; 0 below -126 (and at -inf); NaN stays NaN.
LUMOS_INLINE vec exp2(vec x) {
  constexpr int kFloor = 9;
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, (__m512)broadcast(-126.0f), _CMP_NLT_UQ);
  const vec f = (vec)_mm512_maskz_reduce_ps(0xffff, (__m512)x, kFloor);  // x - floor(x)
  vec p = broadcast(kExp2[5]);
  for (int i = 4; i >= 0; --i) p = fma(p, f, broadcast(kExp2[i]));
  p = fma(p, f, broadcast(1.0f));
  return (vec)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)x);  // times 2^floor(x)
}

#else

// Minimax polynomial of (2^f - 1) / f on [-0.5, 0.5]; 2^f then has a relative error of 9.2e-9 before rounding.
constexpr float kExp2[6] = {0x1.62e43p-1f,  0x1.ebfbep-3f,  0x1.c6af6cp-5f,
                            0x1.3b2a54p-7f, 0x1.5f089p-10f, 0x1.44138ap-13f};

// 2^x within 2 ulp; exactly 1 at 0; 0 below -126 (and at -inf); NaN stays NaN.
LUMOS_INLINE vec exp2(vec x) {
  const vec clamped_above = x > 127.0f ? broadcast(127.0f) : x;
  const vec clamped = clamped_above < -126.0f ? broadcast(-126.0f) : clamped_above;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the sum's low bits hold the nearest integer
  const vec shifted = clamped + kRound;
  const vec f = clamped - (shifted - kRound);  // in [-0.5, 0.5]
  vec p = broadcast(kExp2[5]);
  for (int i = 4; i >= 0; --i) p = fma(p, f, broadcast(kExp2[i]));
  p = fma(p, f, broadcast(1.0f));
  const vec scaled = (vec)((ivec)p + ((ivec)shifted << 23));
  const vec good = x < -126.0f ? vec{} : scaled;
  return x != x ? x : good;
}

#endif

}  // namespace lumos::LUMOS_ISA
