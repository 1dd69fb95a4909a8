// Where the runs of key tiles against a cache lie: made by paged_runs_kernel.cuh, read by the forward.
#pragma once

#include "ops/attention/tile_visibility.cuh"

namespace lumos {

// In the workspace: int32 [num_query_tiles] and, for each of them, room for runs [num_key_tiles, 3].
struct PagedRuns {
  int32_t *counts, *runs;
  int64_t stride;

  __device__ explicit PagedRuns(const lumos_attention_params& p)
      : counts(static_cast<int32_t*>(p.workspace)),
        runs(counts + p.query_tiles.num_tiles),
        stride(3 * p.key_tiles.num_tiles) {}
  __device__ int32_t* of(int query_tile) const { return runs + query_tile * stride; }
};

}  // namespace lumos
