// Merges the partial results of key splits: see docs/kernels/block_attention.md.
//
//   m = max_s m_s, l = sum_s l_s 2^(m_s - m), out = sum_s values_s 2^(m_s - m) / l; (m_s, l_s): row_state of split s
//   (float32: in base e)
//
// A thread has kMergeChannels channels of one row, kMergeVectors of 4 with those of its neighbours between them, and
// goes over the splits in their order. A split in which the row sees no key changes no bit: the others are what they
// would be without it, and a single one goes through unchanged.
#pragma once

#include <type_traits>

#include "cuda/exp2.cuh"
#include "cuda/vector.cuh"
#include "ops/attention/forward_store.cuh"

namespace lumos {

constexpr int kMergeRows = 32, kMergeVectors = 4, kMergeChannels = 4 * kMergeVectors;

// Block (x, y, z): merge, head, half of the query tile. Its threads: [32, head_dim / kMergeChannels]
template <class T>
__global__ void __launch_bounds__(kMergeRows* LUMOS_MAX_HEAD_DIM / kMergeChannels)
    key_splits_merge_kernel(const __grid_constant__ lumos_attention_params p) {
  constexpr bool kFloat = std::is_same_v<T, float>;
  const int32_t* const merge = p.splits.merges + 3 * blockIdx.x;
  const int first = merge[0], num_splits = merge[1], distance = merge[2];
  const Tile queries = load_tile(p.splits.tiles, first);
  const int row = blockIdx.z * kMergeRows + threadIdx.y;
  if (row >= queries.num_tokens) return;

  const Partials partials(p);
  const int64_t head = blockIdx.y, place = partials.place(first, head, row);
  const int64_t apart = partials.place(distance, 0, 0);
  const float2* const states = partials.states + place;
  float top = -INFINITY;
  for (int split = 0; split < num_splits; ++split) top = fmaxf(top, states[split * apart].x);

  const int channel = threadIdx.x * 4, step = blockDim.x * 4;  // of the first vector; to the next
  const float* own = partials.values + place * p.head_dim + channel;
  float sum = 0.0f, values[kMergeVectors][4] = {};
  for (int split = 0; split < num_splits; ++split, own += apart * p.head_dim) {
    const float2 state = states[split * apart];
    if (state.y == 0.0f) continue;
    const float weight = kFloat ? expf(state.x - top) : exp2_approx(state.x - top);
    sum = fmaf(state.y, weight, sum);
#pragma unroll
    for (int i = 0; i < kMergeVectors; ++i) {
      const float4 value = *reinterpret_cast<const float4*>(own + i * step);
      values[i][0] = fmaf(value.x, weight, values[i][0]);
      values[i][1] = fmaf(value.y, weight, values[i][1]);
      values[i][2] = fmaf(value.z, weight, values[i][2]);
      values[i][3] = fmaf(value.w, weight, values[i][3]);
    }
  }

  const int64_t token_head = (int64_t(queries.slot_begin) + row) * p.num_heads + head;
  if (threadIdx.x == 0) store_row_state(p, token_head, top, sum, kFloat ? 1.0 : 0.6931471805599453);
  T* const out = static_cast<T*>(p.out) + token_head * p.head_dim + channel;
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
  for (int i = 0; i < kMergeVectors; ++i) {
    // By the operations of the forward of T, whose bits they must be.
    if constexpr (kFloat) {
#pragma unroll
      for (float& value : values[i]) value = sum == 0.0f ? 0.0f : value / sum + 0.0f;
      *reinterpret_cast<float4*>(out + i * step) = {values[i][0], values[i][1], values[i][2], values[i][3]};
    } else {
#pragma unroll
      for (float& value : values[i]) value = fmaf(value, inverse, 0.0f);
      *reinterpret_cast<uint2*>(out + i * step) = {Word<T>::set(values[i]), Word<T>::set(values[i] + 2)};
    }
  }
}

}  // namespace lumos
