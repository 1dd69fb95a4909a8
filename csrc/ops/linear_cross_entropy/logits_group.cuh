// What a warp holds of a row of logits: a group of tiles of LUMOS_LOSS_TILE_COLUMNS columns.
#pragma once

#include "cuda/vector.cuh"
#include "cuda/warp_reduce.cuh"
#include "ops/linear_cross_entropy/row_blocks.h"

namespace lumos {

constexpr int kTileColumns = LUMOS_LOSS_TILE_COLUMNS;

// The first kVectorSize<T> of `count` elements at p, and -inf behind them. Reads nothing behind them.
template <class T>
__device__ inline uint4 load_or_minus_infinity(const T* p, int64_t count) {
  if (count >= kVectorSize<T>) return load_vector(p);
  float x[kVectorSize<T>];
#pragma unroll
  for (int i = 0; i < kVectorSize<T>; ++i) x[i] = i < count ? static_cast<float>(p[i]) : -INFINITY;
  return from_floats<T>(x);
}

// The first `count` of x, or all if there are fewer, to p.
template <class T>
__device__ inline void store_first(T* p, const float (&x)[kVectorSize<T>], int64_t count) {
  if (count >= kVectorSize<T>) return store_vector(p, from_floats<T>(x));
#pragma unroll
  for (int i = 0; i < kVectorSize<T>; ++i) {
    if (i < count) p[i] = static_cast<T>(x[i]);
  }
}

template <class T>
struct LogitsGroup {
  static constexpr int kSize = kVectorSize<T>;
  static constexpr int kTileVectors = kTileColumns / kWarpSize / kSize;  // of a lane
  static_assert(kTileVectors * kWarpSize * kSize == kTileColumns, "a tile is whole vectors of every lane");

  uint4 bits[kGroupTiles][kTileVectors];

  // The first column of a vector of this lane. Which lane has which columns of a tile is fixed: sums depend on it.
  __device__ static int64_t column(int64_t first_tile, int tile, int vector) {
    return (first_tile + tile) * kTileColumns + (vector * kWarpSize + threadIdx.x) * kSize;
  }

  __device__ void load(const T* row, int64_t first_tile, int64_t num_columns) {
    if ((first_tile + kGroupTiles) * kTileColumns <= num_columns) {
#pragma unroll
      for (int tile = 0; tile < kGroupTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < kTileVectors; ++i) bits[tile][i] = load_vector(row + column(first_tile, tile, i));
      }
    } else {
#pragma unroll
      for (int tile = 0; tile < kGroupTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < kTileVectors; ++i) {
          const int64_t c = column(first_tile, tile, i);
          bits[tile][i] = load_or_minus_infinity(row + c, num_columns - c);
        }
      }
    }
  }
};

}  // namespace lumos
