#include "cuda/alignment.h"
#include "cuda/device_guard.h"
#include "cuda/dtype.h"
#include "ops/merge_attention/merge_attention.cuh"

extern "C" lumos_status lumos_cuda_merge_attention(const lumos_merge_attention_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    lumos::require(p.head_dim > 0 && p.head_dim % 32 == 0, "head_dim is %lld; it must be a multiple of 32",
                   static_cast<long long>(p.head_dim));
    lumos::with_float_type("merge_attention", p.dtype, [&](auto zero) {
      using T = decltype(zero);
      const int64_t num_rows = p.num_tokens * p.num_heads;
      if (num_rows == 0) return;
      constexpr int64_t kBytes = sizeof(T);
      lumos::require_aligned("merge_attention", "out_a", p.out_a, p.out_a_stride_token * kBytes,
                             p.out_a_stride_head * kBytes);
      lumos::require_aligned("merge_attention", "out_b", p.out_b, p.out_b_stride_token * kBytes,
                             p.out_b_stride_head * kBytes);
      lumos::require_aligned("merge_attention", "out", p.out, p.num_heads * p.head_dim * kBytes, p.head_dim * kBytes);
      constexpr int64_t kRows = lumos::kThreadRows;
      const auto [grid, block] =
          lumos::token_blocks("merge_attention", (num_rows + kRows - 1) / kRows, 1, p.head_dim / lumos::kVectorSize<T>);
      const lumos::DeviceGuard guard(p.device);
      lumos::merge_attention_kernel<T><<<grid, block, 0, static_cast<cudaStream_t>(p.stream)>>>(p);
      lumos::check_launch("merge_attention");
    });
  });
}
