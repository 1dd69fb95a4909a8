// Masks of frames by ranks of uniform numbers: see docs/kernels/tube_mask.md.
//
// The rank of a number is how many of its draw come before it: all pairs are compared, nothing is sorted. Position
// rank(j) of a draw is masked where j is below the frame's number: the argsort of the contract is the inverse of the
// ranks, hence a first kernel that inverts and a second one that masks.
#pragma once

#include "cuda/order_key.cuh"
#include "lumos/tube_mask.h"

namespace lumos {

constexpr int kTubeThreads = 256;

__device__ inline int count_below(const uint4 (&keys)[kTubeThreads / 4], uint32_t limit) {
  int count = 0;
#pragma unroll 8
  for (int i = 0; i < kTubeThreads / 4; ++i) {
    const uint4 four = keys[i];
    count += (four.x < limit) + (four.y < limit) + (four.z < limit) + (four.w < limit);
  }
  return count;
}

// order[begin + rank of j] = j for number j of each draw. Block: kTubeThreads numbers of one draw, blocks_per_draw for
// each.
__global__ void __launch_bounds__(kTubeThreads)
    tube_order_kernel(const lumos_tube_mask_params p, const unsigned blocks_per_draw) {
  __shared__ uint4 tile[kTubeThreads / 4];
  const unsigned draw = blockIdx.x / blocks_per_draw, part = blockIdx.x % blocks_per_draw;
  const int64_t begin = p.starts[draw], end = p.starts[draw + 1];
  if (begin < 0 || end > p.num_ranks || begin + int64_t(part) * kTubeThreads >= end) return;
  const int size = static_cast<int>(end - begin), own = part * kTubeThreads + threadIdx.x;
  const float* uniforms = p.rank_uniforms + begin;

  const uint32_t key = own < size ? order_key(uniforms[own]) : kKeyOfNothing;
  int rank = 0;
  for (unsigned other = 0; other * kTubeThreads < size; ++other) {
    const int mine = other * kTubeThreads + threadIdx.x;
    __syncthreads();
    reinterpret_cast<uint32_t*>(tile)[threadIdx.x] = mine < size ? order_key(uniforms[mine]) : kKeyOfNothing;
    __syncthreads();
    // Equal numbers go by position: those in front count, that is all below the next key, those behind do not.
    if (other != part) {
      rank += count_below(tile, key + (other < part));
    } else {
      const uint32_t* keys = reinterpret_cast<uint32_t*>(tile);
#pragma unroll 8
      for (unsigned i = 0; i < kTubeThreads; ++i) rank += keys[i] < key + (i < threadIdx.x);
    }
  }
  if (own < size) p.order[begin + rank] = own;
}

// The last frame whose content begins at or before `token`; -1 if there is none.
__device__ inline int64_t frame_before(const lumos_tube_mask_params& p, int64_t token) {
  int64_t low = 0, high = p.num_frames;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (p.spans[3 * middle] <= token) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low - 1;
}

// One thread a token.
__global__ void __launch_bounds__(kTubeThreads) tube_mask_kernel(const lumos_tube_mask_params p) {
  const int64_t token = int64_t(blockIdx.x) * kTubeThreads + threadIdx.x;
  if (token >= p.num_tokens) return;
  const int64_t id = p.tokens[token], frame = frame_before(p, token);
  bool masked = false;
  if (frame >= 0) {
    const int64_t* span = p.spans + 3 * frame;
    const int64_t in_frame = token - span[0], place = span[2] + in_frame;
    if (in_frame < span[1] && place >= 0 && place < p.num_ranks) masked = p.order[place] < p.num_masked[frame];
  }
  p.out[token] = masked ? p.mask_id : id;
  p.mask[token] = masked;
}

}  // namespace lumos
