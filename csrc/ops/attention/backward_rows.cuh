// What the backward needs of each query row, computed once before its two passes.
//
// delta, the sum over channels of out grad_out, adds in the order in which the passes sum grad_out v': where a query
// sees one key, out is that v, and their difference is exactly 0.
#pragma once

#include "cuda/mma.cuh"
#include "cuda/vector.cuh"
#include "lumos/attention.h"
#include "ops/attention/float_dot.cuh"

namespace lumos {

// Of one query and head; p = 2^(score + minus_maximum) inverse_sum. Both 0 where nothing is seen.
struct alignas(16) RowTerms {
  float minus_maximum, inverse_sum;
  float delta;
  float unused;
};

constexpr int kRowTermsThreads = 128;

// out and grad_out of one head: the first token of a warp or of a block.
template <class T>
struct OutputRows {
  const T *out, *grad_out;
  int64_t stride_out, stride_grad_out;
  int64_t num_tokens;
  int head_dim;
};

// A warp has 16 rows, whose deltas are the diagonal of the tensor cores' grad_out out'.
template <class T>
struct RowDeltas {
  static constexpr int kWarpTokens = 16;

  // store(row, delta)
  template <class Store>
  __device__ static void compute(const OutputRows<T>& rows, const Store& store) {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    const auto pair = [&](const T* data, int64_t stride, int i, int channel) {
      return i < rows.num_tokens ? *reinterpret_cast<const uint32_t*>(data + i * stride + channel) : 0u;
    };
    float products[2][4] = {};
    for (int channel = column; channel < rows.head_dim; channel += 16) {
      uint32_t a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = pair(rows.grad_out, rows.stride_grad_out, row + i % 2 * 8, channel + i / 2 * 8);
        b[i] = pair(rows.out, rows.stride_out, row + i % 2 * 8, channel + i / 2 * 8);
      }
      mma<T>(products[0], a, b[0], b[2]);
      mma<T>(products[1], a, b[1], b[3]);
    }
    if (row / 2 != lane % 4) return;  // else it holds the diagonal's row, row
    store(row, row % 2 ? products[0][1] : products[0][0]);
    store(row + 8, row % 2 ? products[1][3] : products[1][2]);
  }
};

// Four lanes have a row, and each of them one of the four chains of dot() in float_dot.cuh.
template <>
struct RowDeltas<float> {
  static constexpr int kWarpTokens = 8;

  template <class Store>
  __device__ static void compute(const OutputRows<float>& rows, const Store& store) {
    const int lane = threadIdx.x % 32, row = lane / 4;
    float delta = 0.0f;
    const float *out = rows.out + row * rows.stride_out, *grad_out = rows.grad_out + row * rows.stride_grad_out;
    for (int i = 0; i < rows.head_dim; i += kChainChannels) {
      float chain = 0.0f;
      if (row < rows.num_tokens) {
        const int end = min(i + kChainChannels, rows.head_dim);
        for (int at = i + lane % 4; at < end; at += 4) chain = fmaf(grad_out[at], out[at], chain);
      }
      chain += __shfl_xor_sync(~0u, chain, 1);
      delta += chain + __shfl_xor_sync(~0u, chain, 2);
    }
    if (lane % 4 == 0) store(row, delta);
  }
};

template <class T>
constexpr int kRowTermsTokens = kRowTermsThreads / 32 * RowDeltas<T>::kWarpTokens;  // of a block, of one head

// terms: [heads, tokens]
template <class T>
__global__ void __launch_bounds__(kRowTermsThreads)
    attention_row_terms_kernel(const lumos_attention_backward_params b, RowTerms* terms) {
  const auto& p = b.forward;
  const int64_t head = blockIdx.y;
  const int64_t first = (int64_t(blockIdx.x) * (kRowTermsThreads / 32) + threadIdx.x / 32) * RowDeltas<T>::kWarpTokens;
  const int64_t stride = p.num_heads * p.head_dim;
  const OutputRows<T> rows{
      static_cast<const T*>(p.out) + first * stride + head * p.head_dim,
      static_cast<const T*>(b.grad_out.data) + first * b.grad_out.stride_token + head * b.grad_out.stride_head,
      stride,
      b.grad_out.stride_token,
      p.num_query_tokens - first,
      static_cast<int>(p.head_dim)};
  RowDeltas<T>::compute(rows, [&](int row, float delta) {
    if (row >= rows.num_tokens) return;
    const float* state = p.row_state + 2 * ((first + row) * p.num_heads + head);
    const float maximum = state[0], sum = state[1];
    const bool empty = sum == 0.0f;
    terms[head * p.num_query_tokens + first + row] = {empty ? 0.0f : -maximum, empty ? 0.0f : 1.0f / sum, delta, 0.0f};
  });
}

}  // namespace lumos
