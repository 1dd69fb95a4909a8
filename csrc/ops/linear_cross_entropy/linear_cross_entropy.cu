#include "cuda/device_guard.h"
#include "cuda/dtype.h"
#include "ops/linear_cross_entropy/linear_cross_entropy.cuh"

extern "C" lumos_status lumos_cuda_linear_cross_entropy(const lumos_linear_cross_entropy_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    lumos::with_float_type("masked_linear_cross_entropy", p.logits.dtype, [&](auto zero) {
      using T = decltype(zero);
      if (p.logits.num_rows == 0) return;
      lumos::require_logits(p.logits, "logits", p.logits.data, sizeof(T));
      const dim3 block = lumos::row_blocks(p.logits).block;  // which takes the whole row
      const lumos::DeviceGuard guard(p.device);
      lumos::linear_cross_entropy_kernel<T><<<p.logits.num_rows, block, 0, static_cast<cudaStream_t>(p.stream)>>>(p);
      lumos::check_launch("masked_linear_cross_entropy");
    });
  });
}
