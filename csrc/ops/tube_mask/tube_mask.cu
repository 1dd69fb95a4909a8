#include <climits>

#include "cpu/error.h"
#include "cuda/device_guard.h"
#include "ops/tube_mask/tube_mask.cuh"

namespace {

// One thread a number.
unsigned blocks_of(int64_t numbers) {
  return static_cast<unsigned>((numbers + lumos::kTubeThreads - 1) / lumos::kTubeThreads);
}

}  // namespace

extern "C" lumos_status lumos_cuda_tube_mask(const lumos_tube_mask_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    lumos::require(p.longest_draw >= 0 && p.longest_draw <= INT_MAX - lumos::kTubeThreads,
                   "tube_mask: the longest draw has %lld ranks; allowed: 0..%d", static_cast<long long>(p.longest_draw),
                   INT_MAX - lumos::kTubeThreads);
    const int64_t num_blocks = p.num_draws * blocks_of(p.longest_draw);
    lumos::require(num_blocks <= INT_MAX && p.num_tokens / lumos::kTubeThreads < INT_MAX,
                   "tube_mask: %lld draws and %lld tokens are more than a grid holds",
                   static_cast<long long>(p.num_draws), static_cast<long long>(p.num_tokens));
    if (p.num_tokens == 0) return;
    const auto stream = static_cast<cudaStream_t>(p.stream);
    const lumos::DeviceGuard guard(p.device);
    if (num_blocks > 0) {
      lumos::tube_order_kernel<<<num_blocks, lumos::kTubeThreads, 0, stream>>>(p, blocks_of(p.longest_draw));
      lumos::check_launch("tube_mask");
    }
    lumos::tube_mask_kernel<<<blocks_of(p.num_tokens), lumos::kTubeThreads, 0, stream>>>(p);
    lumos::check_launch("tube_mask");
  });
}
