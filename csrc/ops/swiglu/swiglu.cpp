// Launchers of swiglu, forward and backward.
#include "lumos/swiglu.h"

#include <algorithm>

#include "cpu/error.h"
#include "cpu/thread_pool.h"
#include "ops/swiglu/swiglu_kernel.h"

namespace lumos {
namespace {

// Chunks of about 64 Ki elements: large enough to pay for handing them out, small enough to share the work evenly.
template <class Body>
void for_rows(const lumos_swiglu_params& p, Body&& body) {
  if (p.dtype != LUMOS_FLOAT32 && p.dtype != LUMOS_BFLOAT16) {
    throw Error(LUMOS_UNSUPPORTED_TYPE, "swiglu takes float32 and bfloat16");
  }
  const int64_t chunk_rows = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, p.width));
  parallel_for((p.num_rows + chunk_rows - 1) / chunk_rows, p.num_threads, [&](int64_t chunk) {
    const int64_t begin = chunk * chunk_rows;
    body(begin, std::min(begin + chunk_rows, p.num_rows));
  });
}

}  // namespace
}  // namespace lumos

extern "C" lumos_status lumos_cpu_swiglu(const lumos_swiglu_params* params) {
  return lumos::guarded([&] {
    auto* kernel = LUMOS_SELECT_KERNEL(swiglu_rows);
    lumos::for_rows(*params, [&](int64_t begin, int64_t end) { kernel(*params, begin, end); });
  });
}

extern "C" lumos_status lumos_cpu_swiglu_backward(const lumos_swiglu_backward_params* params) {
  return lumos::guarded([&] {
    auto* kernel = LUMOS_SELECT_KERNEL(swiglu_backward_rows);
    lumos::for_rows(params->forward, [&](int64_t begin, int64_t end) { kernel(*params, begin, end); });
  });
}
