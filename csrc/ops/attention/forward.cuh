// Attention forward on tensor cores: see docs/kernels/block_attention.md.
//
//   out[q] = sum_k p[q, k] v[k], p = softmax of scale <q, k> over the keys that q sees
//
// A block of 4 warps has two sides of 64 rows: two query tiles of one head, or one query tile of two heads that share their
// keys. It walks over the key tiles that any side meets; those of keys and values, in turn, go through three stages of
// shared memory, two of which travel while the third is worked on:
//
//   wait for K; barrier; ask for the next tile's K; weights = 2^(factor Q K^T - top); l += their sum
//   wait for V; barrier; ask for the next tile's V; out += weights V
//
// A warp has 32 rows of one side and skips the tiles that its side does not meet.
#pragma once

#include "ops/attention/forward_rows.cuh"
#include "ops/attention/forward_store.cuh"
#include "ops/attention/key_rows.cuh"

namespace lumos {

constexpr int kForwardThreads = kCopyThreads, kSides = 2, kStages = 3;

template <int kHeadDim>
constexpr int kForwardSharedBytes = (kSides + kStages) * LUMOS_TILE_TOKENS * kHeadDim * 2;

// One step of a block's walk over the key tiles. Thread 0 walks, two steps ahead; the block reads it from shared memory.
struct alignas(16) WalkStep {
  Tile keys;
  int states[kSides];
  int exists;  // else the walk is over
};
constexpr int kSteps = 4;  // kept; a power of 2 above the 3 in use

// Query tile and head of one side; num_rows is 0 for a side without work.
struct ForwardSide {
  int tile, head, num_rows, slot_begin;
};

// Block (x, y): the last tiles first, for under a causal layout they see the most keys.
__device__ inline ForwardSide forward_side(const lumos_attention_params& p, bool two_heads, int side) {
  ForwardSide found;
  const int last = int(p.query_tiles.num_tiles) - 1;
  found.tile = two_heads ? last - int(blockIdx.x) : (last / 2 - int(blockIdx.x)) * 2 + side;
  found.head = two_heads ? blockIdx.y * 2 + side : blockIdx.y;
  const bool exists = found.tile <= last;
  const Tile tile = exists ? load_tile(p.query_tiles, found.tile) : Tile{0, 0, 0, 0};
  found.num_rows = tile.num_tokens;
  found.slot_begin = tile.slot_begin;
  return found;
}

__device__ inline void take_step(TileWalk<kSides>& walk, const lumos_tiles& key_tiles, WalkStep& step) {
  step.exists = !walk.done();
  if (!step.exists) return;
  step.keys = load_tile(key_tiles, walk.tile);
#pragma unroll
  for (int i = 0; i < kSides; ++i) step.states[i] = walk.states[i];
  walk.next();
}

template <class T, int kHeadDim, class KeyRows>
__global__ void __launch_bounds__(kForwardThreads, 2)
    attention_forward_kernel(const __grid_constant__ lumos_attention_params p, const bool two_heads, const float factor) {
  using Copy = TileCopy<T, kHeadDim>;
  using Rows = ForwardRows<T, kHeadDim>;
  constexpr int kTileBytes = LUMOS_TILE_TOKENS * kHeadDim * 2;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ WalkStep steps[kSteps];
  __shared__ TileWalk<kSides> walk;
  const uint32_t base = shared_address(shared), own_chunk = base + Copy::offset();

#pragma unroll
  for (int i = 0; i < kSides; ++i) {
    const ForwardSide side = forward_side(p, two_heads, i);
    const T* q = static_cast<const T*>(p.q.data) + side.slot_begin * p.q.stride_token + side.head * p.q.stride_head;
    Copy::rows(q, p.q.stride_token, side.num_rows, own_chunk + i * kTileBytes);
    if (threadIdx.x == 0) {
      walk.cursors[i] = RunCursor();
      if (side.num_rows) KeyRows::start(p, side.tile, walk.cursors[i]);
    }
  }
  if (threadIdx.x == 0) {
    walk.start();
    take_step(walk, p.key_tiles, steps[0]);
    take_step(walk, p.key_tiles, steps[1]);
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, own_side = warp / 2;
  const ForwardSide side = forward_side(p, two_heads, own_side);
  const int first_row = warp % 2 * 32, num_rows = min(max(side.num_rows - first_row, 0), 32);
  unsigned char* const own_queries = shared + warp * 32 * kHeadDim * 2;
  Rows rows(shared_address(own_queries), num_rows, factor);

  const int kv_head = side.head / int(p.num_heads / p.num_kv_heads);  // the same for both sides
  const T* k = static_cast<const T*>(p.k.data) + kv_head * p.k.stride_head;
  const T* v = static_cast<const T*>(p.v.data) + kv_head * p.v.stride_head;
  // In shared memory: K and V of the tile, and the stage that is free for the next K.
  int k_stage = kSides * kTileBytes, v_stage = k_stage + kTileBytes, free_stage = v_stage + kTileBytes;

  KeyRows key_rows;
  if (steps[0].exists) {
    key_rows.aim(p, steps[0].keys);
    key_rows.copy(p, k, p.k, own_chunk + k_stage);
  }
  cp_async_commit();
  if (steps[0].exists) key_rows.copy(p, v, p.v, own_chunk + v_stage);
  cp_async_commit();
  if (Rows::kKeepsQueries) {
    cp_async_wait<1>();
    __syncthreads();
    rows.load_queries();
  }

  for (int i = 0; steps[i % kSteps].exists; ++i) {
    const WalkStep& step = steps[i % kSteps];
    const WalkStep& next = steps[(i + 1) % kSteps];
    cp_async_wait<1>();
    __syncthreads();
    if (next.exists) {
      key_rows.aim(p, next.keys);
      key_rows.copy(p, k, p.k, own_chunk + free_stage);
    }
    cp_async_commit();
    const int met = num_rows ? step.states[own_side] : kUnseen;
    if (met != kUnseen) {
      uint64_t seen = lumos_range_bits(0, step.keys.num_tokens);
      if (met == kPartial) {
        const int row = threadIdx.x % 32;
        RowVisibility visibility;
        visibility.load(p.intervals, side.slot_begin + first_row + row, row < num_rows);
        seen = visibility.bits(step.keys, hidden_bits(p.hidden, step.keys));
      }
      rows.weigh(base + k_stage, met == kPartial || step.keys.num_tokens < LUMOS_TILE_TOKENS, seen);
    }

    cp_async_wait<1>();
    bool finite = true;
    if (step.states[0] == kPartial || step.states[1] == kPartial) {
      finite = !__syncthreads_or(Copy::holds_not_finite(shared + v_stage + Copy::offset()));  // its own copies
    } else {
      __syncthreads();
    }
    if (next.exists) key_rows.copy(p, v, p.v, own_chunk + k_stage);
    cp_async_commit();
    if (threadIdx.x == 0) take_step(walk, p.key_tiles, steps[(i + 2) % kSteps]);
    if (met == kFull || (met == kPartial && finite)) {
      rows.accumulate(base + v_stage);
    } else if (met == kPartial) {
      rows.accumulate_checked(base + v_stage);
    }
    const int last_stage = v_stage;
    v_stage = k_stage;
    k_stage = free_stage;
    free_stage = last_stage;
  }

  cp_async_wait<0>();
  __syncthreads();  // queries may still be on their way where no key is seen
  store_rows<T, kHeadDim>(p, rows, side.slot_begin + first_row, side.head, num_rows, own_queries);
}

}  // namespace lumos
