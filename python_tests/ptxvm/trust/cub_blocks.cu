// Block-wide algorithms of CUB, which comes with the CUDA toolkit: shuffles, ranks by bits, several uses of one shared
// memory.
#include <cub/block/block_histogram.cuh>
#include <cub/block/block_load.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

constexpr int kThreads = 128, kItems = 4, kTile = kThreads * kItems;

// sorted, places: the keys of each tile in order, and where they were.
extern "C" __global__ void radix_sort(const unsigned* keys, unsigned* sorted, unsigned* places) {
  using Load = cub::BlockLoad<unsigned, kThreads, kItems, cub::BLOCK_LOAD_WARP_TRANSPOSE>;
  using Sort = cub::BlockRadixSort<unsigned, kThreads, kItems, unsigned>;
  __shared__ typename Load::TempStorage load;
  __shared__ typename Sort::TempStorage sort;
  unsigned key[kItems], place[kItems];
  const int tile = blockIdx.x * kTile;
  Load(load).Load(keys + tile, key);
  for (int i = 0; i < kItems; ++i) place[i] = threadIdx.x * kItems + i;
  Sort(sort).Sort(key, place);
  for (int i = 0; i < kItems; ++i) {
    sorted[tile + threadIdx.x * kItems + i] = key[i];
    places[tile + threadIdx.x * kItems + i] = place[i];
  }
}

// sums: of x up to each place; before: of y before it; totals: of y, a block each.
extern "C" __global__ void scans(const int* x, int* sums, const float* y, float* before, double* totals) {
  using Raking = cub::BlockScan<int, kThreads, cub::BLOCK_SCAN_RAKING>;
  using Warps = cub::BlockScan<float, kThreads, cub::BLOCK_SCAN_WARP_SCANS>;
  using Reduce = cub::BlockReduce<double, kThreads>;
  __shared__ union {
    typename Raking::TempStorage raking;
    typename Warps::TempStorage warps;
    typename Reduce::TempStorage reduce;
  } shared;
  const int i = blockIdx.x * kThreads + threadIdx.x;
  Raking(shared.raking).InclusiveSum(x[i], sums[i]);
  __syncthreads();
  Warps(shared.warps).ExclusiveSum(y[i], before[i]);
  __syncthreads();
  const double total = Reduce(shared.reduce).Sum(double(y[i]));
  if (threadIdx.x == 0) totals[blockIdx.x] = total;
}

// counts[256] += how often each byte occurs.
extern "C" __global__ void count_bytes(const unsigned char* bytes, unsigned* counts) {
  using Histogram = cub::BlockHistogram<unsigned char, kThreads, kItems, 256, cub::BLOCK_HISTO_SORT>;
  __shared__ typename Histogram::TempStorage histogram;
  __shared__ unsigned bins[256];
  unsigned char byte[kItems];
  for (int i = 0; i < kItems; ++i) byte[i] = bytes[blockIdx.x * kTile + threadIdx.x * kItems + i];
  Histogram(histogram).Histogram(byte, bins);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += kThreads) atomicAdd(counts + i, bins[i]);
}
