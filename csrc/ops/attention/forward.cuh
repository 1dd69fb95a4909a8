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
  __syncthreads();
  const bool first_warp = threadIdx.x < 32;
  int num_steps = first_warp ? 0 : INT_MAX;  // made so far; the other warps need not know
  if (first_warp) {
    block.walk.start();
    __syncwarp();
  }
  while (num_steps < 2) num_steps += block.take_steps(p.key_tiles, num_steps);
  __syncthreads();

  // Of the warp, [32, head_dim]; it may write results there.
  const auto own_queries = [&] { return shared + threadIdx.x / 32 * kWarpRows * kHeadDim * 2; };
  Rows rows(shared_address(own_queries()), block.num_rows(), factor);

  const int kv_head = (two_heads ? 2 : 1) * int(blockIdx.y) / int(p.num_heads / p.num_kv_heads);
  const KeyCopy<Keys, T, kHeadDim> copy_k(p.k, kv_head), copy_v(p.v, kv_head);
  // In shared memory: K and V of the tile, and the stage that is free for the next K.
  uint32_t k_stage = kSides * kTileBytes, v_stage = k_stage + kTileBytes, free_stage = v_stage + kTileBytes;

  uint32_t works = block.step(0).works;
  if (works) copy_k(p, p.k, block.step(0).keys, own_chunk + k_stage);
  cp_async_commit();
  if (works) copy_v(p, p.v, block.step(0).keys, own_chunk + v_stage);
  cp_async_commit();
  if (Rows::kKeepsQueries) {
    cp_async_wait<1>();
    __syncthreads();
    rows.load_queries();
  }

  const int warp_bits = threadIdx.x / 32 * 2;
  for (int i = 0; works; ++i) {
    const WalkStep& next = block.step(i + 1);

    cp_async_wait<1>();
    __syncthreads();
    const uint32_t next_works = next.works;
    if (next_works) copy_k(p, p.k, next.keys, own_chunk + free_stage);
    cp_async_commit();
    const uint32_t work = works >> warp_bits & 3;
    if (work != kNothing) {
      rows.weigh(base + k_stage, work != kUnmasked, [&] {
        const Tile keys = block.step(i).keys;
        if (work == kByLength) return lumos_range_bits(0, keys.num_tokens);
        const int row = threadIdx.x % 32;
        RowVisibility visibility;
        visibility.load(p.intervals, block.side().slot_begin + block.first_row() + row, row < block.num_rows());
        return visibility.bits(keys, hidden_bits(p.hidden, keys));
      });
    }

    cp_async_wait<1>();
    bool finite = true;
    if (works & kPartialStep) {
      finite = !__syncthreads_or(Copy::holds_not_finite(shared + v_stage + Copy::offset()));  // its own copies
      finite |= work != kByQuery;
    } else {
      __syncthreads();
    }
    if (next_works) copy_v(p, p.v, next.keys, own_chunk + k_stage);
    cp_async_commit();
    if (i + 2 == num_steps) num_steps += block.take_steps(p.key_tiles, num_steps);
    if (!finite) {
      rows.accumulate_checked(base + v_stage);
    } else if (work != kNothing) {
      rows.accumulate(base + v_stage);
    }
    const uint32_t read = v_stage;
    v_stage = k_stage;  // of the next tile
    k_stage = free_stage;
    free_stage = read;
    works = next_works;
  }

  cp_async_wait<0>();
  __syncthreads();  // queries may still be on their way where no key is seen
  store_rows<T, kHeadDim>(p, rows, block.side().slot_begin + block.first_row(), block.side().head, block.num_rows(),
                          own_queries());
}

}  // namespace lumos
