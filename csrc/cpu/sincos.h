// Sine and cosine of vectors of float.
#pragma once

#include "cpu/simd.h"

namespace lumos::LUMOS_ISA {

typedef double dvec __attribute__((vector_size(8 * kLanes)));

// Within 1 ulp of 1 (6e-8) for |x| < 2^30; NaN for NaN and infinity. No result exceeds 1 in magnitude.
LUMOS_INLINE void sincos(vec x, vec* sine, vec* cosine) {
  // x = quarter pi/2 + r, reduced in double: the upper part of pi/2 has 33 bits, so that its product with a quarter
  // below 2^20 is exact and r is right to a rounding of float even where x lies next to a multiple of pi/2.
  constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
  constexpr double kHalfPiUpper = 0x1.921fb544p+0, kHalfPiLower = 0x1.0b4611a626331p-34;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const dvec wide = __builtin_convertvector(x, dvec);
  const dvec quarter = (wide * kTwoOverPi + kRound) - kRound;
  const vec r = __builtin_convertvector((wide - quarter * kHalfPiUpper) - quarter * kHalfPiLower, vec);
  const ivec q = __builtin_convertvector(quarter, ivec);

  // Minimax polynomials on [-pi/4, pi/4] (those of Cephes).
  const vec z = r * r;
  vec s = fma(broadcast(-1.9515295891e-4f), z, broadcast(8.3321608736e-3f));
  s = fma(s, z, broadcast(-1.6666654611e-1f));
  s = fma(s * z, r, r);
  vec c = fma(broadcast(2.443315711809948e-5f), z, broadcast(-1.388731625493765e-3f));
  c = fma(c, z, broadcast(4.166664568298827e-2f));
  c = fma(c, z * z, fma(broadcast(-0.5f), z, broadcast(1.0f)));

  const ivec swap = (q & 1) != 0;
  const ivec sine_sign = (q & 2) << 30, cosine_sign = ((q + 1) & 2) << 30;
  *sine = (vec)((ivec)(swap ? c : s) ^ sine_sign);
  *cosine = (vec)((ivec)(swap ? s : c) ^ cosine_sign);
}

}  // namespace lumos::LUMOS_ISA
