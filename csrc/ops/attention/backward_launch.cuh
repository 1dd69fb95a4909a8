// What instances of the tensor-core backward consist of.
#pragma once

#include "cuda/status.h"
#include "ops/attention/backward.cuh"
#include "ops/attention/backward_launch.h"

namespace lumos {

template <class T, int kHeadDim, bool kOwnsKeys>
void launch_backward_pass(const lumos_attention_backward_params& b, const RowTerms* terms, cudaStream_t stream) {
  auto* const kernel = attention_backward_kernel<T, kHeadDim, kOwnsKeys>;
  constexpr int kBytes = BackwardMemory<T, kHeadDim>::bytes(kOwnsKeys);
  check_cuda("shared memory of block_attention_backward",
             cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const auto& p = b.forward;
  const dim3 grid(static_cast<unsigned>(p.query_tiles.num_tiles),
                  static_cast<unsigned>(kOwnsKeys ? p.num_kv_heads : p.num_heads));
  kernel<<<grid, kBackwardThreads, kBytes, stream>>>(b, terms, base2_scale(p));
  check_launch("block_attention_backward");
}

template <class T, int kHeadDim>
void launch_backward(const lumos_attention_backward_params& b, const RowTerms* terms, cudaStream_t stream) {
  launch_backward_pass<T, kHeadDim, true>(b, terms, stream);
  launch_backward_pass<T, kHeadDim, false>(b, terms, stream);
}

}  // namespace lumos
