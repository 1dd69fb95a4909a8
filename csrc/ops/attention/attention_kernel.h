// Kernels of the forward of attention, per instruction set. Each call owns its outputs.
#pragma once

#include "cpu/dispatch.h"
#include "lumos/attention.h"

namespace lumos {

constexpr int64_t kTile = LUMOS_TILE_TOKENS;

// Floats of scratch that one call needs, for `tiles` tiles of `group` query heads.

// Rows of one key head: q and the accumulator; reference and sums, each lane by itself, of which no level has more than
// 16. K, V and scores of a tile.
inline int64_t forward_scratch_floats(int64_t tiles, int64_t group, int64_t head_dim) {
  return tiles * group * kTile * (2 * head_dim + 17) + kTile * (2 * head_dim + kTile);
}

constexpr int64_t kAmxMaxBlockTiles = 16, kAmxChunkTiles = 8;

// Groups of 32 rows of a query tile.
inline int64_t forward_amx_groups(int64_t heads) { return (kTile * heads + 31) / 32; }

// Bytes of scratch of attention_forward_tiles: of each row q, the accumulator, its sums and reference; packed K and V
// of a chunk and one tile; scores of two tiles, weights of four, and sums, of a group.
inline int64_t forward_amx_scratch_bytes(int64_t tiles, int64_t heads, int64_t head_dim) {
  return tiles * forward_amx_groups(heads) * (32 * (6 * head_dim + 68) + 1) +
         (2 * kAmxChunkTiles + 1) * 2 * kTile * head_dim + 32 * (16 * kTile + 64);
}

}  // namespace lumos

// Query tiles [begin, end) of the query heads that read `kv_head`: out and lse.
LUMOS_DECLARE_KERNEL(void, attention_forward,
                     (const lumos_attention_params& params, int64_t kv_head, int64_t begin, int64_t end,
                      float* scratch))

// The same in bf16 on tile registers.
LUMOS_DECLARE_AMX_KERNEL(void, attention_forward_tiles,
                         (const lumos_attention_params& params, int64_t kv_head, int64_t begin, int64_t end,
                          void* scratch))
