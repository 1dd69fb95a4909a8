// Copy of keys and values to their slots: see docs/kernels/paged_write.md.
#pragma once

#include "cuda/token_blocks.h"
#include "cuda/vector.cuh"
#include "lumos/paged_write.h"

namespace lumos {

// Blocks of token_blocks(). T: any type of the elements' size.
template <class T>
__global__ void __launch_bounds__(kBlockThreads) paged_write_kernel(const lumos_paged_write_params p) {
  __shared__ int64_t slots[kBlockThreads];
  const int64_t token = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t channel = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * kVectorSize<T>;
  const bool reads = token < p.num_tokens && channel < p.head_dim;

  // On their way while the slots are fetched. A block has no more z than there are heads.
  const T* k = static_cast<const T*>(p.k) + token * p.k_stride_token + threadIdx.z * p.k_stride_head + channel;
  const T* v = static_cast<const T*>(p.v) + token * p.v_stride_token + threadIdx.z * p.v_stride_head + channel;
  uint4 key, value;
  if (reads) {
    key = load_vector(k);
    value = load_vector(v);
  }
  if (threadIdx.x == 0 && threadIdx.z == 0 && token < p.num_tokens) slots[threadIdx.y] = p.slots[token];
  __syncthreads();
  if (!reads) return;
  const int64_t slot = slots[threadIdx.y];
  if (slot < 0 || slot >= p.num_slots) return;

  int64_t place = (slot * p.num_kv_heads + threadIdx.z) * p.head_dim + channel;
  for (int64_t head = threadIdx.z; head < p.num_kv_heads; head += blockDim.z) {
    store_vector(static_cast<T*>(p.k_pages) + place, key);
    store_vector(static_cast<T*>(p.v_pages) + place, value);
    if (head + blockDim.z < p.num_kv_heads) {
      key = load_vector(k += blockDim.z * p.k_stride_head);
      value = load_vector(v += blockDim.z * p.v_stride_head);
      place += blockDim.z * p.head_dim;
    }
  }
}

}  // namespace lumos
