#pragma once

#include "cuda/status.h"
#include "ops/attention/forward.cuh"
#include "ops/attention/forward_launch.h"

namespace lumos {

template <class T, int kHeadDim, template <class, int> class KeyRows>
void launch_forward(const lumos_attention_params& p) {
  constexpr int kBytes = kForwardSharedBytes<kHeadDim>;
  auto* kernel = attention_forward_kernel<T, kHeadDim, KeyRows<T, kHeadDim>>;
  check_cuda("attention", cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const bool two_heads = p.num_heads / p.num_kv_heads % 2 == 0;
  const int64_t tiles = p.query_tiles.num_tiles;
  const dim3 grid(two_heads ? tiles : (tiles + 1) / 2, two_heads ? p.num_heads / 2 : p.num_heads);
  const float factor = static_cast<float>(p.scale * 1.4426950408889634);
  kernel<<<grid, kForwardThreads, kBytes, static_cast<cudaStream_t>(p.stream)>>>(p, two_heads, factor);
  check_launch("attention");
}

}  // namespace lumos
