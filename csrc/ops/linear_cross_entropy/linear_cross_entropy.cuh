// Running maximum and sum of rows of logits: see docs/kernels/masked_linear_cross_entropy.md.
#pragma once

#include "cuda/exp2.cuh"
#include "ops/linear_cross_entropy/logits_group.cuh"

namespace lumos {

constexpr int kRoundTiles = 256;  // whose maxima and sums a block holds

// The sum over some columns of exp(x - max).
struct ExpSum {
  float max, sum;
};

// exp(from - to), and 1 where both are -inf.
__device__ inline float rescale(float from, float to) { return from == to ? 1.0f : exp2_approx((from - to) * kLog2E); }

// Of the tiles of a group; lane l gets that of tile l / 8.
template <class T>
__device__ inline ExpSum group_sums(const LogitsGroup<T>& group) {
  constexpr int kVectors = LogitsGroup<T>::kTileVectors, kSize = kVectorSize<T>;
  static_assert(kGroupTiles == 4, "what warp_reduce_four takes");
  float x[kGroupTiles][kVectors][kSize], tops[kGroupTiles], sums[kGroupTiles];
#pragma unroll
  for (int tile = 0; tile < kGroupTiles; ++tile) {
    tops[tile] = -INFINITY;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      to_floats<T>(group.bits[tile][i], x[tile][i]);
#pragma unroll
      for (int j = 0; j < kSize; ++j) tops[tile] = fmaxf(tops[tile], x[tile][i][j]);
    }
  }
  const float top = warp_reduce_four(tops, [](float a, float b) { return fmaxf(a, b); });
  const float shift = top == -INFINITY ? 0.0f : top;
#pragma unroll
  for (int tile = 0; tile < kGroupTiles; ++tile) {
    const float tile_shift = __shfl_sync(kAllLanes, shift, 8 * tile);
    sums[tile] = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) sums[tile] += exp2_approx((x[tile][i][j] - tile_shift) * kLog2E);
    }
  }
  return {top, warp_reduce_four(sums, [](float a, float b) { return a + b; })};
}

// `state` with the tiles of lanes 0 to num_tiles - 1 added one after the other; the other lanes hold {-inf, 0}. The
// warp finds the maxima so far and the factors together, so that the order costs one multiplication and addition a
// tile.
__device__ inline ExpSum add_in_order(ExpSum state, ExpSum tile, int num_tiles) {
  float top = fmaxf(state.max, tile.max);
#pragma unroll
  for (int apart = 1; apart < kWarpSize; apart *= 2) {
    const float before = __shfl_up_sync(kAllLanes, top, apart);  // a lane without one before it gets its own
    top = fmaxf(top, before);
  }
  const float before = __shfl_up_sync(kAllLanes, top, 1);
  const float factor = rescale(threadIdx.x == 0 ? state.max : before, top);
  const float part = tile.sum * rescale(tile.max, top);
  for (int i = 0; i < num_tiles; ++i) {
    state.sum = fmaf(state.sum, __shfl_sync(kAllLanes, factor, i), __shfl_sync(kAllLanes, part, i));
  }
  return {__shfl_sync(kAllLanes, top, kWarpSize - 1), state.sum};
}

// Block blockIdx.x has one row: warps take groups of tiles in turn, then the first adds the tiles in their order.
template <class T>
__global__ void __launch_bounds__(kMaxRowWarps* kWarpSize)
    linear_cross_entropy_kernel(const lumos_linear_cross_entropy_params p) {
  __shared__ float maxima[kRoundTiles], sums[kRoundTiles];
  const int64_t row = blockIdx.x, num_columns = p.logits.num_columns;
  const T* x = static_cast<const T*>(p.logits.data) + row * p.logits.row_stride;
  const int64_t num_tiles = (num_columns + kTileColumns - 1) / kTileColumns;

  ExpSum state = {-INFINITY, 0.0f};
  float at_target = NAN;
  if (threadIdx.y == 0 && threadIdx.x == 0) {
    if (p.logits.column_begin > 0) {
      state = {p.row_max[row], p.row_sum[row]};
      at_target = p.loss[row];
    }
    const uint64_t target = uint64_t(p.logits.targets[row]) - p.logits.column_begin;
    if (target < num_columns) at_target = static_cast<float>(x[target]);
  }
  state = {__shfl_sync(kAllLanes, state.max, 0), __shfl_sync(kAllLanes, state.sum, 0)};

  for (int64_t round = 0; round < num_tiles; round += kRoundTiles) {
    const int round_tiles = static_cast<int>(min(num_tiles - round, int64_t{kRoundTiles}));
    for (int first = threadIdx.y * kGroupTiles; first < round_tiles; first += blockDim.y * kGroupTiles) {
      LogitsGroup<T> group;
      group.load(x, round + first, num_columns);
      const ExpSum sum = group_sums(group);
      const int tile = first + threadIdx.x / 8;
      if (threadIdx.x % 8 == 0 && tile < round_tiles) {
        maxima[tile] = sum.max;
        sums[tile] = sum.sum;
      }
    }
    __syncthreads();
    if (threadIdx.y == 0) {
      for (int first = 0; first < round_tiles; first += kWarpSize) {
        const int i = first + threadIdx.x;
        const ExpSum tile = i < round_tiles ? ExpSum{maxima[i], sums[i]} : ExpSum{-INFINITY, 0.0f};
        state = add_in_order(state, tile, min(round_tiles - first, kWarpSize));
      }
    }
    if (round + kRoundTiles < num_tiles) __syncthreads();  // the next round overwrites them
  }

  if (threadIdx.y != 0 || threadIdx.x != 0) return;
  if (p.is_last) {
    if (isnan(at_target)) state.sum = NAN;  // no block held the target: the gradient of the row shall tell as well
    // Not as lse - x[target]: lse would be rounded at the size of the logits.
    at_target = logf(state.sum) - (at_target - state.max);
  }
  p.row_max[row] = state.max;
  p.row_sum[row] = state.sum;
  p.loss[row] = at_target;
}

}  // namespace lumos
