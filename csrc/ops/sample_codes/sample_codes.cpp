#include "lumos/sample_codes.h"

#include <limits>

#include "cpu/error.h"
#include "cpu/thread_pool.h"
#include "ops/sample_codes/sample_codes_kernel.h"

extern "C" lumos_status lumos_cpu_sample_codes(const lumos_sample_codes_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    if (p.dtype != LUMOS_FLOAT32 && p.dtype != LUMOS_BFLOAT16) {
      throw lumos::Error(LUMOS_UNSUPPORTED_TYPE, "sample_codes takes float32 and bfloat16");
    }
    const int64_t num_rows = p.num_samples * p.num_rows;
    if (num_rows == 0) return;
    lumos::require(p.num_classes > 0, "there are no classes to choose from");
    lumos::require(p.given || p.uniforms || p.temperature == 0.0f,
                   "temperature is %g; give codes or uniforms, or make it 0", static_cast<double>(p.temperature));
    for (int64_t row = 0; p.given && row < num_rows; ++row) {
      lumos::require(p.known[row] || (p.given[row] >= 0 && p.given[row] < p.num_classes),
                     "code %lld of row %lld is outside 0..%lld", static_cast<long long>(p.given[row]),
                     static_cast<long long>(row), static_cast<long long>(p.num_classes - 1));
    }
    const int64_t num_blocks = (p.num_classes + lumos::kBlockClasses - 1) / lumos::kBlockClasses;
    auto* kernel = LUMOS_SELECT_KERNEL(sample_codes_row);
    lumos::parallel_for(num_rows, p.num_threads, [&](int64_t row) {
      if (p.known[row]) {
        p.codes[row] = 0;
        p.confidence[row] = std::numeric_limits<float>::max();
      } else {
        void* scratch = lumos::thread_scratch(num_blocks * lumos::kBlockClasses * sizeof(float));
        kernel(p, row, static_cast<float*>(scratch));
      }
    });
  });
}
