// One sample by one block: see docs/kernels/unmask_step.md.
//
// The scores become integers of the same order. The cut-off, number m of them, is the largest v that at most m are
// smaller than: found bit by bit from the highest, each bit by counting.
#pragma once

#include "cuda/order_key.cuh"
#include "lumos/remask.h"

namespace lumos {

constexpr int kRemaskThreads = 1024;  // at most
constexpr uint32_t kKeyOfInfinity = 0xff800000, kKeyOfKnown = kKeyOfInfinity + 1;
constexpr int kHeldKeys = 8;  // that a thread keeps in registers; it computes further ones again for each bit

// Of `count` over the block. One barrier: calls in a row take turns at `turn` 0 and 1, so that none overwrites what is
// still read.
__device__ inline int block_sum(int count, int turn) {
  __shared__ int by_warp[2][32];
  const int lane = threadIdx.x % 32;
  count = __reduce_add_sync(0xffffffff, count);
  if (lane == 0) by_warp[turn][threadIdx.x / 32] = count;
  __syncthreads();
  return __reduce_add_sync(0xffffffff, lane < blockDim.x / 32 ? by_warp[turn][lane] : 0);
}

__device__ inline uint32_t score_key(const lumos_remask_params& p, int64_t token) {
  const float confidence = p.confidence[token];
  float score = logf(confidence < 1e-20f ? 1e-20f : confidence);
  // No contraction: equal confidences and noises have equal scores on every backend.
  if (p.temperature > 0.0f) score = __fadd_rn(score, __fmul_rn(p.temperature, p.gumbel[token]));
  return p.known[token] ? kKeyOfKnown : order_key(score);
}

// The block's threads: a multiple of 32.
__global__ void __launch_bounds__(kRemaskThreads, 1) remask_kernel(const lumos_remask_params p) {
  const int64_t first = blockIdx.x * p.num_rows, threads = blockDim.x;
  uint32_t keys[kHeldKeys];
  int unknown = 0;
#pragma unroll
  for (int i = 0; i < kHeldKeys; ++i) {
    const int64_t row = threadIdx.x + i * threads;
    keys[i] = row < p.num_rows ? score_key(p, first + row) : kKeyOfNothing;
    unknown += keys[i] != kKeyOfKnown && keys[i] != kKeyOfNothing;
  }
  for (int64_t row = threadIdx.x + kHeldKeys * threads; row < p.num_rows; row += threads)
    unknown += !p.known[first + row];
  unknown = block_sum(unknown, 0);

  const int64_t asked = p.num_masked ? p.num_masked[blockIdx.x] : p.num_masked_of_all;
  const int64_t count = max(int64_t(1), min(asked, int64_t(unknown) - 1));
  uint32_t cutoff = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t candidate = cutoff | 1u << bit;
    int smaller = 0;
#pragma unroll
    for (int i = 0; i < kHeldKeys; ++i) smaller += keys[i] < candidate;
    for (int64_t row = threadIdx.x + kHeldKeys * threads; row < p.num_rows; row += threads)
      smaller += score_key(p, first + row) < candidate;
    if (block_sum(smaller, bit % 2) <= count) cutoff = candidate;
  }
  // Infinity lies behind the last score, and known rows have it; nothing lies below NaN.
  if (count >= p.num_rows || cutoff == kKeyOfKnown) cutoff = kKeyOfInfinity;
  if (cutoff >= kKeyOfNaN) cutoff = 0;

#pragma unroll
  for (int i = 0; i < kHeldKeys; ++i) {
    const int64_t row = threadIdx.x + i * threads;
    if (row < p.num_rows) p.masked[first + row] = keys[i] < cutoff;
  }
  for (int64_t row = threadIdx.x + kHeldKeys * threads; row < p.num_rows; row += threads)
    p.masked[first + row] = score_key(p, first + row) < cutoff;
}

}  // namespace lumos
