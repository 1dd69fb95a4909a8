#include "ops/qk_norm/qk_norm.cuh"

extern "C" lumos_status lumos_cuda_qk_norm_mm_rope(const lumos_qk_norm_params* params) {
  return lumos::guarded([&] { lumos::launch_qk_norm<false>("qk_norm_mm_rope", *params); });
}
