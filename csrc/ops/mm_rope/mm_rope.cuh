// Rotation of [tokens, heads, head_dim]: see docs/kernels/mm_rope.md.
#pragma once

#include "lumos/mm_rope.h"
#include "ops/mm_rope/rotation_table.cuh"

namespace lumos {

// Blocks of token_blocks(), whose vectors are those of half a head: a thread turns each together with its partner in
// the other half.
template <class T>
__global__ void __launch_bounds__(kBlockThreads) mm_rope_kernel(const lumos_mm_rope_params p) {
  constexpr int kSize = kVectorSize<T>;
  __shared__ RotationTable<T> table;

  const ThreadPlace place{int(threadIdx.x), int(threadIdx.y), int(threadIdx.z),
                          int(blockDim.x),  int(blockDim.y),  int(blockDim.z)};
  const int64_t half = p.head_dim / 2;
  const int64_t first_token = int64_t(blockIdx.x) * blockDim.y, token = first_token + threadIdx.y;
  const int64_t first_channel = int64_t(blockIdx.y) * blockDim.x * kSize, channel = first_channel + threadIdx.x * kSize;
  const bool works = token < p.num_tokens && channel < half;

  // On their way while the angles are computed. A block has no more z than there are heads.
  const T* x = static_cast<const T*>(p.x) + token * p.x_stride_token + threadIdx.z * p.x_stride_head + channel;
  uint4 first, second;
  if (works) {
    first = load_vector(x);
    second = load_vector(x + half);
  }

  table.fetch(place, p.positions + 3 * first_token, p.num_tokens - first_token, p.inv_freq + first_channel,
              half - first_channel);
  __syncthreads();
  if (works) table.fill(place, static_cast<int>(channel), p.inverse, p.parity);
  __syncthreads();
  if (!works) return;

  float cosine[kSize], sine[kSize];
  table.read(place, cosine, sine);
  T* out = static_cast<T*>(p.out) + token * p.out_stride_token + threadIdx.z * p.out_stride_head + channel;
  for (int64_t head = threadIdx.z; head < p.num_heads; head += blockDim.z) {
    float a[kSize], b[kSize];
    to_floats<T>(first, a);
    to_floats<T>(second, b);
    if (head + blockDim.z < p.num_heads) {
      x += blockDim.z * p.x_stride_head;
      first = load_vector(x);
      second = load_vector(x + half);
    }
    rotate(a, b, cosine, sine);
    store_vector(out, from_floats<T>(a));
    store_vector(out + half, from_floats<T>(b));
    out += blockDim.z * p.out_stride_head;
  }
}

}  // namespace lumos
