#include "lumos/paged_write.h"

#include <algorithm>

#include "cpu/error.h"
#include "cpu/thread_pool.h"
#include "ops/paged_write/slots.h"

extern "C" lumos_status lumos_cpu_paged_write(const lumos_paged_write_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    if (p.dtype != LUMOS_FLOAT32 && p.dtype != LUMOS_BFLOAT16) {
      throw lumos::Error(LUMOS_UNSUPPORTED_TYPE, "paged_write takes float32 and bfloat16");
    }
    lumos::require_slots("paged_write", p.slots, p.num_tokens, p.num_slots);
    const int64_t size = p.dtype == LUMOS_BFLOAT16 ? 2 : 4;
    const int64_t head_bytes = p.head_dim * size, token_bytes = p.num_kv_heads * head_bytes;
    const int64_t chunk_tokens = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, token_bytes));
    lumos::parallel_for((p.num_tokens + chunk_tokens - 1) / chunk_tokens, p.num_threads, [&](int64_t chunk) {
      const int64_t end = std::min((chunk + 1) * chunk_tokens, p.num_tokens);
      for (int64_t token = chunk * chunk_tokens; token < end; ++token) {
        const int64_t target = p.slots[token] * token_bytes;
        lumos::copy_token(static_cast<const char*>(p.k) + token * p.k_stride_token * size, p.k_stride_head * size,
                          static_cast<char*>(p.k_pages) + target, p.num_kv_heads, head_bytes);
        lumos::copy_token(static_cast<const char*>(p.v) + token * p.v_stride_token * size, p.v_stride_head * size,
                          static_cast<char*>(p.v_pages) + target, p.num_kv_heads, head_bytes);
      }
    });
  });
}
