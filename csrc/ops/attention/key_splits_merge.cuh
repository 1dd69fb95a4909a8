// Merges the partial results of key splits: see docs/kernels/block_attention.md.
//
//   top = max_s top_s, sum = sum_s sum_s 2^(top_s - top), out = sum_s values_s 2^(top_s - top) / sum
//
// A thread has 4 channels of one row and goes over the splits in their order. A split in which the row sees no key
// changes no bit: the others are what they would be without it, and a single one goes through unchanged.
#pragma once

#include <type_traits>

#include "cuda/vector.cuh"
#include "ops/attention/forward_store.cuh"

namespace lumos {

constexpr int kMergeThreads = 128, kMergeChannels = 4;

// Of one query tile and head.
__host__ __device__ constexpr int64_t merge_blocks(int64_t head_dim) {
  return LUMOS_TILE_TOKENS * head_dim / (kMergeThreads * kMergeChannels);
}

template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    key_splits_merge_kernel(const __grid_constant__ lumos_attention_params p) {
  const int head_dim = int(p.head_dim), chunks = head_dim / kMergeChannels, blocks = int(merge_blocks(head_dim));
  const int i = blockIdx.x % blocks * kMergeThreads + threadIdx.x, row = i / chunks;
  const int channel = i % chunks * kMergeChannels;
  const int32_t* const merge = p.splits.merges + 3 * (blockIdx.x / blocks);
  const int first = merge[0], num_splits = merge[1], distance = merge[2];
  const Tile queries = load_tile(p.splits.tiles, first);
  if (row >= queries.num_tokens) return;

  const Partials partials(p);
  const int64_t head = blockIdx.y;
  const auto place_of = [&](int split) { return partials.place(first + int64_t(split) * distance, head, row); };
  float top = -INFINITY;
  for (int split = 0; split < num_splits; ++split) top = fmaxf(top, partials.states[place_of(split)].x);
  float sum = 0.0f, values[kMergeChannels] = {};
  for (int split = 0; split < num_splits; ++split) {
    const int64_t place = place_of(split);
    const float2 state = partials.states[place];
    if (state.y == 0.0f) continue;
    const float weight = exp2f(state.x - top);
    const float4 own = *reinterpret_cast<const float4*>(partials.values + place * head_dim + channel);
    sum = fmaf(state.y, weight, sum);
    values[0] = fmaf(own.x, weight, values[0]);
    values[1] = fmaf(own.y, weight, values[1]);
    values[2] = fmaf(own.z, weight, values[2]);
    values[3] = fmaf(own.w, weight, values[3]);
  }

  // By the same operations as in the forward of T, whose bits they must be.
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
  for (float& value : values) {
    if constexpr (std::is_same_v<T, float>) {
      value = sum == 0.0f ? 0.0f : value / sum + 0.0f;
    } else {
      value = fmaf(value, inverse, 0.0f);
    }
  }
  const int64_t token_head = (int64_t(queries.slot_begin) + row) * p.num_heads + head;
  if (channel == 0) store_row_state(p, token_head, top, sum);
  T* const out = static_cast<T*>(p.out) + token_head * head_dim + channel;
  if constexpr (std::is_same_v<T, float>) {
    *reinterpret_cast<float4*>(out) = {values[0], values[1], values[2], values[3]};
  } else {
    *reinterpret_cast<uint2*>(out) = {Word<T>::set(values), Word<T>::set(values + 2)};
  }
}

}  // namespace lumos
