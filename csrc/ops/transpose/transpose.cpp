#include "lumos/transpose.h"

#include "cpu/error.h"
#include "cpu/thread_pool.h"
#include "ops/transpose/transpose_kernel.h"

extern "C" lumos_status lumos_cpu_transpose(const lumos_transpose_params* params) {
  return lumos::guarded([&] {
    const auto& p = *params;
    if (p.dtype != LUMOS_BFLOAT16 && p.dtype != LUMOS_FLOAT16) {
      throw lumos::Error(LUMOS_UNSUPPORTED_TYPE, "transpose takes bfloat16 and float16");
    }
    constexpr int64_t kBlock = lumos::kTransposeBlock;
    const int64_t across = (p.num_columns + kBlock - 1) / kBlock, down = (p.num_rows + kBlock - 1) / kBlock;
    auto* kernel = LUMOS_SELECT_KERNEL(transpose_block);
    lumos::parallel_for(across * down, p.num_threads,
                        [&](int64_t block) { kernel(p, block / across * kBlock, block % across * kBlock); });
  });
}
