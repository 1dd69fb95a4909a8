// Where a thread of the CUDA kernels stands, and the statistics of a head that lies in the registers of its lanes.
#pragma once

#include "ops/mm_rope/rotation_table.cuh"
#include "ops/qk_norm/row_tiles.h"

namespace lumos {

struct RowBlock {
  bool is_k;
  int64_t row;                 // of weights
  int64_t first_token, token;  // the block's, the thread's
  int64_t first_head;          // the thread's; then every place.num_heads-th
  int own_heads;               // heads that the thread has
  int thread_heads;  // heads that it goes over: the same for all, so that no shuffle waits for a lane that has left
  ThreadPlace place;

  __device__ explicit RowBlock(const QkTiles& tiles) {
    is_k = blockIdx.x >= tiles.q.num_blocks;
    const RowTiles own = is_k ? tiles.k : tiles.q;
    const int64_t block = is_k ? blockIdx.x - tiles.q.num_blocks : blockIdx.x;
    row = block / own.token_blocks;
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
    first_head = row * own.row_heads + place.head;
    own_heads = (static_cast<int>(own.row_heads) - place.head + place.num_heads - 1) >> own.heads_log2;
  }
};

// Half a row of weights in shared memory, which a lane reads four at a time: [kSize / 4] rows of four floats a lane,
// apart so that what neighbouring threads fetch lies in different banks.
template <class T>
struct WeightTable {
  static constexpr int kSize = kVectorSize<T>;
  alignas(16) float at[kSize / 4][4 * kBlockVectors + 16];

  // from[num_channels]: in global memory.
  __device__ void fetch(const ThreadPlace& place, const float* from, int num_channels) {
    for (int i = place.index(); i < num_channels; i += kBlockThreads)
      at[i % kSize / 4][i / kSize * 4 + i % 4] = from[i];
  }
  __device__ void read(int vector, float (&x)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize; i += 4) {
      // Volatile: ptxas would take the reads out of the loop over the heads, and their registers cost a block.
      asm volatile("ld.volatile.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(x[i]), "=f"(x[i + 1]), "=f"(x[i + 2]), "=f"(x[i + 3])
                   : "l"(__cvta_generic_to_shared(&at[i / 4][4 * vector])));
    }
  }
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
