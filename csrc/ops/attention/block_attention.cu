#include "cuda/device_guard.h"
#include "ops/attention/forward_launch.h"

extern "C" lumos_status lumos_cuda_block_attention(const lumos_attention_params* params) {
  return lumos::guarded([&] {
    const auto p = lumos::with_split_tiles(*params);
    lumos::check_forward("block_attention", p);
    if (p.query_tiles.num_tiles == 0) return;
    const lumos::DeviceGuard guard(p.device);
    lumos::select_forward<lumos::PackedKeys>("block_attention", p);
    lumos::launch_key_splits_merge(p);
  });
}
