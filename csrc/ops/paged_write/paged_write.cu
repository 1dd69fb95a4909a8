#include <type_traits>

#include "cuda/alignment.h"
#include "cuda/device_guard.h"
#include "cuda/dtype.h"
#include "ops/paged_write/paged_write.cuh"

extern "C" lumos_status lumos_cuda_paged_write(const lumos_paged_write_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    lumos::with_float_type("paged_write", p.dtype, [&](auto zero) {
      using T = std::conditional_t<sizeof(zero) == 4, uint32_t, uint16_t>;
      if (p.num_tokens == 0 || p.num_kv_heads == 0 || p.head_dim == 0) return;
      constexpr int64_t kBytes = sizeof(T);
      const int64_t head_bytes = p.head_dim * kBytes;
      lumos::require_aligned("paged_write", "k_pages", p.k_pages, p.num_kv_heads * head_bytes, head_bytes);
      lumos::require_aligned("paged_write", "v_pages", p.v_pages, p.num_kv_heads * head_bytes, head_bytes);
      lumos::require_aligned("paged_write", "k", p.k, p.k_stride_token * kBytes, p.k_stride_head * kBytes);
      lumos::require_aligned("paged_write", "v", p.v, p.v_stride_token * kBytes, p.v_stride_head * kBytes);
      const auto [grid, block] =
          lumos::token_blocks("paged_write", p.num_tokens, p.num_kv_heads, p.head_dim / lumos::kVectorSize<T>);
      const lumos::DeviceGuard guard(p.device);
      lumos::paged_write_kernel<T><<<grid, block, 0, static_cast<cudaStream_t>(p.stream)>>>(p);
      lumos::check_launch("paged_write");
    });
  });
}
