// Four sums or maxima over a warp at once, for six shuffles where one by one it takes twenty.
#pragma once

namespace lumos {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarpSize = 32;

// Lane l of a warp of threads x gets the result of x[l / 8]. Lanes are combined in halves, the same ones for each of
// the four: the bits of a result do not depend on which of them it is.
template <class Op>
__device__ inline float warp_reduce_four(const float (&x)[4], Op op) {
  const bool upper = threadIdx.x & 16, odd = threadIdx.x & 8;
  float pair[2];  // in exchange for the other pair, which other lanes go on with
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    pair[i] = op(upper ? x[i + 2] : x[i], __shfl_xor_sync(kAllLanes, upper ? x[i] : x[i + 2], 16));
  }
  float y = op(odd ? pair[1] : pair[0], __shfl_xor_sync(kAllLanes, odd ? pair[0] : pair[1], 8));
#pragma unroll
  for (int apart = 4; apart > 0; apart /= 2) y = op(y, __shfl_xor_sync(kAllLanes, y, apart));
  return y;
}

}  // namespace lumos
