// 2^x for weights that are rounded to bf16, in half the instructions of exp2 (cpu/simd_math.h). For *_amx.cpp only.
#pragma once

#include "cpu/simd.h"

namespace lumos::LUMOS_ISA {

// 2^x within 3e-6, far below the rounding of bf16, in the lanes of `lanes`; 0 in the others. Exactly 1 at 0, 0 at -inf;
// NaN stays NaN.
LUMOS_INLINE vec short_exp2(vec x, uint64_t lanes) {
  constexpr int kFloor = 9;
  const vec f = (vec)_mm512_maskz_reduce_ps(0xffff, (__m512)x, kFloor);  // x - floor(x)
  vec p = broadcast(0x1.b7f738p-7f);
  p = fma(p, f, broadcast(0x1.abf866p-5f));
  p = fma(p, f, broadcast(0x1.ee2452p-3f));
  p = fma(p, f, broadcast(0x1.62d6c6p-1f));
  p = fma(p, f, broadcast(1.0f));
  return (vec)_mm512_maskz_scalef_ps(static_cast<__mmask16>(lanes), (__m512)p, (__m512)x);  // times 2^floor(x)
}

}  // namespace lumos::LUMOS_ISA
