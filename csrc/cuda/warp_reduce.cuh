// Sums and maxima over the lanes of a warp, all of which call and get the result.
#pragma once

namespace lumos {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarpSize = 32;

// Lanes are combined in halves: a fixed order, in which every lane finds the same bits.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int apart = kWarpSize / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(kAllLanes, x, apart);
  return x;
}

// NaN only if all are.
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int apart = kWarpSize / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, apart));
  return x;
}

}  // namespace lumos
