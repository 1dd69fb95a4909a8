// Union of two attention results: see docs/kernels/merge_attention.md.
#pragma once

#include "cuda/token_blocks.h"
#include "cuda/vector.cuh"
#include "lumos/merge_attention.h"

namespace lumos {

constexpr int kThreadRows = 4;  // of a block's rows, those that one thread goes over

// Weights of the two sides of a row (token, head); 0: it saw nothing, or nothing that counts, and may hold anything.
struct Merged {
  float weight_a, weight_b, lse;
};

__device__ inline Merged merge(float lse_a, float lse_b) {
  const bool a_is_top = lse_a > lse_b || isnan(lse_a);
  const float top = a_is_top ? lse_a : lse_b, other = a_is_top ? lse_b : lse_a;
  if (top == -INFINITY) return {0.0f, 0.0f, top};
  const float ratio = expf(other - top), weight_top = 1.0f / (1.0f + ratio), weight_other = ratio * weight_top;
  return {a_is_top ? weight_top : weight_other, a_is_top ? weight_other : weight_top, top + log1pf(ratio)};
}

// Blocks of token_blocks() for a kThreadRows-th of the rows, as tokens of one head.
template <class T>
__global__ void __launch_bounds__(kBlockThreads) merge_attention_kernel(const lumos_merge_attention_params p) {
  constexpr int kSize = kVectorSize<T>;
  constexpr int kMaxRows = kThreadRows * kBlockThreads / (32 / kSize);  // head_dim is 32 at least
  __shared__ float weights_a[kMaxRows], weights_b[kMaxRows];
  __shared__ int64_t offsets_a[kMaxRows], offsets_b[kMaxRows];
  const int block_rows = kThreadRows * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
  const int64_t first_row = int64_t(blockIdx.x) * block_rows;
  const int num_rows = static_cast<int>(min(p.num_tokens * p.num_heads - first_row, int64_t(block_rows)));
  for (int i = thread; i < num_rows; i += blockDim.x * blockDim.y) {
    const int64_t row = first_row + i, token = row / p.num_heads, head = row % p.num_heads;
    const Merged merged = merge(p.lse_a[row], p.lse_b[row]);
    weights_a[i] = merged.weight_a;
    weights_b[i] = merged.weight_b;
    offsets_a[i] = token * p.out_a_stride_token + head * p.out_a_stride_head;
    offsets_b[i] = token * p.out_b_stride_token + head * p.out_b_stride_head;
    if (blockIdx.y == 0) p.lse[row] = merged.lse;
  }
  __syncthreads();

  const int64_t channel = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * kSize;
  if (channel >= p.head_dim) return;
  const T* out_a = static_cast<const T*>(p.out_a) + channel;
  const T* out_b = static_cast<const T*>(p.out_b) + channel;
  T* out = static_cast<T*>(p.out) + first_row * p.head_dim + channel;
  uint4 from_a[kThreadRows], from_b[kThreadRows];
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int row = i * blockDim.y + threadIdx.y;
    if (row >= num_rows) break;
    from_a[i] = weights_a[row] == 0.0f ? uint4{} : load_vector(out_a + offsets_a[row]);
    from_b[i] = weights_b[row] == 0.0f ? uint4{} : load_vector(out_b + offsets_b[row]);
  }
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int row = i * blockDim.y + threadIdx.y;
    if (row >= num_rows) break;
    float a[kSize], b[kSize];
    to_floats<T>(from_a[i], a);
    to_floats<T>(from_b[i], b);
#pragma unroll
    for (int j = 0; j < kSize; ++j) a[j] = fmaf(a[j], weights_a[row], b[j] * weights_b[row]);
    store_vector(out + row * p.head_dim, from_floats<T>(a));
  }
}

}  // namespace lumos
