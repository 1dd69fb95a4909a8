#include "lumos/merge_attention.h"

#include <algorithm>

#include "cpu/error.h"
#include "cpu/thread_pool.h"
#include "ops/merge_attention/merge_attention_kernel.h"

extern "C" lumos_status lumos_cpu_merge_attention(const lumos_merge_attention_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    if (p.dtype != LUMOS_FLOAT32 && p.dtype != LUMOS_BFLOAT16) {
      throw lumos::Error(LUMOS_UNSUPPORTED_TYPE, "merge_attention takes float32 and bfloat16");
    }
    lumos::require(p.head_dim > 0 && p.head_dim % 32 == 0, "head_dim is %lld; it must be a multiple of 32",
                   static_cast<long long>(p.head_dim));
    constexpr int64_t kChunkTokens = 64;
    auto* kernel = LUMOS_SELECT_KERNEL(merge_attention_tokens);
    lumos::parallel_for((p.num_tokens + kChunkTokens - 1) / kChunkTokens, p.num_threads, [&](int64_t chunk) {
      const int64_t begin = chunk * kChunkTokens;
      kernel(p, begin, std::min(begin + kChunkTokens, p.num_tokens));
    });
  });
}
