// Attention forward in fp32 by plain FMA, for any head_dim up to 256: see docs/kernels/block_attention.md.
//
// A block has 32 rows of a query tile, a warp 8 of them, and goes over the visible keys 32 at a time: a lane has the
// scores of one key, then the channels lane, lane + 32, ... of the output. Maxima rise and sums are rescaled for each
// row by itself.
#pragma once

#include "cuda/status.h"
#include "cuda/vector.cuh"
#include "ops/attention/float_dot.cuh"
#include "ops/attention/forward_launch.h"
#include "ops/attention/forward_store.cuh"
#include "ops/attention/key_rows.cuh"

namespace lumos {

constexpr int kFloatForwardThreads = 128, kFloatWarpRows = 8, kFloatRows = kFloatForwardThreads / 32 * kFloatWarpRows;
constexpr int kFloatKeys = 32, kFloatChannels = LUMOS_MAX_HEAD_DIM / 32;  // of a block's step; of a lane

// Keys are rows of head_dim + 4: lanes read the same channels of 32 rows from different banks.
constexpr int64_t float_forward_floats(int64_t head_dim) {
  return kFloatRows * head_dim + kFloatKeys * (head_dim + 4) + kFloatKeys * head_dim;
}

template <class Keys>
__global__ void __launch_bounds__(kFloatForwardThreads)
    attention_forward_float_kernel(const __grid_constant__ lumos_attention_params p) {
  extern __shared__ __align__(16) float memory[];
  const int head_dim = int(p.head_dim), stride = head_dim + 4, vectors = head_dim / 4;
  float* const q = memory;  // [32, head_dim]
  float* const k = q + kFloatRows * head_dim;
  float* const v = k + kFloatKeys * stride;  // [32, head_dim]

  constexpr int kParts = LUMOS_TILE_TOKENS / kFloatRows;
  const int tile_index = int(p.query_tiles.num_tiles) - 1 - int(blockIdx.x) / kParts;
  const Tile queries = load_tile(p.query_tiles, tile_index);
  const int first_row = blockIdx.x % kParts * kFloatRows, num_rows = queries.num_tokens - first_row;
  if (num_rows <= 0) return;
  const int64_t slot = queries.slot_begin + first_row, head = blockIdx.y;
  const int64_t kv_head = head / (p.num_heads / p.num_kv_heads);

  // Rows [first, first + 32) of a tile; zeros where there are none.
  const auto load = [&](float* rows, int row_stride, const auto& row_of) {
    for (int i = threadIdx.x; i < kFloatRows * vectors; i += kFloatForwardThreads) {
      const int row = i / vectors, channel = i % vectors * 4;
      const float* from = row_of(row);
      *reinterpret_cast<uint4*>(rows + row * row_stride + channel) =
          from ? load_vector(from + channel) : make_uint4(0, 0, 0, 0);
    }
  };
  const float* all_q = static_cast<const float*>(p.q.data) + slot * p.q.stride_token + head * p.q.stride_head;
  load(q, head_dim, [&](int row) { return row < num_rows ? all_q + row * p.q.stride_token : nullptr; });
  const float* all_k = static_cast<const float*>(p.k.data) + kv_head * p.k.stride_head;
  const float* all_v = static_cast<const float*>(p.v.data) + kv_head * p.v.stride_head;

  const int lane = threadIdx.x % 32, own = threadIdx.x / 32 * kFloatWarpRows;  // first row of the warp
  const float* own_q = q + own * head_dim;
  float acc[kFloatWarpRows][kFloatChannels] = {}, top[kFloatWarpRows], sum[kFloatWarpRows] = {};
#pragma unroll
  for (int r = 0; r < kFloatWarpRows; ++r) top[r] = -INFINITY;
  RowVisibility visibility;  // of row `lane` of the warp
  visibility.load(p.intervals, slot + own + lane, lane < kFloatWarpRows && own + lane < num_rows);

  TileWalk<1> walk;
  Keys::start(p, tile_index, walk.cursors[0]);
  for (walk.start(); !walk.done(); walk.next()) {
    const Tile keys = load_tile(p.key_tiles, walk.tile);
    const bool partial = walk.states[0] == kPartial;
    uint64_t seen = lumos_range_bits(0, keys.num_tokens);
    if (partial) seen = visibility.bits(keys, hidden_bits(p.hidden, keys));
    for (int first = 0; first < keys.num_tokens; first += kFloatKeys) {
      __syncthreads();
      load(k, stride, [&](int row) { return Keys::row(p, keys, first + row, all_k, p.k); });
      load(v, head_dim, [&](int row) { return Keys::row(p, keys, first + row, all_v, p.v); });
      __syncthreads();

      float scores[kFloatWarpRows] = {};  // summed as by dot(): see float_dot.cuh
      for (int d = 0; d < head_dim;) {
        float4 chains[kFloatWarpRows] = {};
        for (const int end = min(d + kChainChannels, head_dim); d < end; d += 4) {
          const float4 key = *reinterpret_cast<const float4*>(k + lane * stride + d);
#pragma unroll
          for (int r = 0; r < kFloatWarpRows; ++r)
            chains[r] = fma4(*reinterpret_cast<const float4*>(own_q + r * head_dim + d), key, chains[r]);
        }
#pragma unroll
        for (int r = 0; r < kFloatWarpRows; ++r) scores[r] += sum4(chains[r]);
      }
      float weights[kFloatWarpRows];
      uint32_t bits[kFloatWarpRows];
#pragma unroll
      for (int r = 0; r < kFloatWarpRows; ++r) {
        bits[r] = __shfl_sync(~0u, static_cast<uint32_t>(seen >> first), r);
        const bool sees = bits[r] >> lane & 1;
        const float score = scores[r] * p.scale;
        float greatest = sees ? score : -INFINITY;
        for (int other = 16; other; other /= 2) greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, other));
        if (greatest > top[r]) {
          const float shrink = expf(top[r] - greatest);
          top[r] = greatest;
          sum[r] *= shrink;
#pragma unroll
          for (int i = 0; i < kFloatChannels; ++i) acc[r][i] *= shrink;
        }
        weights[r] = sees ? expf(score - (top[r] == -INFINITY ? 0.0f : top[r])) : 0.0f;
        sum[r] += weights[r];
      }
      for (int key = 0; key < kFloatKeys; ++key) {
        float values[kFloatChannels];
#pragma unroll
        for (int i = 0; i < kFloatChannels; ++i)
          values[i] = 32 * i < head_dim ? v[key * head_dim + 32 * i + lane] : 0.0f;
#pragma unroll
        for (int r = 0; r < kFloatWarpRows; ++r) {
          const float weight = __shfl_sync(~0u, weights[r], key);
          if (partial && !(bits[r] >> key & 1)) continue;  // the value may not be finite
#pragma unroll
          for (int i = 0; i < kFloatChannels; ++i) acc[r][i] = fmaf(weight, values[i], acc[r][i]);
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kFloatWarpRows; ++r) {
    float total = sum[r];
    for (int other = 16; other; other /= 2) total += __shfl_xor_sync(~0u, total, other);
    if (own + r >= num_rows) continue;
    if (tile_index < p.splits.num_partials) {
      const Partials partials(p);
      const int64_t place = partials.place(tile_index, head, first_row + own + r);
      if (lane == 0) partials.states[place] = {top[r], total};
      if (total == 0.0f) continue;
#pragma unroll
      for (int i = 0; i < kFloatChannels; ++i) {
        if (32 * i < head_dim) partials.values[place * head_dim + 32 * i + lane] = acc[r][i];
      }
      continue;
    }
    const int64_t place = (slot + own + r) * p.num_heads + head;
    if (lane == 0) store_row_state(p, place, top[r], total, 1.0);
#pragma unroll
    for (int i = 0; i < kFloatChannels; ++i) {
      if (32 * i >= head_dim) continue;
      // + 0: never -0
      static_cast<float*>(p.out)[place * head_dim + 32 * i + lane] = total == 0.0f ? 0.0f : acc[r][i] / total + 0.0f;
    }
  }
}

template <class Keys>
void launch_forward_float(const lumos_attention_params& p) {
  const int bytes = static_cast<int>(float_forward_floats(p.head_dim) * sizeof(float));
  auto* kernel = attention_forward_float_kernel<Keys>;
  check_cuda("attention", cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const dim3 grid(p.query_tiles.num_tiles * (LUMOS_TILE_TOKENS / kFloatRows), p.num_heads);
  kernel<<<grid, kFloatForwardThreads, bytes, static_cast<cudaStream_t>(p.stream)>>>(p);
  check_launch("attention");
}

}  // namespace lumos
