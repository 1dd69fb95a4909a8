// A tile of 64 tokens of one head in shared memory, and the vectors of it that each thread of the block copies.
//
// Lanes go over the vectors of a row in the groups that Swizzle permutes: 8 lanes at once meet all banks. A thread
// meets the same vectors of every tile, so it may change what it has copied itself without a barrier.
#pragma once

#include "cuda/at_offset.cuh"
#include "cuda/ldmatrix.cuh"
#include "cuda/not_finite.cuh"
#include "cuda/swizzle.cuh"
#include "cuda/unrolled.cuh"
#include "cuda/vector.cuh"
#include "lumos/attention.h"

namespace lumos {

constexpr int kBackwardThreads = 128;  // four warps of 16 rows of a tile each

template <class T, int kHeadDim>
struct BackwardTile {
  using Order = Swizzle<kHeadDim* int(sizeof(T))>;
  static constexpr int kTokens = LUMOS_TILE_TOKENS;
  static constexpr int kRowBytes = kHeadDim * sizeof(T), kBytes = kTokens * kRowBytes;
  static constexpr int kLanes = Order::kGroup, kRowStep = kBackwardThreads / kLanes;
  static constexpr int kVectors = kRowBytes / 16 / kLanes;  // of a thread in a row

  __device__ static int own_row() { return threadIdx.x / kLanes; }  // and each kRowStep further
  __device__ static int own_lane() { return threadIdx.x % kLanes; }
  // Of the first own vector; rows kRowStep apart have equal turns.
  __device__ static int own_offset() { return Order::offset(own_row(), own_lane()); }

  // tokens: the first one; rows from num_tokens on become zeros.
  __device__ static void copy(uint32_t tile, const T* tokens, int64_t stride_token, int num_tokens) {
    uint64_t source = __cvta_generic_to_global(tokens + own_row() * stride_token + own_lane() * kVectorSize<T>);
    const uint32_t target = tile + own_offset();
    unrolled<kTokens / kRowStep>([&](auto i) {
      const uint32_t bytes = own_row() + i.value * kRowStep < num_tokens ? 16 : 0;
      unrolled<kVectors>([&](auto j) {
        cp_async_at<i.value * kRowStep * kRowBytes + j.value * kLanes * 16, j.value * kLanes * 16>(target, source,
                                                                                                   bytes);
      });
      source += kRowStep * stride_token * sizeof(T);
    });
  }

  // body(row, offset of its first own vector) for each own row.
  template <class Body>
  __device__ static void for_own_rows(const Body& body) {
#pragma unroll
    for (int i = 0; i < kTokens / kRowStep; ++i) {
      body(own_row() + i * kRowStep, own_offset() + i * kRowStep * kRowBytes);
    }
  }
};

template <class T>
__device__ inline bool any_not_finite(uint4 bits) {
  return (not_finite<T>(bits.x) | not_finite<T>(bits.y) | not_finite<T>(bits.z) | not_finite<T>(bits.w)) & kNotFinite;
}

}  // namespace lumos
