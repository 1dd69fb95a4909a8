#include "cuda/device_guard.h"
#include "cuda/dtype.h"
#include "ops/linear_cross_entropy/linear_cross_entropy_backward.cuh"

extern "C" lumos_status lumos_cuda_linear_cross_entropy_backward(
    const lumos_linear_cross_entropy_backward_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    lumos::with_float_type("masked_linear_cross_entropy", p.logits.dtype, [&](auto zero) {
      using T = decltype(zero);
      if (p.logits.num_rows == 0 || p.logits.num_columns == 0) return;
      lumos::require_logits(p.logits, "logits", p.logits.data, sizeof(T));
      lumos::require_logits(p.logits, "grad_logits", p.grad_logits, sizeof(T));
      const auto [grid, block] = lumos::row_blocks(p.logits);
      const lumos::DeviceGuard guard(p.device);
      lumos::linear_cross_entropy_backward_kernel<T><<<grid, block, 0, static_cast<cudaStream_t>(p.stream)>>>(p);
      lumos::check_launch("masked_linear_cross_entropy");
    });
  });
}
