// 2^x in one instruction.
#pragma once

namespace lumos {

constexpr float kLog2E = 1.44269504088896340736f;

// Within 2 ulp; exactly 1 at 0, 0 below -126 and at -inf; NaN stays NaN.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace lumos
