// Sine and cosine of a float, without the branch and the table that CUDA's own has for large arguments.
#pragma once

namespace lumos {

// Within 1 ulp of 1 (1.2e-7) for |x| <= 2^22, twice that up to 2^24; NaN for NaN and infinity. No result exceeds 1 in
// magnitude. The polynomials of cpu/sincos.h, which reduces in double: below 2^10 the two differ in less than a
// thousandth of the results, by their last bit.
__device__ inline void sine_and_cosine(float x, float* sine, float* cosine) {
  // |x| = quarter pi/2 + r. pi/2 in two parts, the first of 21 bits, so that |x| - quarter * first is exact. The first
  // quarter may be wrong by one or two where |x| * 2/pi has no bits below the point: the second corrects it.
  constexpr float kTwoOverPi = 0x1.45f306p-1f, kHalfPiUpper = 0x1.921fb0p+0f, kHalfPiLower = 0x1.5110b4p-22f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it to numbers not below -2^22 rounds to an integer
  const float magnitude = fabsf(x);
  const float coarse = fmaf(magnitude, kTwoOverPi, kRound) - kRound;
  float r = fmaf(coarse, -kHalfPiLower, fmaf(coarse, -kHalfPiUpper, magnitude));
  const float correction = fmaf(r, kTwoOverPi, kRound) - kRound;
  r = fmaf(correction, -kHalfPiLower, fmaf(correction, -kHalfPiUpper, r));
  const int quarter = static_cast<int>(coarse + correction);

  const float z = r * r;
  float s = fmaf(-1.9515295891e-4f, z, 8.3321608736e-3f);
  s = fmaf(s, z, -1.6666654611e-1f);
  s = fmaf(s * z, r, r);
  float c = fmaf(2.443315711809948e-5f, z, -1.388731625493765e-3f);
  c = fmaf(c, z, 4.166664568298827e-2f);
  c = fmaf(c, z * z, fmaf(-0.5f, z, 1.0f));

  const bool swap = quarter & 1;
  const int sine_sign = ((quarter & 2) << 30) ^ (__float_as_int(x) & 0x80000000);
  const int cosine_sign = ((quarter + 1) & 2) << 30;
  *sine = __int_as_float(__float_as_int(swap ? c : s) ^ sine_sign);
  *cosine = __int_as_float(__float_as_int(swap ? s : c) ^ cosine_sign);
}

}  // namespace lumos
