#include "lumos/linear_cross_entropy.h"

#include <algorithm>

#include "cpu/error.h"
#include "cpu/thread_pool.h"
#include "ops/linear_cross_entropy/linear_cross_entropy_kernel.h"

namespace lumos {
namespace {

void check(const lumos_logits_block& logits) {
  if (logits.dtype != LUMOS_FLOAT32 && logits.dtype != LUMOS_BFLOAT16) {
    throw Error(LUMOS_UNSUPPORTED_TYPE, "masked_linear_cross_entropy takes float32 and bfloat16");
  }
  require(logits.column_begin >= 0 && logits.column_begin % LUMOS_LOSS_TILE_COLUMNS == 0,
          "column_begin is %lld; it must be a multiple of %d", static_cast<long long>(logits.column_begin),
          LUMOS_LOSS_TILE_COLUMNS);
}

// Chunks of about 64 Ki logits: large enough to pay for handing them out, small enough to share the work evenly.
template <class Params>
void for_rows(const Params& p, void (*kernel)(const Params&, int64_t, int64_t)) {
  const int64_t num_rows = p.logits.num_rows;
  const int64_t chunk_rows = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, p.logits.num_columns));
  parallel_for((num_rows + chunk_rows - 1) / chunk_rows, p.num_threads, [&](int64_t chunk) {
    const int64_t begin = chunk * chunk_rows;
    kernel(p, begin, std::min(begin + chunk_rows, num_rows));
  });
}

}  // namespace
}  // namespace lumos

extern "C" lumos_status lumos_cpu_linear_cross_entropy(const lumos_linear_cross_entropy_params* params) {
  return lumos::guarded([&] {
    lumos::check(params->logits);
    lumos::for_rows(*params, LUMOS_SELECT_KERNEL(linear_cross_entropy_rows));
  });
}

extern "C" lumos_status lumos_cpu_linear_cross_entropy_backward(
    const lumos_linear_cross_entropy_backward_params* params) {
  return lumos::guarded([&] {
    lumos::check(params->logits);
    lumos::for_rows(*params, LUMOS_SELECT_KERNEL(linear_cross_entropy_backward_rows));
  });
}
