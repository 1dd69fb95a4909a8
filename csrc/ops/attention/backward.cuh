// Attention backward on tensor cores, 16-bit types: see docs/kernels/block_attention_backward.md.
//
//   p = 2^(s + minus_maximum) inverse_sum, ds = p (grad_out v' - delta), s = q k' scale log2(e)
//   a block that owns a key tile, over the query tiles that see it:   grad_v = p' grad_out, grad_k = scale ds' q
//   a block that owns a query tile, over the key tiles that it sees:  grad_q = scale ds k
//
// Both are one kernel: "own" and "visited" stand for k, v and q, grad_out or the reverse. With rows of scores being own
// tokens, p and ds leave one product in the registers in which the next one takes them. Each block owns what it writes
// and adds in the order of its schedule, so that bits depend on nothing else.
#pragma once

#include "ops/attention/backward_mask.cuh"
#include "ops/attention/backward_product.cuh"
#include "ops/attention/backward_rows.cuh"
#include "ops/attention/backward_sides.cuh"
#include "ops/attention/tile_walk.cuh"

namespace lumos {

// Shared memory: five tiles, and the terms of the visited queries where keys are owned.
template <class T, int kHeadDim>
struct BackwardMemory {
  static constexpr int kTile = BackwardTile<T, kHeadDim>::kBytes;
  static constexpr int kOwn0 = 0, kOwn1 = kTile;  // k, v or q, grad_out
  static constexpr int kVisited0 = 2 * kTile;     // q or k, twice: one arrives while the other is worked on
  static constexpr int kVisited1 = 4 * kTile;     // grad_out or v
  static constexpr int kTerms = 5 * kTile;
  static constexpr int bytes(bool owns_keys) {
    return kTerms + (owns_keys ? int(sizeof(RowTerms)) * LUMOS_TILE_TOKENS : 0);
  }
};

__device__ inline float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

template <class T, int kHeadDim>
__device__ inline void copy_tile(uint32_t shared, const lumos_tokens& tokens, const Tile& tile, int64_t head) {
  const T* first =
      static_cast<const T*>(tokens.data) + tile.slot_begin * tokens.stride_token + head * tokens.stride_head;
  BackwardTile<T, kHeadDim>::copy(shared, first, tokens.stride_token, tile.num_tokens);
}

// weights = p, slopes = ds of 16 own rows and 64 visited columns, rounded and paired for the next products.
// terms: of the two own rows of the lane, or of the visited columns (shared memory)
template <class T, bool kOwnsKeys, bool kMasked>
__device__ inline void softmax_slope(const float (&scores)[2 * kTileSquares][4],
                                     const float (&products)[2 * kTileSquares][4], const RowTerms* terms, float factor,
                                     const uint32_t (&seen)[2][2], uint32_t (&weights)[kTileSquares][4],
                                     uint32_t (&slopes)[kTileSquares][4]) {
#pragma unroll
  for (int j = 0; j < 2 * kTileSquares; ++j) {
    const RowTerms* columns = terms + 8 * j + threadIdx.x % 4 * 2;
    const RowTerms pair[2] = {kOwnsKeys ? columns[0] : terms[0], kOwnsKeys ? columns[1] : terms[1]};
    float p[4], ds[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const RowTerms& row = pair[kOwnsKeys ? i % 2 : i / 2];
      p[i] = exp2_approximate(fmaf(scores[j][i], factor, row.minus_maximum)) * row.inverse_sum;
      ds[i] = p[i] * (products[j][i] - row.delta);
      if (kMasked) {
        const bool sees = seen[i / 2][j / 4] >> (j % 4 * 8 + i % 2) & 1;
        p[i] = sees ? p[i] : 0.0f;
        ds[i] = sees ? ds[i] : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      weights[j / 2][j % 2 * 2 + i] = pack_pair<T>(p[2 * i], p[2 * i + 1]);
      slopes[j / 2][j % 2 * 2 + i] = pack_pair<T>(ds[2 * i], ds[2 * i + 1]);
    }
  }
}

// Blocks that registers and shared memory of a multiprocessor have room for.
template <int kHeadDim, bool kOwnsKeys>
constexpr int kBackwardBlocks = !kOwnsKeys && kHeadDim <= 64 ? 3 : 2;

// Block (i, j): tile i (queries: from the last, which see the most) of head j of its side. terms: [heads, tokens].
// factor: scale log2(e), that of the forward to the bit
template <class T, int kHeadDim, bool kOwnsKeys>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks<kHeadDim, kOwnsKeys>)
    attention_backward_kernel(const lumos_attention_backward_params b, const RowTerms* terms, const float factor) {
  using Memory = BackwardMemory<T, kHeadDim>;
  using Rows = BackwardTile<T, kHeadDim>;
  using Warp = Product<T, kHeadDim>;
  constexpr int kSquares = Warp::kSquares;
  constexpr bool kKeepsOwn = !kOwnsKeys || kHeadDim <= 64;  // fragments of own tiles stay in registers
  extern __shared__ __align__(128) unsigned char shared[];

  const auto& p = b.forward;
  const BackwardSides<kOwnsKeys> sides(b);
  const int own_index = kOwnsKeys ? blockIdx.x : gridDim.x - 1 - blockIdx.x, own_head = blockIdx.y;
  const int group = static_cast<int>(p.num_heads / p.num_kv_heads);
  const int lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * 16;  // of the warp in the own tile
  const Tile own = load_tile(p.query_tiles, own_index);
  const uint32_t memory = shared_address(shared);

  TileWalk<1> walk;
  const lumos_tile_runs& runs = kOwnsKeys ? b.columns : p.rows;
  walk.cursors[0].start(runs.runs, runs.offsets[own_index], runs.offsets[own_index + 1]);
  walk.start();
  int head = kOwnsKeys ? own_head * group : own_head / group;  // of the next visited tile
  const int end_head = kOwnsKeys ? head + group : head + 1;
  Tile next{};
  const auto copy_visited0 = [&](int buffer) {
    copy_tile<T, kHeadDim>(memory + Memory::kVisited0 + buffer * Memory::kTile, sides.visited0, next, head);
  };
  const auto copy_visited1 = [&] {
    copy_tile<T, kHeadDim>(memory + Memory::kVisited1, sides.visited1, next, head);
    if (kOwnsKeys && Rows::own_lane() == 0) {
      constexpr int kBytes = sizeof(RowTerms);
      const uint64_t first =
          __cvta_generic_to_global(terms + head * p.num_query_tokens + next.slot_begin + Rows::own_row());
      unrolled<LUMOS_TILE_TOKENS / Rows::kRowStep>([&](auto i) {
        constexpr int kDistance = i.value * Rows::kRowStep * kBytes;
        cp_async_at<Memory::kTerms + kDistance, kDistance>(
            memory + Rows::own_row() * kBytes, first,
            Rows::own_row() + i.value * Rows::kRowStep < next.num_tokens ? 16 : 0);
      });
    }
  };

  float sums0[2 * kSquares][4] = {}, sums1[kOwnsKeys ? 2 * kSquares : 1][4] = {};  // grad_k or grad_q; grad_v
  uint32_t fragments[2][kKeepsOwn ? kSquares : 1][4];
  const uint32_t own_lane0 = Warp::lane_address(memory + Memory::kOwn0, first_row),
                 own_lane1 = own_lane0 + Memory::kTile;
  RowTerms own_terms[2] = {};
  if (!kOwnsKeys) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first_row + lane / 4 + 8 * i;
      if (row < own.num_tokens) own_terms[i] = terms[own_head * p.num_query_tokens + own.slot_begin + row];
    }
  }

  if (!walk.done()) {
    next = load_tile(p.query_tiles, walk.tile);
    copy_tile<T, kHeadDim>(memory + Memory::kOwn0, sides.own0, own, own_head);
    copy_tile<T, kHeadDim>(memory + Memory::kOwn1, sides.own1, own, own_head);
    copy_visited0(0);
    copy_visited1();
    if (kKeepsOwn) {
      cp_async_wait_all();
      __syncthreads();
      unrolled<kKeepsOwn ? kSquares : 0>([&](auto i) {
        Warp::template load<i.value>(fragments[0][i.value], own_lane0);
        Warp::template load<i.value>(fragments[1][i.value], own_lane1);
      });
    }
  }

  for (int buffer = 0; !walk.done(); buffer ^= 1) {
    const Tile visited = next;
    const bool partial = walk.states[0] == kPartial;
    // Columns behind the end of the tile: queries have p = 0 there by their terms, keys must be masked.
    const bool masked = partial || (!kOwnsKeys && visited.num_tokens < LUMOS_TILE_TOKENS);
    if (++head == end_head) {
      head = kOwnsKeys ? own_head * group : own_head / group;
      walk.next();
      if (!walk.done()) next = load_tile(p.query_tiles, walk.tile);
    }
    const int visited0 = Memory::kVisited0 + buffer * Memory::kTile;

    cp_async_wait_all();
    if (partial)
      isolate_rows<T, kHeadDim, kOwnsKeys>(shared + visited0, shared + Memory::kVisited1, shared + Memory::kTerms);
    __syncthreads();  // the visited tile is there for all; nobody reads the other buffer any more
    if (!walk.done()) copy_visited0(buffer ^ 1);

    const uint32_t lane0 = Warp::lane_address(memory + visited0, 0);
    const uint32_t lane1 = Warp::lane_address(memory + Memory::kVisited1, 0);
    float scores[2 * kTileSquares][4], products[2 * kTileSquares][4];
    const auto load_own = [&](auto i, int which, uint32_t address, uint32_t (&a)[4]) {
      if constexpr (kKeepsOwn) {
#pragma unroll
        for (int j = 0; j < 4; ++j) a[j] = fragments[which][i.value][j];
      } else {
        Warp::template load<i.value>(a, address);
      }
    };
    Warp::scores([&](auto i, uint32_t (&a)[4]) { load_own(i, 0, own_lane0, a); }, lane0, scores);
    Warp::scores([&](auto i, uint32_t (&a)[4]) { load_own(i, 1, own_lane1, a); }, lane1, products);

    uint32_t weights[kTileSquares][4], slopes[kTileSquares][4], seen[2][2] = {};
    const RowTerms* visited_terms = kOwnsKeys ? reinterpret_cast<const RowTerms*>(shared + Memory::kTerms) : own_terms;
    if (masked) {
      OwnMask<kOwnsKeys>::seen(p, own, first_row, visited, seen);
      softmax_slope<T, kOwnsKeys, true>(scores, products, visited_terms, factor, seen, weights, slopes);
    } else {
      softmax_slope<T, kOwnsKeys, false>(scores, products, visited_terms, factor, seen, weights, slopes);
    }
    if constexpr (kOwnsKeys) Warp::accumulate(weights, lane1, sums1);
    __syncthreads();  // nobody reads the second visited tile and its terms any more
    if (!walk.done()) copy_visited1();
    Warp::accumulate(slopes, lane0, sums0);
  }

  const int64_t num_heads = gridDim.y, stride = num_heads * kHeadDim;
  const int64_t first = ((own.slot_begin + first_row) * num_heads + own_head) * kHeadDim;
  T* const grad0 = static_cast<T*>(kOwnsKeys ? b.grad_k : b.grad_q) + first;
  Warp::store(sums0, p.scale, shared + Memory::kOwn0, first_row, grad0, stride, own.num_tokens - first_row);
  if constexpr (kOwnsKeys) {
    T* const grad1 = static_cast<T*>(b.grad_v) + first;
    Warp::store(sums1, 1.0f, shared + Memory::kOwn1, first_row, grad1, stride, own.num_tokens - first_row);
  }
}

}  // namespace lumos
