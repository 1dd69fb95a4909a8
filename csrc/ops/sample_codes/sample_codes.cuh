// One row of logits by one block: see docs/kernels/unmask_step.md.
//
//   1. Each warp takes the maximum and the sum of exponentials of its part of the row. Their sum is the denominator.
//   2. The part that holds the threshold (temperature 0: the first that holds the maximum) is divided among the warps
//      again, until one warp can go through what is left.
//   3. That warp looks for the vector, then for the class.
#pragma once

#include "lumos/sample_codes.h"
#include "ops/sample_codes/partial_softmax.cuh"

namespace lumos {

constexpr int kRowWarps = 8;       // at most; vectors of a row decide, so that its bits depend on nothing else
constexpr int kScanVectors = 128;  // so few are left to one warp

// What is looked for in a row, and where it must be.
struct ClassSearch {
  int begin, end;    // vectors
  float largest;     // of the row
  float total;       // sum of its exponentials
  double threshold;  // of the cumulative sum that begins at `begin`
};

// Narrows `search` to one of the parts, of `part_vectors` each. By one thread.
__device__ inline void choose_part(const PartialSoftmax* parts, int num_parts, int part_vectors, bool greedy,
                                   ClassSearch* search) {
  const float from = origin(search->largest);
  double before = 0.0, skipped = 0.0;
  int chosen = 0;
  for (int i = 0; i < num_parts; ++i) {
    if (greedy) {
      chosen = i;
      if (parts[i].largest == search->largest) break;
      continue;
    }
    const double sum = parts[i].sum * exponential(parts[i].largest, from);
    if (sum > 0.0) {  // should rounding leave the last step short, the last part that has a weight is meant
      chosen = i;
      skipped = before;
      if (before + sum > search->threshold) break;
    }
    before += sum;
  }
  search->threshold -= skipped;
  search->begin += chosen * part_vectors;
  search->end = min(search->begin + part_vectors, search->end);
}

// The class of `search`. By one warp; the same in all of its lanes.
template <class T, bool kGuided>
__device__ inline int find_class(const RowLogits<T, kGuided>& logits, const ClassSearch& search, bool greedy) {
  constexpr int kSize = kVectorSize<T>;
  const int lane = threadIdx.x % 32;
  const float from = origin(search.largest), threshold = static_cast<float>(search.threshold);
  float x[kSize];
  float so_far = 0.0f, before = 0.0f;
  int found = search.begin;
  for (int first = search.begin; first < search.end; first += 32) {
    float sum = 0.0f;
    bool holds_largest = false;
    if (first + lane < search.end) {
      logits.get(first + lane, x);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        sum += exponential(x[i], from);
        holds_largest |= x[i] == search.largest;
      }
    }
    float cumulative = sum;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const float other = __shfl_up_sync(kWholeWarp, cumulative, distance);
      if (lane >= distance) cumulative += other;
    }
    const float previous = __shfl_up_sync(kWholeWarp, cumulative, 1);
    const unsigned possible = __ballot_sync(kWholeWarp, sum > 0.0f);
    const unsigned hits =
        __ballot_sync(kWholeWarp, greedy ? holds_largest : sum > 0.0f && so_far + cumulative > threshold);
    if (hits || (possible && !greedy)) {
      const int source = hits ? __ffs(hits) - 1 : 31 - __clz(possible);
      found = first + source;
      before = so_far + __shfl_sync(kWholeWarp, lane > 0 ? previous : 0.0f, source);
    }
    if (hits) break;
    so_far += __shfl_sync(kWholeWarp, cumulative, 31);
  }

  logits.get(found, x);
  int code = found * kSize;
  bool done = false;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const float weight = exponential(x[i], from);
    if (done || (greedy ? x[i] != search.largest : !(weight > 0.0f))) continue;
    before += weight;
    code = found * kSize + i;
    done = greedy || before > threshold;
  }
  return code;
}

template <class T, bool kGuided>
__global__ void __launch_bounds__(kRowWarps * 32)
    sample_codes_kernel(const lumos_sample_codes_params p, const Reciprocal temperature) {
  __shared__ PartialSoftmax parts[kRowWarps];
  __shared__ ClassSearch search;
  const int64_t row = blockIdx.x;
  if (p.known[row]) {
    if (threadIdx.x == 0) {
      p.codes[row] = 0;
      p.confidence[row] = 3.402823466e+38f;
    }
    return;
  }
  const unsigned rows = static_cast<unsigned>(p.num_rows);  // there are no more rows than a grid has blocks
  const int64_t sample = blockIdx.x / rows, in_sample = blockIdx.x % rows;
  RowLogits<T, kGuided> logits;
  logits.cond = static_cast<const T*>(p.cond) + sample * p.cond_stride_sample + in_sample * p.cond_stride_row;
  if constexpr (kGuided) {
    logits.uncond = static_cast<const T*>(p.uncond) + sample * p.uncond_stride_sample + in_sample * p.uncond_stride_row;
  }
  logits.num_classes = static_cast<int>(p.num_classes);
  logits.guidance_scale = p.guidance_scale;
  logits.temperature = temperature;

  constexpr int kSize = kVectorSize<T>;
  const bool greedy = p.temperature == 0.0f;
  const int warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
  int begin = 0, end = (logits.num_classes + kSize - 1) / kSize;
  for (bool whole_row = true; whole_row || (!p.given && end - begin > kScanVectors); whole_row = false) {
    // Whole tiles of a warp, so that its accesses lie side by side.
    const int part_vectors = ((end - begin + num_warps - 1) / num_warps + 31) / 32 * 32;
    const int part = begin + warp * part_vectors;
    const PartialSoftmax partial = partial_softmax(logits, min(part, end), min(part + part_vectors, end));
    if (threadIdx.x % 32 == 0) parts[warp] = partial;
    __syncthreads();
    if (threadIdx.x == 0) {
      if (whole_row) {
        float largest = -INFINITY;
        for (int i = 0; i < num_warps; ++i) largest = fmaxf(largest, parts[i].largest);
        double total = 0.0;
        for (int i = 0; i < num_warps; ++i) total += parts[i].sum * exponential(parts[i].largest, origin(largest));
        const double uniform = p.given || greedy ? 0.0 : p.uniforms[row];
        search = {begin, end, largest, static_cast<float>(total), uniform * total};
      }
      if (!p.given) choose_part(parts, num_warps, part_vectors, greedy, &search);
    }
    __syncthreads();
    begin = search.begin;
    end = search.end;
  }
  if (warp > 0) return;

  const int64_t code = p.given ? p.given[row] : find_class(logits, search, greedy);
  if (threadIdx.x > 0) return;
  const bool exists = code >= 0 && code < p.num_classes;
  p.codes[row] = exists ? code : 0;
  p.confidence[row] =
      exists ? exponential(logits.of_class(static_cast<int>(code)), origin(search.largest)) / search.total : NAN;
}

}  // namespace lumos
