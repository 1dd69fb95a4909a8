// Attention forward on tensor cores: see docs/kernels/block_attention.md.
//
//   out[q] = sum_k p[q, k] v[k], p = softmax of scale <q, k> over the keys that q sees
//
// A block of 4 warps has two sides of 64 rows: two query tiles of one head, or one query tile of two heads that share
// their keys. It walks over the key tiles that any side meets:
//
//   wait for K; barrier; ask for the next tile's K; weights = 2^(factor Q K^T - top); l += their sum
//   wait for V; barrier; ask for the next tile's V; out += weights V
//
// Shared memory has three stages of K or V, one of them worked on while two travel. At head_dim 64 it has four: K and V
// of a tile travel together, and the tile has one wait and one barrier.
//
// A warp has 32 rows of one side and skips the tiles that its side does not meet.
#pragma once

#include <type_traits>

#include "ops/attention/forward_rows.cuh"
#include "ops/attention/forward_store.cuh"
#include "ops/attention/forward_walk.cuh"

namespace lumos {

template <int kHeadDim>
constexpr bool kTogether = kHeadDim <= 64;
template <int kHeadDim>
constexpr int kStages = kTogether<kHeadDim> ? 4 : 3;
template <int kHeadDim>
constexpr int kForwardSharedBytes = (kSides + kStages<kHeadDim>)*LUMOS_TILE_TOKENS * kHeadDim * 2;

template <class T, int kHeadDim, class Keys>
__global__ void __launch_bounds__(kForwardThreads, 2)
    attention_forward_kernel(const __grid_constant__ lumos_attention_params p, const bool two_heads,
                             const float factor) {
  using Copy = TileCopy<T, kHeadDim>;
  using Rows = ForwardRows<T, kHeadDim>;
  constexpr bool kBoth = kTogether<kHeadDim>;
  constexpr bool kHasRoom = kBoth || std::is_same_v<Keys, PagedKeys>;  // for the walk and offsets in registers
  // In registers, or read again where there are none for it.
  using NextStep = std::conditional_t<kBoth, const KeyTile<Keys>, const KeyTile<Keys>&>;
  constexpr int kTileBytes = LUMOS_TILE_TOKENS * kHeadDim * 2;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ ForwardBlock<T, Keys> block;
  const uint32_t base = shared_address(shared), own_chunk = kept(Copy::offset());

#pragma unroll
  for (int i = 0; i < kSides; ++i) {
    ForwardSide side = forward_side(p, two_heads, i);
    Copy::template rows<false>(Copy::first_chunk(p.q, side.slot_begin, side.head), p.q.stride_token * sizeof(T),
                               side.num_rows, base + own_chunk + i * kTileBytes);
    if (threadIdx.x < 32) side.same_rows = have_same_bounds(p.intervals, side.slot_begin, side.num_rows);
    if (threadIdx.x == 0) {
      block.sides[i] = side;
      if (side.num_rows) {
        Keys::start(p, side.tile, block.walk.cursors[i]);
      } else {
        block.walk.cursors[i].start_empty();
      }
    }
  }
  if (threadIdx.x < 32) {
    if (threadIdx.x == 0) {
      block.kv_head = (two_heads ? 2 : 1) * int(blockIdx.y) / int(p.num_heads / p.num_kv_heads);
      block.walk.start();
    }
    __syncwarp();
    block.take_steps(p, block.kSteps - 1);
  }
  __syncthreads();

  // Of the warp, [32, head_dim]; it may write results there.
  const auto own_queries = [&] { return shared + threadIdx.x / 32 * kWarpRows * kHeadDim * 2; };
  Rows rows(shared_address(own_queries()), block.num_rows(), factor);

  const KeyCopy<Keys, T, kHeadDim> copy(p, block.kv_head);
  // K and V of the tile, and what is free for the next K (and, where they travel together, V): there the lane's first
  // chunks, else the tiles, which are the same for all lanes and take no registers of theirs.
  const uint32_t first_chunk = kept(Rows::first_chunk()), in_k = kBoth ? first_chunk : 0, behind_k = first_chunk - in_k;
  uint32_t k = base + kSides * kTileBytes + in_k, v = k + kTileBytes, free = v + kTileBytes;
  // From there to the first chunk that the thread copies; made anew where there is no room to keep it.
  const uint32_t kept_copy = kept(own_chunk - in_k);
  const auto own_copy = [&] { return kHasRoom ? kept_copy : Copy::offset(kept(int(threadIdx.x))); };
  const uint32_t both = kBoth ? kept(k + free) : 0;

  uint32_t works = block.steps[0].works;  // of all warps
  if (Rows::kKeepsQueries) cp_async_commit();
  copy.template keys<false>(block.steps[0], k + own_copy());
  if (!kBoth) cp_async_commit();
  copy.template values<false>(block.steps[0], v + own_copy());
  cp_async_commit();
  if (works & kLastStep && threadIdx.x < 32) block.take_steps(p, 0);
  if (Rows::kKeepsQueries) {
    cp_async_wait<1>();
    __syncthreads();
    rows.load_queries();
  }

  uint32_t own_bits = kUnmasked << threadIdx.x / 32 * 2;
  if (kBoth) own_bits = kept(own_bits);
  constexpr uint32_t kChecked = 1u << 28;  // as work: by query, and the values are not all finite
  int next_step = 1;
  while (__builtin_expect(works != kNoStep, true)) {
    uint32_t work = kept(works & own_bits);
    // The barrier behind which the tile's values may be read.
    const auto values_barrier = [&] {
      if (__builtin_expect(works & kByQueryStep, false)) {
        const uint32_t tile = (kBoth ? k + kTileBytes : v) - in_k - base;
        const bool not_finite =
            Copy::holds_not_finite(shared + tile, kHasRoom ? own_chunk : own_copy());  // its own copies
        if (__syncthreads_or(not_finite) && work != own_bits && is_by_query(work)) work = kChecked;
      } else {
        __syncthreads();
      }
    };
    if constexpr (kBoth) {
      cp_async_wait_all();
      values_barrier();
      free = kept(both - k);
    } else {
      cp_async_wait<1>();
      __syncthreads();
    }
    const NextStep next = block.steps[next_step];
    const auto ask = [&](auto whole) {
      copy.template keys<whole>(next, free + own_copy());
      if constexpr (kBoth) copy.template values<whole, kTileBytes>(next, free + own_copy());
    };
    if (__builtin_expect(is_unusual(next.works), false)) {
      if (next.num_tokens == LUMOS_TILE_TOKENS) {
        ask(std::true_type());
      } else {
        ask(std::false_type());
      }
      if (next.works & kLastStep && threadIdx.x < 32) block.take_steps(p, next_step);
    } else {
      ask(std::true_type());
    }
    if constexpr (!kBoth) cp_async_commit();
    typename Rows::Chunks chunks;
    Rows::turn(k + behind_k, chunks);
    if (kBoth) {
#pragma unroll
      for (int i = 1; i < Rows::kTurns; ++i) chunks[i] = kept(chunks[i]);
    }
    const auto weigh = [&] {
      rows.weigh(chunks, work, own_bits, [&](TileMask& mask) {
        const auto& step = block.steps[block.after(kept(next_step), -1)];
        if (!is_by_query(work)) return mask.set_first(step.num_tokens);
        const Tile keys = {step.slot_begin, step.num_tokens, step.index_begin, 0};
        const int row = threadIdx.x % 32;
        RowVisibility visibility;
        visibility.load(p.intervals, block.side().slot_begin + block.first_row() + row, row < block.num_rows());
        mask.set_rows(visibility.bits(keys, hidden_bits(p.hidden, keys)));
      });
    };
    if constexpr (kBoth) {
      float total[2][2];
      if (__builtin_expect(rows.is_usual(work) && rows.weigh_usual(chunks, total), true)) {
        rows.add(total);
        rows.template accumulate<kTileBytes>(chunks);
      } else if (work) {
        weigh();
        if (work == kChecked) {
          rows.template accumulate_checked<kTileBytes>(chunks);
        } else {
          rows.template accumulate<kTileBytes>(chunks);
        }
      }
    } else {
      if (work) weigh();
      cp_async_wait<1>();
      if (!kHasRoom) {
        works = block.steps[block.after(kept(next_step), -1)].works;
        work = works & own_bits;
      }
      values_barrier();
      if (is_unusual(next.works)) {
        copy.template values<false>(next, k + own_copy());
      } else {
        copy.template values<true>(next, k + own_copy());
      }
      cp_async_commit();
      Rows::turn(v + behind_k, chunks);
      if (work == kChecked) {
        rows.template accumulate_checked<0>(chunks);
      } else if (work) {
        rows.template accumulate<0>(chunks);
      }
    }
    if constexpr (kBoth) {
      k = free;  // of the next tile
    } else {
      const uint32_t read = v;
      v = k;
      k = free;
      free = read;
    }
    works = next.works;
    next_step = block.after(next_step);
  }

  cp_async_wait_all();
  __syncthreads();  // queries may still be on their way where no key is seen
  const ForwardSide& side = block.side();
  if (side.tile < p.splits.num_partials) {
    store_partial(p, rows, side.tile, side.head, block.first_row(), block.num_rows());
  } else {
    store_rows(p, rows, side.slot_begin + block.first_row(), side.head, block.num_rows(), own_queries());
  }
}

}  // namespace lumos
