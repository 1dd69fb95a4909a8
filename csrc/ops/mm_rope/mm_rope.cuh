// Rotation of [tokens, heads, head_dim]: see docs/kernels/mm_rope.md.
#pragma once

#include "cuda/sincos.cuh"
#include "cuda/token_blocks.h"
#include "cuda/vector.cuh"
#include "lumos/mm_rope.h"
#include "ops/mm_rope/mm_rope_axis.h"

namespace lumos {

// Blocks of token_blocks(), whose vectors are those of half a head: a thread turns each together with its partner in
// the other half.
template <class T>
__global__ void __launch_bounds__(kBlockThreads) mm_rope_kernel(const lumos_mm_rope_params p) {
  constexpr int kSize = kVectorSize<T>;
  __shared__ float places[3 * kBlockThreads];
  // Rows apart by more than their length, so that neighbours in a row and in a column lie in different banks.
  __shared__ float frequencies[kSize][kBlockVectors + 32 / kSize];
  __shared__ float cosines[kSize][kBlockThreads], sines[kSize][kBlockThreads];

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

  const int column = threadIdx.y * blockDim.x + threadIdx.x;  // of the block's cosines and sines
  const int thread = threadIdx.z * blockDim.x * blockDim.y + column, threads = blockDim.x * blockDim.y * blockDim.z;
  for (int i = thread; i < 3 * blockDim.y; i += threads) {
    const int64_t place = 3 * first_token + i;
    if (place < 3 * p.num_tokens) places[i] = static_cast<float>(p.positions[place]);
  }
  for (int i = thread; i < blockDim.x * kSize; i += threads) {
    if (first_channel + i < half) frequencies[i % kSize][i / kSize] = p.inv_freq[first_channel + i];
  }
  __syncthreads();
  if (works) {
    const float direction = p.inverse ? -1.0f : 1.0f;
    for (int i = threadIdx.z; i < kSize; i += blockDim.z) {
      const int axis = lumos_rope_axis(static_cast<int>(channel) + i);
      float sine, cosine;
      sine_and_cosine(places[3 * threadIdx.y + axis] * frequencies[i][threadIdx.x] * direction, &sine, &cosine);
      cosines[i][column] = p.parity ? rounded_to<T>(cosine) : cosine;
      sines[i][column] = p.parity ? rounded_to<T>(sine) : sine;
    }
  }
  __syncthreads();
  if (!works) return;

  float cosine[kSize], sine[kSize];
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    cosine[i] = cosines[i][column];
    sine[i] = sines[i][column];
  }
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
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float turned = fmaf(a[i], cosine[i], -(b[i] * sine[i]));
      b[i] = fmaf(b[i], cosine[i], a[i] * sine[i]);
      a[i] = turned;
    }
    store_vector(out, from_floats<T>(a));
    store_vector(out + half, from_floats<T>(b));
    out += blockDim.z * p.out_stride_head;
  }
}

}  // namespace lumos
