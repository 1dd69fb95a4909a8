// Where the rows of a key tile lie in global memory, and their way into shared memory.
//
// A block of kCopyThreads copies a tile of 64 rows: `kAcross` neighbouring threads one row (in kPasses columns of
// chunks), the block `kRows` rows at a time. A thread aims at the rows of a tile once, for its keys and its values.
#pragma once

#include "cuda/cp_async.cuh"
#include "cuda/not_finite.cuh"
#include "cuda/swizzle.cuh"
#include "ops/attention/paged_runs.cuh"

namespace lumos {

constexpr int kCopyThreads = 128;

template <class T, int kHeadDim>
struct TileCopy {
  static constexpr int kRowBytes = kHeadDim * int(sizeof(T));
  using Order = Swizzle<kRowBytes>;
  static constexpr int kAcross = Order::kGroup, kPasses = kRowBytes / 16 / kAcross;
  static constexpr int kRows = kCopyThreads / kAcross, kSteps = LUMOS_TILE_TOKENS / kRows;

  __device__ static int row() { return threadIdx.x / kAcross; }
  __device__ static int chunk() { return threadIdx.x % kAcross; }
  // Of the thread's first chunk; that of step i and pass j lies place(i, j) further.
  __device__ static int offset() { return Order::offset(row(), chunk()); }
  __device__ static constexpr int place(int step, int pass) { return step * kRows * kRowBytes + pass * kAcross * 16; }

  // The thread's chunks of one of its rows; zeros where it does not exist. row: [head_dim]
  __device__ static void row(const T* row, bool exists, int step, uint32_t to) {
    const char* from = reinterpret_cast<const char*>(row) + chunk() * 16;
#pragma unroll
    for (int j = 0; j < kPasses; ++j) cp_async(to + place(step, j), from + j * kAcross * 16, exists ? 16 : 0);
  }
  // tile: [num_rows, head_dim]
  __device__ static void rows(const T* tile, int64_t stride, int num_rows, uint32_t to) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int at = row() + i * kRows;
      row(tile + at * stride, at < num_rows, i, to);
    }
  }
  // Whether one of the thread's chunks holds NaN or infinity. chunks: the first in shared memory
  __device__ static bool holds_not_finite(const unsigned char* chunks) {
    uint32_t found = 0;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int j = 0; j < kPasses; ++j) {
        const uint4 x = *reinterpret_cast<const uint4*>(chunks + place(i, j));
        found |= not_finite<T>(x.x) | not_finite<T>(x.y) | not_finite<T>(x.z) | not_finite<T>(x.w);
      }
    }
    return found & kNotFinite;
  }
};

// Keys in packed memory, slot after slot.
template <class T, int kHeadDim>
class PackedRows {
 public:
  __device__ static void start(const lumos_attention_params& p, int tile, RunCursor& cursor) {
    cursor.start(p.rows.runs, p.rows.offsets[tile], p.rows.offsets[tile + 1]);
  }
  __device__ void aim(const lumos_attention_params&, const Tile& tile) {
    slot_begin_ = tile.slot_begin;
    num_tokens_ = tile.num_tokens;
  }
  // data: [slots, head_dim] of one head. to: the thread's first chunk in shared memory
  __device__ void copy(const lumos_attention_params&, const T* data, const lumos_tokens& tokens, uint32_t to) const {
    TileCopy<T, kHeadDim>::rows(data + slot_begin_ * tokens.stride_token, tokens.stride_token, num_tokens_, to);
  }

 private:
  int slot_begin_ = 0, num_tokens_ = 0;
};

// Keys in pages, under the runs of paged_runs.cuh. Slots without a page of the pool count as zeros.
template <class T, int kHeadDim>
class PagedRows {
  using Copy = TileCopy<T, kHeadDim>;

 public:
  __device__ static void start(const lumos_attention_params& p, int tile, RunCursor& cursor) {
    const PagedRuns runs(p);
    cursor.start(runs.of(tile), 0, runs.counts[tile]);
  }
  __device__ void aim(const lumos_attention_params& p, const Tile& tile) {
    const int32_t* table = p.page_table + tile.sequence * p.max_pages;
    const int page_size = int(p.page_size);
#pragma unroll
    for (int i = 0; i < Copy::kSteps; ++i) {
      const int row = Copy::row() + i * Copy::kRows, slot = tile.slot_begin + row;
      const int page = slot / page_size;
      page_[i] = row < tile.num_tokens && page < p.max_pages ? __ldg(table + page) : -1;
      offset_[i] = slot - page * page_size;
    }
  }
  __device__ void copy(const lumos_attention_params& p, const T* data, const lumos_tokens& tokens, uint32_t to) const {
#pragma unroll
    for (int i = 0; i < Copy::kSteps; ++i) {
      const bool exists = 0 <= page_[i] && page_[i] < p.num_pages;
      const T* row = data + page_[i] * tokens.stride_page + offset_[i] * tokens.stride_token;
      Copy::row(exists ? row : data, exists, i, to);
    }
  }

 private:
  int page_[Copy::kSteps] = {}, offset_[Copy::kSteps] = {};
};

}  // namespace lumos
