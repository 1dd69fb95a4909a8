#include "lumos/mm_rope.h"

#include <algorithm>

#include "cpu/error.h"
#include "cpu/thread_pool.h"
#include "ops/mm_rope/mm_rope_kernel.h"

extern "C" lumos_status lumos_cpu_mm_rope(const lumos_mm_rope_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    if (p.dtype != LUMOS_FLOAT32 && p.dtype != LUMOS_BFLOAT16) {
      throw lumos::Error(LUMOS_UNSUPPORTED_TYPE, "mm_rope takes float32 and bfloat16");
    }
    lumos::require(p.head_dim > 0 && p.head_dim % 32 == 0, "head_dim is %lld; it must be a multiple of 32",
                   static_cast<long long>(p.head_dim));
    if (p.num_tokens == 0 || p.num_heads == 0) return;
    lumos::require(p.out != p.x || (p.out_stride_token == p.x_stride_token && p.out_stride_head == p.x_stride_head),
                   "out is x but has other strides");
    // Chunks of about 64 Ki elements: large enough to pay for handing them out, small enough to share the work evenly.
    const int64_t chunk_tokens = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, p.num_heads * p.head_dim));
    auto* kernel = LUMOS_SELECT_KERNEL(mm_rope_tokens);
    lumos::parallel_for((p.num_tokens + chunk_tokens - 1) / chunk_tokens, p.num_threads, [&](int64_t chunk) {
      const int64_t begin = chunk * chunk_tokens;
      auto* table = static_cast<float*>(lumos::thread_scratch(p.head_dim * sizeof(float)));
      kernel(p, begin, std::min(begin + chunk_tokens, p.num_tokens), table);
    });
  });
}
