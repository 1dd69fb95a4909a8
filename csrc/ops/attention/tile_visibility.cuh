// The mask of partial tiles: which keys of a key tile a query sees, by the rule of lumos/visibility.h.
#pragma once

#include "lumos/visibility.h"
#include "ops/attention/tile_walk.cuh"

namespace lumos {

// The five integers of a query, and the bits of what it sees. A row without a query sees nothing.
struct RowVisibility {
  int32_t intervals[LUMOS_NUM_INTERVALS];

  __device__ void load(const int32_t* all, int64_t slot, bool exists) {
#pragma unroll
    for (int i = 0; i < LUMOS_NUM_INTERVALS; ++i)
      intervals[i] = exists ? __ldg(all + slot * LUMOS_NUM_INTERVALS + i) : 0;
  }
  // Bit t: key t of the tile.
  __device__ uint64_t bits(const Tile& keys, uint64_t hidden) const {
    return lumos_visible_bits(intervals, keys.index_begin, keys.num_tokens, hidden);
  }
};

// Bit t: key t of the tile is hidden as history. The whole warp calls it. hidden: [key tokens] or NULL
__device__ inline uint64_t hidden_bits(const uint8_t* hidden, const Tile& keys) {
  if (!hidden) return 0;
  const int lane = threadIdx.x % 32;
  const uint8_t* own = hidden + keys.slot_begin;
  const uint32_t low = __ballot_sync(~0u, lane < keys.num_tokens && own[lane]);
  const uint32_t high = __ballot_sync(~0u, lane + 32 < keys.num_tokens && own[lane + 32]);
  return uint64_t(high) << 32 | low;
}

}  // namespace lumos
