// Gradient of rows of logits: see docs/kernels/masked_linear_cross_entropy.md.
#pragma once

#include "cuda/exp2.cuh"
#include "ops/linear_cross_entropy/logits_group.cuh"

namespace lumos {

// Warp y of block (i, j) has a group of tiles of row i. The logits may be overwritten by their gradient: a thread
// writes only where it alone has read.
template <class T>
__global__ void __launch_bounds__(kMaxRowWarps* kWarpSize)
    linear_cross_entropy_backward_kernel(const lumos_linear_cross_entropy_backward_params p) {
  constexpr int kSize = kVectorSize<T>;
  const int64_t row = blockIdx.x, num_columns = p.logits.num_columns;
  const int64_t first_tile = (int64_t(blockIdx.y) * blockDim.y + threadIdx.y) * kGroupTiles;
  if (first_tile * kTileColumns >= num_columns) return;
  LogitsGroup<T> group;
  group.load(static_cast<const T*>(p.logits.data) + row * p.logits.row_stride, first_tile, num_columns);

  // Once for each warp, while the logits travel.
  float row_max = 0.0f, grad = 0.0f, factor = 0.0f;
  uint64_t target = 0;  // of the columns of this block, or any number that is none
  if (threadIdx.x == 0) {
    row_max = p.row_max[row];
    grad = p.grad[row];
    factor = grad / p.row_sum[row];
    target = uint64_t(p.logits.targets[row]) - p.logits.column_begin;
  }
  row_max = __shfl_sync(kAllLanes, row_max, 0);
  grad = __shfl_sync(kAllLanes, grad, 0);
  factor = __shfl_sync(kAllLanes, factor, 0);
  target = __shfl_sync(kAllLanes, target, 0);

  T* out = static_cast<T*>(p.grad_logits) + row * p.logits.row_stride;
#pragma unroll
  for (int tile = 0; tile < kGroupTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < LogitsGroup<T>::kTileVectors; ++i) {
      const int64_t column = LogitsGroup<T>::column(first_tile, tile, i);
      if (column >= num_columns) return;
      float x[kSize];
      to_floats<T>(group.bits[tile][i], x);
#pragma unroll
      for (int j = 0; j < kSize; ++j) x[j] = exp2_approx((x[j] - row_max) * kLog2E) * factor;
      if (target - column < kSize) {
#pragma unroll
        for (int j = 0; j < kSize; ++j) x[j] -= column + j == target ? grad : 0.0f;
      }
      store_first(out + column, x, num_columns - column);
    }
  }
}

}  // namespace lumos
