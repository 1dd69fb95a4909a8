// Attention forward on tensor cores: see docs/kernels/block_attention.md.
//
//   out[q] = sum_k p[q, k] v[k], p = softmax of scale <q, k> over the keys that q sees
//
// A block of 4 warps has two sides of 64 rows: two query tiles of one head, or one query tile of two heads that share
// their keys. It walks over the key tiles that any side meets; those of keys and values, in turn, go through three
// stages of shared memory, two of which travel while the third is worked on:
//
//   wait for K; barrier; ask for the next tile's K; weights = 2^(factor Q K^T - top); l += their sum
//   wait for V; barrier; ask for the next tile's V; out += weights V
//
// A warp has 32 rows of one side and skips the tiles that its side does not meet.
#pragma once

#include <type_traits>

#include "ops/attention/forward_rows.cuh"
#include "ops/attention/forward_store.cuh"
#include "ops/attention/forward_walk.cuh"

namespace lumos {

constexpr int kStages = 3;

template <int kHeadDim>
constexpr int kForwardSharedBytes = (kSides + kStages) * LUMOS_TILE_TOKENS * kHeadDim * 2;

template <class T, int kHeadDim, class Keys>
__global__ void __launch_bounds__(kForwardThreads, 2)
    attention_forward_kernel(const __grid_constant__ lumos_attention_params p, const bool two_heads,
                             const float factor) {
  using Copy = TileCopy<T, kHeadDim>;
  using Rows = ForwardRows<T, kHeadDim>;
  // In registers, or read again where there are none for it.
  using NextStep = std::conditional_t<kHeadDim <= 64, const WalkStep, const WalkStep&>;
  constexpr int kTileBytes = LUMOS_TILE_TOKENS * kHeadDim * 2;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ ForwardBlock block;
  const uint32_t base = shared_address(shared), own_chunk = kept(uint32_t(Copy::offset()));

#pragma unroll
  for (int i = 0; i < kSides; ++i) {
    const ForwardSide side = forward_side(p, two_heads, i);
    Copy::rows(Copy::first_chunk(p.q, side.slot_begin, side.head), p.q.stride_token * sizeof(T), side.num_rows,
               base + own_chunk + i * kTileBytes);
    if (threadIdx.x == 0) {
      block.sides[i] = side;
      if (side.num_rows) {
        Keys::start(p, side.tile, block.walk.cursors[i]);
      } else {
        block.walk.cursors[i].start_empty();
      }
    }
  }
  int last_step = INT_MAX;  // that is made; only the first warp knows
  if (threadIdx.x < 32) {
    if (threadIdx.x == 0) {
      block.kv_head = (two_heads ? 2 : 1) * int(blockIdx.y) / int(p.num_heads / p.num_kv_heads);
      block.walk.start();
    }
    __syncwarp();
    last_step = block.take_steps(p.key_tiles, block.kSteps - 1);
    if (last_step == 0) last_step = block.take_steps(p.key_tiles, last_step);
  }
  __syncthreads();

  // Of the warp, [32, head_dim]; it may write results there.
  const auto own_queries = [&] { return shared + threadIdx.x / 32 * kWarpRows * kHeadDim * 2; };
  Rows rows(shared_address(own_queries()), block.num_rows(), factor);

  const KeyCopy<Keys, T, kHeadDim> copy_k(p.k, block.kv_head), copy_v(p.v, block.kv_head);
  // In shared memory: K and V of the tile, and the stage that is free for the next K.
  uint32_t k_stage = base + kSides * kTileBytes, v_stage = k_stage + kTileBytes, free_stage = v_stage + kTileBytes;

  uint32_t works = block.steps[0].works;  // of all warps
  copy_k(p, p.k, block.steps[0].keys(), k_stage + own_chunk);
  cp_async_commit();
  copy_v(p, p.v, block.steps[0].keys(), v_stage + own_chunk);
  cp_async_commit();
  if (Rows::kKeepsQueries) {
    cp_async_wait<1>();
    __syncthreads();
    rows.load_queries();
  }

  const uint32_t own_bits = kept(kUnmasked << threadIdx.x / 32 * 2);
  constexpr uint32_t kChecked = 1u << 31;  // as work: the values are not all finite
  int next_step = 1;
  while (works) {
    cp_async_wait<1>();
    __syncthreads();
    const NextStep next = block.steps[next_step];
    copy_k(p, p.k, next.keys(), free_stage + own_chunk);
    cp_async_commit();
    const uint32_t next_works = next.works;
    uint32_t work = kept(works & own_bits);
    if (work) {
      rows.weigh(k_stage, work != own_bits, [&] {
        const Tile keys = block.steps[block.after(kept(next_step), -1)].keys();
        if (!is_by_query(work)) return lumos_range_bits(0, keys.num_tokens);
        const int row = threadIdx.x % 32;
        RowVisibility visibility;
        visibility.load(p.intervals, block.side().slot_begin + block.first_row() + row, row < block.num_rows());
        return visibility.bits(keys, hidden_bits(p.hidden, keys));
      });
    }

    cp_async_wait<1>();
    if (works & kPartialStep) {
      const unsigned char* own_values = shared + (v_stage - base) + own_chunk;  // its own copies
      if (__syncthreads_or(Copy::holds_not_finite(own_values)) && work != own_bits && is_by_query(work))
        work = kChecked;
    } else {
      __syncthreads();
    }
    copy_v(p, p.v, next.keys(), k_stage + own_chunk);
    cp_async_commit();
    if (next_step == last_step) last_step = block.take_steps(p.key_tiles, last_step);
    if (work == kChecked) {
      rows.accumulate_checked(v_stage);
    } else if (work) {
      rows.accumulate(v_stage);
    }
    const uint32_t read = v_stage;
    v_stage = k_stage;  // of the next tile
    k_stage = free_stage;
    free_stage = read;
    works = next_works;
    next_step = block.after(next_step);
  }

  cp_async_wait<0>();
  __syncthreads();  // queries may still be on their way where no key is seen
  const ForwardSide& side = block.side();
  if (side.tile < p.splits.num_partials) {
    store_partial(p, rows, side.tile, side.head, block.first_row(), block.num_rows());
  } else {
    store_rows(p, rows, side.slot_begin + block.first_row(), side.head, block.num_rows(), own_queries());
  }
}

}  // namespace lumos
