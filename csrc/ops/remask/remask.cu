#include <algorithm>
#include <climits>

#include "cuda/device_guard.h"
#include "ops/remask/remask.cuh"

extern "C" lumos_status lumos_cuda_remask(const lumos_remask_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    if (p.num_samples == 0 || p.num_rows == 0) return;
    lumos::require(p.gumbel || p.temperature == 0.0f, "remask: temperature is %g; give gumbel, or make it 0",
                   static_cast<double>(p.temperature));
    lumos::require(p.num_samples <= INT_MAX && p.num_rows <= INT_MAX,
                   "remask: %lld samples of %lld rows are more than a grid holds",
                   static_cast<long long>(p.num_samples), static_cast<long long>(p.num_rows));
    // Four keys a thread: enough to pay for the barriers, few enough to use the multiprocessor.
    const int64_t warps = std::min<int64_t>((p.num_rows + 127) / 128, lumos::kRemaskThreads / 32);
    const lumos::DeviceGuard guard(p.device);
    lumos::remask_kernel<<<p.num_samples, warps * 32, 0, static_cast<cudaStream_t>(p.stream)>>>(p);
    lumos::check_launch("remask");
  });
}
