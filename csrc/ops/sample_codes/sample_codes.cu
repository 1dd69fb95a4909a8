#include <algorithm>
#include <cfloat>
#include <climits>
#include <cmath>

#include "cuda/alignment.h"
#include "cuda/device_guard.h"
#include "cuda/dtype.h"
#include "ops/sample_codes/sample_codes.cuh"

namespace lumos {
namespace {

Reciprocal reciprocal(double temperature) {
  const double exact = 1.0 / temperature;
  float upper = static_cast<float>(std::min(exact, double(FLT_MAX)));
  if (upper > exact) upper = std::nextafterf(upper, 0.0f);
  return {upper, std::max(static_cast<float>(std::min(exact - upper, double(FLT_MAX))), FLT_MIN * upper)};
}

template <class T>
void launch(const lumos_sample_codes_params& p) {
  constexpr int64_t kBytes = sizeof(T);
  require_aligned("sample_codes", "cond", p.cond, p.cond_stride_sample * kBytes, p.cond_stride_row * kBytes);
  if (p.uncond) {
    require_aligned("sample_codes", "uncond", p.uncond, p.uncond_stride_sample * kBytes, p.uncond_stride_row * kBytes);
  }
  const int64_t warp_classes = 32 * kVectorSize<T>;
  const int64_t warps = std::min<int64_t>(kRowWarps, (p.num_classes + warp_classes - 1) / warp_classes);
  const dim3 grid(p.num_samples * p.num_rows), block(warps * 32);
  const Reciprocal temperature = reciprocal(p.temperature > 0.0f ? p.temperature : 1.0);
  const auto stream = static_cast<cudaStream_t>(p.stream);
  const DeviceGuard guard(p.device);
  if (p.uncond) {
    sample_codes_kernel<T, true><<<grid, block, 0, stream>>>(p, temperature);
  } else {
    sample_codes_kernel<T, false><<<grid, block, 0, stream>>>(p, temperature);
  }
  check_launch("sample_codes");
}

}  // namespace
}  // namespace lumos

extern "C" lumos_status lumos_cuda_sample_codes(const lumos_sample_codes_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    const int64_t num_rows = p.num_samples * p.num_rows;
    lumos::with_float_type("sample_codes", p.dtype, [&](auto zero) {
      if (num_rows == 0) return;
      lumos::require(p.num_classes > 0 && p.num_classes <= INT_MAX / 2,
                     "sample_codes: there are %lld classes to choose from; allowed: 1..%d",
                     static_cast<long long>(p.num_classes), INT_MAX / 2);
      lumos::require(p.given || p.uniforms || p.temperature == 0.0f,
                     "temperature is %g; give codes or uniforms, or make it 0", static_cast<double>(p.temperature));
      lumos::require(num_rows <= INT_MAX, "sample_codes: %lld rows are more than a grid holds",
                     static_cast<long long>(num_rows));
      lumos::launch<decltype(zero)>(p);
    });
  });
}
