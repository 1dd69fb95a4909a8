#include "lumos/tube_mask.h"

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "cpu/error.h"
#include "cpu/thread_pool.h"

namespace {

void check(const lumos_tube_mask_params& p) {
  lumos::require(p.num_ranks <= INT32_MAX, "tube_mask: there are %lld ranks; allowed: up to 2^31 - 1",
                 static_cast<long long>(p.num_ranks));
  lumos::require(p.starts[0] == 0 && p.starts[p.num_draws] == p.num_ranks,
                 "tube_mask: starts must run from 0 to the number of ranks");
  for (int64_t draw = 0; draw < p.num_draws; ++draw) {
    lumos::require(p.starts[draw] <= p.starts[draw + 1], "tube_mask: starts must not decrease");
  }
  for (int64_t frame = 0; frame < p.num_frames; ++frame) {
    const int64_t* span = p.spans + 3 * frame;
    lumos::require(span[1] >= 0 && span[0] >= 0 && span[0] <= p.num_tokens - span[1] && span[2] >= 0 &&
                       span[2] <= p.num_ranks - span[1],
                   "tube_mask: spans[%lld] reaches outside the tokens or the ranks", static_cast<long long>(frame));
  }
}

}  // namespace

extern "C" lumos_status lumos_cpu_tube_mask(const lumos_tube_mask_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    check(p);
    lumos::parallel_for(p.num_draws, p.num_threads, [&](int64_t draw) {
      const float* uniforms = p.rank_uniforms + p.starts[draw];
      int32_t* begin = p.order + p.starts[draw];
      int32_t* end = p.order + p.starts[draw + 1];
      std::iota(begin, end, 0);
      // The tie goes by position, which makes the order total and stable without a buffer.
      std::sort(begin, end, [uniforms](int32_t a, int32_t b) {
        return uniforms[a] < uniforms[b] || (uniforms[a] == uniforms[b] && a < b);
      });
    });
    std::copy(p.tokens, p.tokens + p.num_tokens, p.out);
    std::fill(p.mask, p.mask + p.num_tokens, uint8_t{0});
    for (int64_t frame = 0; frame < p.num_frames; ++frame) {
      const int64_t* span = p.spans + 3 * frame;
      for (int64_t i = 0; i < span[1]; ++i) {
        if (p.order[span[2] + i] >= p.num_masked[frame]) continue;
        p.out[span[0] + i] = p.mask_id;
        p.mask[span[0] + i] = 1;
      }
    }
  });
}
