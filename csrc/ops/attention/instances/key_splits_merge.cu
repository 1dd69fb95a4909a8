#include "cuda/dtype.h"
#include "cuda/status.h"
#include "ops/attention/forward_launch.h"
#include "ops/attention/key_splits_merge.cuh"

namespace lumos {

void launch_key_splits_merge(const lumos_attention_params& p) {
  if (p.splits.num_merges == 0) return;
  with_float_type("attention", p.dtype, [&](auto zero) {
    const dim3 grid(static_cast<unsigned>(p.splits.num_merges), static_cast<unsigned>(p.num_heads),
                    LUMOS_TILE_TOKENS / kMergeRows);
    const dim3 block(static_cast<unsigned>(p.head_dim / kMergeChannels), kMergeRows);
    key_splits_merge_kernel<decltype(zero)><<<grid, block, 0, static_cast<cudaStream_t>(p.stream)>>>(p);
    check_launch("attention");
  });
}

}  // namespace lumos
