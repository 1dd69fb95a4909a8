// The largest of some logits, and the sum of their exponentials relative to it.
#pragma once

#include "ops/sample_codes/row_logits.cuh"

namespace lumos {

constexpr unsigned kWholeWarp = 0xffffffff;

struct PartialSoftmax {
  float largest;  // -INFINITY of none
  float sum;      // of exp(x - origin(largest)); NaN if an x is
};

// What exponents are taken relative to: `largest`, but for -inf, the largest of impossible classes only.
__device__ inline float origin(float largest) { return largest == -INFINITY ? 0.0f : largest; }

// exp(x - origin), 0 below 2^-126.
__device__ inline float exponential(float x, float origin) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"((x - origin) * 1.44269504088896340736f));
  return result;
}

template <int kCount>
__device__ inline void accumulate(const float (&x)[kCount], PartialSoftmax* partial) {
  float largest = partial->largest;
#pragma unroll
  for (int i = 0; i < kCount; ++i) largest = fmaxf(largest, x[i]);
  const float from = origin(largest);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum += exponential(x[i], from);
  partial->sum = fmaf(partial->sum, exponential(partial->largest, from), sum);
  partial->largest = largest;
}

// Of vectors [begin, end) of a row, by one warp; the same in all of its lanes.
template <class T, bool kGuided>
__device__ inline PartialSoftmax partial_softmax(const RowLogits<T, kGuided>& logits, int begin, int end) {
  constexpr int kSize = kVectorSize<T>, kBatch = kGuided ? 2 : 4;  // four loads of a thread on their way
  const int whole = min(end, logits.num_classes / kSize);
  PartialSoftmax partial = {-INFINITY, 0.0f};
  int vector = begin + threadIdx.x % 32;
  for (; vector + (kBatch - 1) * 32 < whole; vector += kBatch * 32) {
    typename RowLogits<T, kGuided>::Vector bits[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) bits[i] = logits.fetch(vector + i * 32);
    float x[kBatch * kSize];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) logits.get(bits[i], x + i * kSize);
    accumulate(x, &partial);
  }
  for (; vector < end; vector += 32) {
    float x[kSize];
    logits.get(vector, x);
    accumulate(x, &partial);
  }

  float largest = partial.largest;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, distance));
  float sum = partial.sum * exponential(partial.largest, origin(largest));
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, distance);
  return {largest, sum};
}

}  // namespace lumos
