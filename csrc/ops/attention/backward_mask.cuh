// Partial tiles of the backward: what own rows see of visited columns, or are seen by; and NaN in what some do not see.
#pragma once

#include "ops/attention/backward_rows.cuh"
#include "ops/attention/backward_tile.cuh"
#include "ops/attention/tile_visibility.cuh"

namespace lumos {

// seen[i][h], bit n: own row g + 8 i of the warp (g = lane / 4) and visited column 32 h + 2 (lane % 4) + n see each
// other, for the columns that the lane holds of scores: n % 8 < 2.
template <bool kOwnsKeys>
struct OwnMask;

// Rows are queries: every lane computes the bits of one row and hands them out.
template <>
struct OwnMask<false> {
  __device__ static void seen(const lumos_attention_params& p, const Tile& own, int first_row, const Tile& keys,
                              uint32_t (&seen)[2][2]) {
    const int lane = threadIdx.x % 32, query = first_row + lane % 16;
    RowVisibility row;
    row.load(p.intervals, int64_t(own.slot_begin) + query, query < own.num_tokens);
    const uint64_t bits = row.bits(keys, hidden_bits(p.hidden, keys));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      seen[i][0] = __shfl_sync(~0u, static_cast<uint32_t>(bits), lane / 4 + 8 * i) >> lane % 4 * 2;
      seen[i][1] = __shfl_sync(~0u, static_cast<uint32_t>(bits >> 32), lane / 4 + 8 * i) >> lane % 4 * 2;
    }
  }
};

// Rows are keys: every lane computes the bits of two queries, and ballots turn them round.
template <>
struct OwnMask<true> {
  __device__ static void seen(const lumos_attention_params& p, const Tile& own, int first_row, const Tile& queries,
                              uint32_t (&seen)[2][2]) {
    const int lane = threadIdx.x % 32;
    const uint64_t hidden = hidden_bits(p.hidden, own);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = lane + 32 * half;
      RowVisibility row;
      row.load(p.intervals, int64_t(queries.slot_begin) + query, query < queries.num_tokens);
      const auto bits = static_cast<uint32_t>(row.bits(own, hidden) >> first_row);
#pragma unroll
      for (int key = 0; key < 16; ++key) {
        const uint32_t by = __ballot_sync(~0u, bits >> key & 1);
        if (key % 8 == lane / 4) seen[key / 8][half] = by >> lane % 4 * 2;
      }
    }
  }
};

// 0 times NaN is NaN: a visited row with numbers that are not finite must not meet p = 0 or ds = 0 of own rows that do
// not see it. It becomes zeros, and what makes p or ds of the others NaN: the terms of a query, or v of a key.
// Each thread works on what it has copied itself, which must have arrived.
template <class T, int kHeadDim, bool kOwnsKeys>
__device__ inline void isolate_rows(unsigned char* visited0, unsigned char* visited1, unsigned char* terms) {
  using Rows = BackwardTile<T, kHeadDim>;
  Rows::for_own_rows([&](int row, int offset) {
    bool broken = false;
#pragma unroll
    for (int j = 0; j < Rows::kVectors; ++j) {
      const int place = offset + j * Rows::kLanes * 16;
      broken |= any_not_finite<T>(*reinterpret_cast<const uint4*>(visited0 + place));
      if (kOwnsKeys) broken |= any_not_finite<T>(*reinterpret_cast<const uint4*>(visited1 + place));
    }
    const uint32_t lanes_of_row = ((1u << Rows::kLanes) - 1) << (threadIdx.x % 32 - Rows::own_lane());
    if (!(__ballot_sync(~0u, broken) & lanes_of_row)) return;
#pragma unroll
    for (int j = 0; j < Rows::kVectors; ++j) {
      const int place = offset + j * Rows::kLanes * 16;
      *reinterpret_cast<uint4*>(visited0 + place) = uint4{};
      if (kOwnsKeys) *reinterpret_cast<uint4*>(visited1 + place) = uint4{};
    }
    if (Rows::own_lane()) return;
    if (kOwnsKeys) {
      reinterpret_cast<RowTerms*>(terms)[row].inverse_sum = __uint_as_float(0x7fffffffu);
    } else {
      *reinterpret_cast<uint32_t*>(visited1 + offset) = 0x7fff7fffu;
    }
  });
}

}  // namespace lumos
