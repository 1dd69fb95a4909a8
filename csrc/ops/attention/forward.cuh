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

#include "ops/attention/forward_rows.cuh"
#include "ops/attention/forward_store.cuh"
#include "ops/attention/key_rows.cuh"

namespace lumos {

constexpr int kForwardThreads = kCopyThreads, kForwardWarps = kForwardThreads / 32, kWarpRows = 32;
constexpr int kSides = kForwardWarps * kWarpRows / LUMOS_TILE_TOKENS, kStages = 3;

template <int kHeadDim>
constexpr int kForwardSharedBytes = (kSides + kStages) * LUMOS_TILE_TOKENS * kHeadDim * 2;

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

// What a warp does with a key tile: nothing where its side does not meet the tile or it has no queries; mask by the
// bounds of the queries, or the end of the tile, or not at all.
enum WarpWork { kNothing, kByQuery, kByLength, kUnmasked };

// One step of a block's walk over the key tiles.
struct alignas(64) WalkStep {
  Tile keys;
  int works[kForwardWarps];  // WarpWork
  int exists;                // else the walk is over
  int partial;               // for some warp
};

// What a block knows in shared memory, to spare registers: thread 0 walks, two steps ahead of the others.
struct ForwardBlock {
  static constexpr int kSteps = 4;  // kept; a power of 2 above the 3 in use
  WalkStep steps[kSteps];
  ForwardSide sides[kSides];
  TileWalk<kSides> walk;
  const void *k, *v;  // of the block's key head

  // Of the calling warp.
  __device__ const ForwardSide& side() const { return sides[threadIdx.x / LUMOS_TILE_TOKENS]; }
  __device__ static int first_row() { return threadIdx.x % LUMOS_TILE_TOKENS / kWarpRows * kWarpRows; }
  __device__ int num_rows() const { return min(max(side().num_rows - first_row(), 0), kWarpRows); }

  __device__ void take_step(const lumos_tiles& key_tiles, int i) {
    WalkStep& step = steps[i % kSteps];
    step.exists = !walk.done();
    if (!step.exists) return;
    step.keys = load_tile(key_tiles, walk.tile);
    const WarpWork whole = step.keys.num_tokens == LUMOS_TILE_TOKENS ? kUnmasked : kByLength;
    step.partial = false;
#pragma unroll
    for (int w = 0; w < kForwardWarps; ++w) {
      const int side = w * kWarpRows / LUMOS_TILE_TOKENS;
      const bool works = sides[side].num_rows > w * kWarpRows % LUMOS_TILE_TOKENS && walk.states[side] != kUnseen;
      step.works[w] = !works ? kNothing : walk.states[side] == kPartial ? kByQuery : whole;
      step.partial |= step.works[w] == kByQuery;
    }
    walk.next();
  }
};

template <class T, int kHeadDim, class Keys>
__global__ void __launch_bounds__(kForwardThreads, 2)
    attention_forward_kernel(const __grid_constant__ lumos_attention_params p, const bool two_heads,
                             const float factor) {
  using Copy = TileCopy<T, kHeadDim>;
  using Rows = ForwardRows<T, kHeadDim>;
  constexpr int kTileBytes = LUMOS_TILE_TOKENS * kHeadDim * 2;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ ForwardBlock block;
  const uint32_t base = shared_address(shared), own_chunk = base + Copy::offset();

#pragma unroll
  for (int i = 0; i < kSides; ++i) {
    const ForwardSide side = forward_side(p, two_heads, i);
    const T* q = static_cast<const T*>(p.q.data) + side.slot_begin * p.q.stride_token + side.head * p.q.stride_head;
    Copy::rows(q + Copy::row() * p.q.stride_token + Copy::chunk() * kVectorSize<T>, p.q.stride_token, side.num_rows,
               own_chunk + i * kTileBytes);
    if (threadIdx.x == 0) {
      block.sides[i] = side;
      if (side.num_rows) {
        Keys::start(p, side.tile, block.walk.cursors[i]);
      } else {
        block.walk.cursors[i].start_empty();
      }
    }
  }
  if (threadIdx.x == 0) {
    const int64_t kv_head = (two_heads ? 2 : 1) * int(blockIdx.y) / int(p.num_heads / p.num_kv_heads);
    block.k = static_cast<const T*>(p.k.data) + kv_head * p.k.stride_head;
    block.v = static_cast<const T*>(p.v.data) + kv_head * p.v.stride_head;
    block.walk.start();
    block.take_step(p.key_tiles, 0);
    block.take_step(p.key_tiles, 1);
  }
  __syncthreads();

  // Of the warp, [32, head_dim]; it may write results there.
  const auto own_queries = [&] { return shared + threadIdx.x / 32 * kWarpRows * kHeadDim * 2; };
  Rows rows(shared_address(own_queries()), block.num_rows(), factor);

  const auto copy_k = [&](const Tile& keys, int stage) {
    copy_keys<Keys, kHeadDim>(p, keys, static_cast<const T*>(block.k), p.k, own_chunk + stage);
  };
  const auto copy_v = [&](const Tile& keys, int stage) {
    copy_keys<Keys, kHeadDim>(p, keys, static_cast<const T*>(block.v), p.v, own_chunk + stage);
  };
  // In shared memory: K of the tile. V has the stage behind it, and the third is free for the next K.
  constexpr int kFirstStage = kSides * kTileBytes, kLastStage = kFirstStage + 2 * kTileBytes;
  int k_stage = kFirstStage;

  const WalkStep& start = block.steps[0];
  if (start.exists) copy_k(start.keys, k_stage);
  cp_async_commit();
  if (start.exists) copy_v(start.keys, k_stage + kTileBytes);
  cp_async_commit();
  if (Rows::kKeepsQueries) {
    cp_async_wait<1>();
    __syncthreads();
    rows.load_queries();
  }

  bool exists = start.exists;
  for (int i = 0; exists; ++i) {
    const WalkStep& step = block.steps[i % block.kSteps];
    const WalkStep& next = block.steps[(i + 1) % block.kSteps];
    const int v_stage = k_stage == kLastStage ? kFirstStage : k_stage + kTileBytes;
    const int free_stage = k_stage == kFirstStage ? kLastStage : k_stage - kTileBytes;

    cp_async_wait<1>();
    __syncthreads();
    exists = next.exists;
    if (exists) copy_k(next.keys, free_stage);
    cp_async_commit();
    const int work = step.works[threadIdx.x / 32];
    if (work != kNothing) {
      uint64_t seen = lumos_range_bits(0, step.keys.num_tokens);
      if (work == kByQuery) {
        const int row = threadIdx.x % 32;
        RowVisibility visibility;
        visibility.load(p.intervals, block.side().slot_begin + block.first_row() + row, row < block.num_rows());
        seen = visibility.bits(step.keys, hidden_bits(p.hidden, step.keys));
      }
      rows.weigh(base + k_stage, work != kUnmasked, seen);
    }

    cp_async_wait<1>();
    bool finite = true;
    if (step.partial) {
      finite = !__syncthreads_or(Copy::holds_not_finite(shared + v_stage + Copy::offset()));  // its own copies
    } else {
      __syncthreads();
    }
    if (exists) copy_v(next.keys, k_stage);
    cp_async_commit();
    if (threadIdx.x == 0) block.take_step(p.key_tiles, i + 2);
    if (!finite && work == kByQuery) {
      rows.accumulate_checked(base + v_stage);
    } else if (work != kNothing) {
      rows.accumulate(base + v_stage);
    }
    k_stage = free_stage;
  }

  cp_async_wait<0>();
  __syncthreads();  // queries may still be on their way where no key is seen
  store_rows<T, kHeadDim>(p, rows, block.side().slot_begin + block.first_row(), block.side().head, block.num_rows(),
                          own_queries());
}

}  // namespace lumos
