// Launchers of rms_norm, forward and backward.
#include "lumos/rms_norm.h"

#include <algorithm>
#include <vector>

#include "cpu/error.h"
#include "cpu/grouped_sums.h"
#include "cpu/thread_pool.h"
#include "ops/rms_norm/rms_norm_kernel.h"

namespace lumos {
namespace {

void check(const lumos_rms_norm_params& p) {
  if (p.dtype != LUMOS_FLOAT32 && p.dtype != LUMOS_BFLOAT16) {
    throw Error(LUMOS_UNSUPPORTED_TYPE, "rms_norm takes float32 and bfloat16");
  }
}

// Rows that share a partial sum of the weight's gradient: fixed, so that the sums do not depend on the threads.
constexpr int64_t kBlockRows = 64;
constexpr int64_t kGroupRows = 8;  // that share a partial sum in fp32

}  // namespace
}  // namespace lumos

extern "C" lumos_status lumos_cpu_rms_norm(const lumos_rms_norm_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    lumos::check(p);
    // Chunks of about 64 Ki elements: large enough to pay for handing them out, small enough to share the work evenly.
    const int64_t chunk_rows = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, p.width));
    auto* kernel = LUMOS_SELECT_KERNEL(rms_norm_rows);
    lumos::parallel_for((p.num_rows + chunk_rows - 1) / chunk_rows, p.num_threads, [&](int64_t chunk) {
      const int64_t begin = chunk * chunk_rows;
      kernel(p, begin, std::min(begin + chunk_rows, p.num_rows));
    });
  });
}

extern "C" lumos_status lumos_cpu_rms_norm_backward(const lumos_rms_norm_backward_params* params) {
  return lumos::guarded([&] {
    const auto& p = params->forward;
    lumos::check(p);
    const int64_t num_blocks = (p.num_rows + lumos::kBlockRows - 1) / lumos::kBlockRows;
    std::vector<double> sums(num_blocks * p.width);
    auto* kernel = LUMOS_SELECT_KERNEL(rms_norm_backward_rows);
    lumos::parallel_for(num_blocks, p.num_threads, [&](int64_t block) {
      const int64_t begin = block * lumos::kBlockRows, end = std::min(begin + lumos::kBlockRows, p.num_rows);
      auto* scratch = static_cast<float*>(lumos::thread_scratch(p.width * sizeof(float)));
      const auto add = [&](int64_t first, int64_t last, float* to) { kernel(*params, first, last, to); };
      lumos::add_in_groups(begin, end, lumos::kGroupRows, p.width, sums.data() + block * p.width, scratch, add);
    });
    std::vector<double> totals(p.width);
    for (int64_t block = 0; block < num_blocks; ++block) {
      for (int64_t c = 0; c < p.width; ++c) totals[c] += sums[block * p.width + c];
    }
    for (int64_t c = 0; c < p.width; ++c) params->grad_weight[c] = static_cast<float>(totals[c]);
  });
}
