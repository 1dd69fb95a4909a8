#include "cuda/alignment.h"
#include "cuda/device_guard.h"
#include "cuda/dtype.h"
#include "ops/mm_rope/mm_rope.cuh"

extern "C" lumos_status lumos_cuda_mm_rope(const lumos_mm_rope_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    lumos::require(p.head_dim > 0 && p.head_dim % 32 == 0, "head_dim is %lld; it must be a multiple of 32",
                   static_cast<long long>(p.head_dim));
    lumos::with_float_type("mm_rope", p.dtype, [&](auto zero) {
      using T = decltype(zero);
      if (p.num_tokens == 0 || p.num_heads == 0) return;
      lumos::require(p.out != p.x || (p.out_stride_token == p.x_stride_token && p.out_stride_head == p.x_stride_head),
                     "out is x but has other strides");
      constexpr int64_t kBytes = sizeof(T);
      lumos::require_aligned("mm_rope", "x", p.x, p.x_stride_token * kBytes, p.x_stride_head * kBytes);
      lumos::require_aligned("mm_rope", "out", p.out, p.out_stride_token * kBytes, p.out_stride_head * kBytes);
      const auto [grid, block] =
          lumos::token_blocks("mm_rope", p.num_tokens, p.num_heads, p.head_dim / 2 / lumos::kVectorSize<T>);
      const lumos::DeviceGuard guard(p.device);
      lumos::mm_rope_kernel<T><<<grid, block, 0, static_cast<cudaStream_t>(p.stream)>>>(p);
      lumos::check_launch("mm_rope");
    });
  });
}
