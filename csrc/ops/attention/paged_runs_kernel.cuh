// Runs of key tiles of each query tile against a cache: what a schedule holds for packed keys, made on the device
// because the page table and the tiles of a step live there.
//
// A block has one query tile, a thread one of its rows; it goes over the key tiles of the query's sequence, which are
// sorted, or of its key split, and thread 0 joins those in equal state to runs.
#pragma once

#include "ops/attention/paged_runs.cuh"

namespace lumos {

// The first key tile of `sequence` or a later one.
__device__ inline int first_tile_of(const lumos_tiles& tiles, int sequence) {
  int begin = 0, end = int(tiles.num_tiles);
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (__ldg(tiles.rows + 4 * middle + 3) < sequence) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

constexpr int kPagedRunsThreads = LUMOS_TILE_TOKENS;

static __global__ void __launch_bounds__(kPagedRunsThreads)
    paged_runs_kernel(const __grid_constant__ lumos_attention_params p) {
  const Tile queries = load_tile(p.query_tiles, blockIdx.x);
  const int row = threadIdx.x;
  const bool exists = row < queries.num_tokens;
  RowVisibility visibility;
  visibility.load(p.intervals, queries.slot_begin + row, exists);

  const PagedRuns all(p);
  int32_t* const runs = all.of(blockIdx.x);
  int count = 0;
  TileState before = kUnseen;
  const int32_t* const keys = p.splits.keys ? p.splits.keys + 2 * blockIdx.x : nullptr;
  const int first = keys ? keys[0] : first_tile_of(p.key_tiles, queries.sequence);
  const int end = keys ? keys[1] : first_tile_of(p.key_tiles, queries.sequence + 1);
  for (int i = first; i < end; ++i) {
    const Tile keys = load_tile(p.key_tiles, i);
    const uint64_t bits = visibility.bits(keys, 0);
    const bool some = __syncthreads_or(bits != 0);
    const bool every = __syncthreads_and(!exists || bits == lumos_range_bits(0, keys.num_tokens));
    const TileState state = every ? kFull : some ? kPartial : kUnseen;
    if (state != before) {
      if (before != kUnseen && row == 0) runs[3 * count - 2] = i;
      if (state != kUnseen) {
        if (row == 0) {
          runs[3 * count] = i;
          runs[3 * count + 2] = state == kFull;
        }
        ++count;
      }
      before = state;
    }
  }
  if (row == 0) {
    if (before != kUnseen) runs[3 * count - 2] = end;
    all.counts[blockIdx.x] = count;
  }
}

}  // namespace lumos
