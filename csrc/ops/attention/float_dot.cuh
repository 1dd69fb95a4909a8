// The dot product of the attention in fp32: the same bits in the forward and in the backward, which relies on it.
#pragma once

namespace lumos {

// Four chains side by side, new ones every so many channels: faster, and nearer than a single chain.
constexpr int kChainChannels = 64;

__device__ inline float4 fma4(float4 x, float4 y, float4 sum) {
  return {fmaf(x.x, y.x, sum.x), fmaf(x.y, y.y, sum.y), fmaf(x.z, y.z, sum.z), fmaf(x.w, y.w, sum.w)};
}

__device__ inline float sum4(float4 chains) { return (chains.x + chains.y) + (chains.z + chains.w); }

// a, b: [head_dim], aligned to 16 bytes; head_dim is a multiple of 4
__device__ inline float dot(const float* a, const float* b, int head_dim) {
  float sum = 0.0f;
  for (int i = 0; i < head_dim;) {
    float4 chains{};
    const int end = min(i + kChainChannels, head_dim);
#pragma unroll 2
    for (; i < end; i += 4)
      chains = fma4(*reinterpret_cast<const float4*>(a + i), *reinterpret_cast<const float4*>(b + i), chains);
    sum += sum4(chains);
  }
  return sum;
}

}  // namespace lumos
