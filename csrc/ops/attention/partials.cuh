// Partial results of key splits, in the workspace: written by the forward, read by key_splits_merge.cuh.
#pragma once

#include "lumos/attention.h"

namespace lumos {

struct Partials {
  float* values;   // [partials, heads, 64, head_dim]: sum of weighted values; not written where a row sees no key
  float2* states;  // [partials, heads, 64]: row_state
  int64_t num_heads;

  __device__ explicit Partials(const lumos_attention_params& p)
      : values(static_cast<float*>(p.splits.workspace)),
        states(
            reinterpret_cast<float2*>(values + p.splits.num_partials * p.num_heads * LUMOS_TILE_TOKENS * p.head_dim)),
        num_heads(p.num_heads) {}
  // row: in its query tile
  __device__ int64_t place(int64_t partial, int64_t head, int row) const {
    return (partial * num_heads + head) * LUMOS_TILE_TOKENS + row;
  }
};

}  // namespace lumos
