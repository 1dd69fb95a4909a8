#include "lumos/remask.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/error.h"
#include "cpu/thread_pool.h"

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool below(float a, float b) { return a < b || (std::isnan(b) && !std::isnan(a)); }

void remask_sample(const lumos_remask_params& p, int64_t sample, float* scores) {
  const int64_t first = sample * p.num_rows;
  float* ordered = scores + p.num_rows;
  int64_t num_unknown = 0;
  for (int64_t row = 0; row < p.num_rows; ++row) {
    const int64_t token = first + row;
    scores[row] = kInfinity;
    if (p.known[token]) continue;
    ++num_unknown;
    scores[row] = std::log(p.confidence[token] < 1e-20f ? 1e-20f : p.confidence[token]);
    if (p.temperature > 0.0f) scores[row] += p.temperature * p.gumbel[token];
  }
  const int64_t asked = p.num_masked ? p.num_masked[sample] : p.num_masked_of_all;
  const int64_t count = std::max<int64_t>(1, std::min(asked, num_unknown - 1));
  float cutoff = kInfinity;
  if (count < p.num_rows) {
    std::copy(scores, scores + p.num_rows, ordered);
    std::nth_element(ordered, ordered + count, ordered + p.num_rows, below);
    cutoff = ordered[count];
  }
  for (int64_t row = 0; row < p.num_rows; ++row) p.masked[first + row] = !p.known[first + row] && scores[row] < cutoff;
}

}  // namespace

extern "C" lumos_status lumos_cpu_remask(const lumos_remask_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    if (p.num_samples == 0 || p.num_rows == 0) return;
    lumos::require(p.gumbel || p.temperature == 0.0f, "remask: temperature is %g; give gumbel, or make it 0",
                   static_cast<double>(p.temperature));
    lumos::parallel_for(p.num_samples, p.num_threads, [&](int64_t sample) {
      remask_sample(p, sample, static_cast<float*>(lumos::thread_scratch(2 * p.num_rows * sizeof(float))));
    });
  });
}
