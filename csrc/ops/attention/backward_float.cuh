// Attention backward in fp32 by plain FMA, any head_dim up to 128: the passes of backward.cuh on halves of tiles.
//
// A block has 32 own tokens and goes over the 32 tokens of each visited half tile: scores by 256 threads, four each;
// then thread (row, i) adds weights times visited rows to the channels 4 i, 4 i + 32, ... of its row.
#pragma once

#include "lumos/visibility.h"
#include "ops/attention/backward_rows.cuh"
#include "ops/attention/backward_sides.cuh"
#include "ops/attention/float_dot.cuh"
#include "ops/attention/tile_walk.cuh"

namespace lumos {

constexpr int kHalfTile = LUMOS_TILE_TOKENS / 2;
constexpr int kFloatThreads = 256, kFloatMaxHeadDim = 128;
constexpr int kFloatRowThreads = kFloatThreads / kHalfTile;  // that share an own row
constexpr int kFloatVectors = kFloatMaxHeadDim / 4 / kFloatRowThreads;

// Rows of four floats more than head_dim: the same channels of 8 rows lie in different banks.
struct FloatMemory {
  int head_dim;
  __host__ __device__ int stride() const { return head_dim + 4; }
  __host__ __device__ int rows_floats() const { return kHalfTile * stride(); }
  __host__ __device__ int bytes() const { return int(sizeof(float)) * (4 * rows_floats() + 2 * kHalfTile * kHalfTile); }
};

// Rows [begin, 64) of a tile, at most 32; zeros behind its end.
__device__ inline void load_half(const FloatMemory& memory, const lumos_tokens& tokens, const Tile& tile, int begin,
                                 int64_t head, float* rows) {
  const int vectors = memory.head_dim / 4;
  for (int i = threadIdx.x; i < kHalfTile * vectors; i += kFloatThreads) {
    const int row = i / vectors, channel = i % vectors * 4;
    float4 value{};
    if (begin + row < tile.num_tokens) {
      value = *reinterpret_cast<const float4*>(static_cast<const float*>(tokens.data) +
                                               (tile.slot_begin + begin + row) * tokens.stride_token +
                                               head * tokens.stride_head + channel);
    }
    *reinterpret_cast<float4*>(rows + row * memory.stride() + channel) = value;
  }
}

// Skips weights of 0: what is not seen may hold NaN. The rows of a call are summed by themselves, and then added: one
// chain over all tokens would round several times as much.
__device__ inline void add_rows(const FloatMemory& memory, const float* weights, const float* rows,
                                float4 (&sums)[kFloatVectors]) {
  float4 own[kFloatVectors] = {};
  for (int column = 0; column < kHalfTile; ++column) {
    const float weight = weights[column];
    if (weight == 0.0f) continue;
#pragma unroll
    for (int i = 0; i < kFloatVectors; ++i) {
      const int channel = 4 * (threadIdx.x % kFloatRowThreads + i * kFloatRowThreads);
      if (channel >= memory.head_dim) break;
      const float4 x = *reinterpret_cast<const float4*>(rows + column * memory.stride() + channel);
      own[i] = fma4({weight, weight, weight, weight}, x, own[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kFloatVectors; ++i)
    sums[i] = {sums[i].x + own[i].x, sums[i].y + own[i].y, sums[i].z + own[i].z, sums[i].w + own[i].w};
}

// row: of the own token and head
__device__ inline void store_row(const FloatMemory& memory, const float4 (&sums)[kFloatVectors], float factor,
                                 float* row) {
#pragma unroll
  for (int i = 0; i < kFloatVectors; ++i) {
    const int channel = 4 * (threadIdx.x % kFloatRowThreads + i * kFloatRowThreads);
    if (channel >= memory.head_dim) break;
    *reinterpret_cast<float4*>(row + channel) = {factor * sums[i].x, factor * sums[i].y, factor * sums[i].z,
                                                 factor * sums[i].w};
  }
}

// Block (i, j): half i % 2 of tile i / 2, of head j of its side. terms: [heads, tokens].
template <bool kOwnsKeys>
__global__ void __launch_bounds__(kFloatThreads, 2)
    attention_backward_float_kernel(const lumos_attention_backward_params b, const RowTerms* terms) {
  extern __shared__ __align__(16) float shared_floats[];
  const auto& p = b.forward;
  const BackwardSides<kOwnsKeys> sides(b);
  const FloatMemory memory{static_cast<int>(p.head_dim)};
  float* const own0 = shared_floats;
  float* const own1 = own0 + memory.rows_floats();
  float* const visited0 = own1 + memory.rows_floats();
  float* const visited1 = visited0 + memory.rows_floats();
  float* const weights = visited1 + memory.rows_floats();  // p, then ds: [32 own, 32 visited]
  float* const slopes = weights + kHalfTile * kHalfTile;

  const int own_index = blockIdx.x / 2, own_begin = blockIdx.x % 2 * kHalfTile, own_head = blockIdx.y;
  const Tile own = load_tile(p.query_tiles, own_index);
  if (own_begin >= own.num_tokens) return;
  const int group = static_cast<int>(p.num_heads / p.num_kv_heads);
  const int row = threadIdx.x / kFloatRowThreads;
  load_half(memory, sides.own0, own, own_begin, own_head, own0);
  load_half(memory, sides.own1, own, own_begin, own_head, own1);
  float4 sums0[kFloatVectors] = {}, sums1[kFloatVectors] = {};

  TileWalk<1> walk;
  const lumos_tile_runs& runs = kOwnsKeys ? b.columns : p.rows;
  walk.cursors[0].start(runs.runs, runs.offsets[own_index], runs.offsets[own_index + 1]);
  for (walk.start(); !walk.done(); walk.next()) {
    const Tile visited = load_tile(p.query_tiles, walk.tile);
    for (int i = 0; i < (kOwnsKeys ? group : 1) * 2; ++i) {
      const int begin = i % 2 * kHalfTile, visited_head = kOwnsKeys ? own_head * group + i / 2 : own_head / group;
      if (begin >= visited.num_tokens) continue;
      __syncthreads();  // the last visited rows and weights are read no more
      load_half(memory, sides.visited0, visited, begin, visited_head, visited0);
      load_half(memory, sides.visited1, visited, begin, visited_head, visited1);
      __syncthreads();
#pragma unroll
      for (int pair = threadIdx.x; pair < kHalfTile * kHalfTile; pair += kFloatThreads) {
        const int o = pair / kHalfTile, v = pair % kHalfTile;
        const Tile &queries = kOwnsKeys ? visited : own, &keys = kOwnsKeys ? own : visited;
        const int query = kOwnsKeys ? begin + v : own_begin + o, key = kOwnsKeys ? own_begin + o : begin + v;
        float weight = 0.0f, slope = 0.0f;
        if (query < queries.num_tokens && key < keys.num_tokens &&
            lumos_visible(p.intervals + (int64_t(queries.slot_begin) + query) * LUMOS_NUM_INTERVALS,
                          keys.index_begin + key, p.hidden && p.hidden[keys.slot_begin + key])) {
          const int64_t query_head = kOwnsKeys ? visited_head : own_head;
          const RowTerms term = terms[query_head * p.num_query_tokens + queries.slot_begin + query];
          const float score = dot(own0 + o * memory.stride(), visited0 + v * memory.stride(), memory.head_dim);
          const float product = dot(own1 + o * memory.stride(), visited1 + v * memory.stride(), memory.head_dim);
          // Rounded as in the forward, not fused: the greatest score of a row minus the maximum is exactly 0.
          weight = expf(__fmul_rn(score, p.scale) + term.minus_maximum) * term.inverse_sum;
          slope = weight * (product - term.delta);
        }
        weights[pair] = weight;
        slopes[pair] = slope;
      }
      __syncthreads();
      add_rows(memory, slopes + row * kHalfTile, visited0, sums0);
      if (kOwnsKeys) add_rows(memory, weights + row * kHalfTile, visited1, sums1);
    }
  }

  if (own_begin + row >= own.num_tokens) return;
  const int64_t first = ((int64_t(own.slot_begin) + own_begin + row) * gridDim.y + own_head) * p.head_dim;
  store_row(memory, sums0, p.scale, static_cast<float*>(kOwnsKeys ? b.grad_k : b.grad_q) + first);
  if (kOwnsKeys) store_row(memory, sums1, 1.0f, static_cast<float*>(b.grad_v) + first);
}

}  // namespace lumos
