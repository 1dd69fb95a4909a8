// Kernels of the forward of attention, per instruction set. Each call owns its outputs.
#pragma once

#include "cpu/dispatch.h"
#include "lumos/attention.h"

namespace lumos {

constexpr int64_t kTile = LUMOS_TILE_TOKENS;

// Floats of scratch that one call needs, for `tiles` tiles of `group` query heads.

// Rows of one key head: q and the accumulator; running maximum and sum.
inline int64_t forward_scratch_floats(int64_t tiles, int64_t group, int64_t head_dim) {
  return tiles * group * kTile * (2 * head_dim + 2) + 3 * kTile * head_dim;
}

}  // namespace lumos

// Query tiles [begin, end) of the query heads that read `kv_head`: out and lse.
LUMOS_DECLARE_KERNEL(void, attention_forward,
                     (const lumos_attention_params& params, int64_t kv_head, int64_t begin, int64_t end,
                      float* scratch))
