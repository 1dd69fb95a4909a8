#include <climits>

#include "cuda/device_guard.h"
#include "ops/attention/forward_launch.h"
#include "ops/attention/paged_runs_kernel.cuh"

extern "C" lumos_status lumos_cuda_paged_attention(const lumos_attention_params* params) {
  return lumos::guarded([&] {
    lumos_attention_params p = lumos::with_split_tiles(*params);
    lumos::check_forward("paged_attention", p);
    lumos::require(p.page_table && p.page_size > 0 && p.page_size <= INT_MAX && p.num_pages <= INT_MAX,
                   "there is no page table");
    const int64_t bytes = lumos_paged_attention_workspace(p.query_tiles.num_tiles, p.key_tiles.num_tiles);
    lumos::require(p.workspace_bytes >= bytes, "the workspace has %lld bytes; it must have %lld",
                   static_cast<long long>(p.workspace_bytes), static_cast<long long>(bytes));
    if (p.query_tiles.num_tiles == 0) return;
    p.hidden = nullptr;
    const lumos::DeviceGuard guard(p.device);
    lumos::paged_runs_kernel<<<p.query_tiles.num_tiles, lumos::kPagedRunsThreads, 0,
                               static_cast<cudaStream_t>(p.stream)>>>(p);
    lumos::check_launch("paged_attention");
    lumos::select_forward<lumos::PagedKeys>("paged_attention", p);
    lumos::launch_key_splits_merge(p);
  });
}
