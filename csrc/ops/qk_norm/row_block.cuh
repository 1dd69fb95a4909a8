// Where a thread of the CUDA kernels stands, and the statistics of a head that lies in the registers of its lanes.
#pragma once

#include "ops/mm_rope/rotation_table.cuh"
#include "ops/qk_norm/row_tiles.h"

namespace lumos {

struct RowBlock {
  bool is_k;
  int64_t row;                 // of weights
  int64_t first_token, token;  // the block's, the thread's
  int64_t first_head;          // of the row, of the thread: then every num_heads-th
  int64_t row_heads;
  int thread_heads;  // the same for all threads, so that no shuffle waits for a lane that has left
  ThreadPlace place;

  __device__ explicit RowBlock(const QkTiles& tiles) {
    is_k = blockIdx.x >= tiles.q.num_blocks;
    const RowTiles own = is_k ? tiles.k : tiles.q;
    const int64_t block = is_k ? blockIdx.x - tiles.q.num_blocks : blockIdx.x;
    row = block / own.token_blocks;
    row_heads = own.row_heads;
    thread_heads = own.thread_heads;
    place.num_vectors = 1 << tiles.lanes_log2;
    place.num_tokens = 1 << own.tokens_log2;
    place.num_heads = 1 << own.heads_log2;
    const int thread = threadIdx.x;
    place.vector = thread & (place.num_vectors - 1);
    place.token = (thread >> tiles.lanes_log2) & (place.num_tokens - 1);
    place.head = thread >> (tiles.lanes_log2 + own.tokens_log2);
    first_token = (block - row * own.token_blocks) << own.tokens_log2;
    token = first_token + place.token;
    first_head = row * row_heads + place.head;
  }
  __device__ bool has(int64_t head) const { return head < (row + 1) * row_heads; }
};

// Sum over the lanes of a head, the same bits in each: neighbours first, then pairs of pairs.
__device__ inline float lane_sum(float x, int num_lanes) {
  for (int apart = 1; apart < num_lanes; apart *= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
  return x;
}

template <int kSize>
__device__ inline float vector_sum(const float (&first)[kSize], const float (&second)[kSize]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kSize; ++i) sum += first[i] + second[i];
  return sum;
}

// Subtracts the mean of the head; returns 1 / sqrt(variance + eps). The variance is that of the centred head: no
// cancellation of large means. `works`: of a lane with channels; the others hold zeros before and after.
template <int kSize>
__device__ inline float centre(float (&first)[kSize], float (&second)[kSize], bool works, int num_lanes,
                               float inverse_size, float eps) {
  const float mean = lane_sum(vector_sum(first, second), num_lanes) * inverse_size;
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    first[i] = works ? first[i] - mean : 0.0f;
    second[i] = works ? second[i] - mean : 0.0f;
    squares = fmaf(first[i], first[i], fmaf(second[i], second[i], squares));
  }
  return 1.0f / sqrtf(lane_sum(squares, num_lanes) * inverse_size + eps);
}

}  // namespace lumos
