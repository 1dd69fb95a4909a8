#include "cuda/status.h"
#include "ops/attention/backward_float.cuh"
#include "ops/attention/backward_launch.h"

namespace lumos {
namespace {

template <bool kOwnsKeys>
void launch_pass(const lumos_attention_backward_params& b, const RowTerms* terms, cudaStream_t stream) {
  auto* const kernel = attention_backward_float_kernel<kOwnsKeys>;
  const auto& p = b.forward;
  const int bytes = FloatMemory{static_cast<int>(p.head_dim)}.bytes();
  check_cuda("shared memory of block_attention_backward",
             cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const dim3 grid(static_cast<unsigned>(2 * p.query_tiles.num_tiles),
                  static_cast<unsigned>(kOwnsKeys ? p.num_kv_heads : p.num_heads));
  kernel<<<grid, kFloatThreads, bytes, stream>>>(b, terms);
  check_launch("block_attention_backward");
}

}  // namespace

void launch_backward_fp32(const lumos_attention_backward_params& b, const RowTerms* terms, cudaStream_t stream) {
  launch_pass<true>(b, terms, stream);
  launch_pass<false>(b, terms, stream);
}

}  // namespace lumos
