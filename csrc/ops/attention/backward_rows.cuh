// What the backward needs of each query row, computed once before its two passes.
#pragma once

#include "cuda/vector.cuh"
#include "lumos/attention.h"

namespace lumos {

// Of one query and head; p = 2^(score + minus_maximum) inverse_sum. Both 0 where nothing is seen.
struct alignas(16) RowTerms {
  float minus_maximum, inverse_sum;
  float delta;  // sum over channels of out grad_out
  float unused;
};

constexpr int kRowTermsThreads = 128, kRowLanes = 4;
constexpr int kRowTermsTokens = kRowTermsThreads / kRowLanes;  // of a block, of one head

// terms: [heads, tokens]. Four lanes a row, in one order of sums whatever the launch.
template <class T>
__global__ void __launch_bounds__(kRowTermsThreads)
    attention_row_terms_kernel(const lumos_attention_backward_params b, RowTerms* terms) {
  const auto& p = b.forward;
  const int64_t token = int64_t(blockIdx.x) * kRowTermsTokens + threadIdx.x / kRowLanes, head = blockIdx.y;
  const int lane = threadIdx.x % kRowLanes;
  const bool exists = token < p.num_query_tokens;
  const int64_t row = token * p.num_heads + head;
  float delta = 0.0f;
  if (exists) {
    const T* out = static_cast<const T*>(p.out) + row * p.head_dim;
    const T* grad =
        static_cast<const T*>(b.grad_out.data) + token * b.grad_out.stride_token + head * b.grad_out.stride_head;
    for (int64_t i = lane * kVectorSize<T>; i < p.head_dim; i += kRowLanes * kVectorSize<T>) {
      float x[kVectorSize<T>], y[kVectorSize<T>];
      to_floats<T>(load_vector(out + i), x);
      to_floats<T>(load_vector(grad + i), y);
#pragma unroll
      for (int j = 0; j < kVectorSize<T>; ++j) delta = fmaf(x[j], y[j], delta);
    }
  }
  delta += __shfl_xor_sync(~0u, delta, 1);
  delta += __shfl_xor_sync(~0u, delta, 2);
  if (!exists || lane) return;
  const float maximum = p.row_state[2 * row], sum = p.row_state[2 * row + 1];
  const bool empty = sum == 0.0f;
  terms[head * p.num_query_tokens + token] = {empty ? 0.0f : -maximum, empty ? 0.0f : 1.0f / sum, delta, 0.0f};
}

}  // namespace lumos
