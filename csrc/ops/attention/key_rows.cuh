// Where the rows of a key tile lie in global memory, and their way into shared memory.
//
// A block of kCopyThreads copies a tile of 64 rows: `kAcross` neighbouring threads one row (in kPasses columns of
// chunks), the block `kRows` rows at a time.
#pragma once

#include "cuda/cp_async.cuh"
#include "cuda/not_finite.cuh"
#include "cuda/static_for.cuh"
#include "cuda/swizzle.cuh"
#include "cuda/vector.cuh"
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
  __host__ __device__ static constexpr int place(int step, int pass) { return step * kRows * kRowBytes + pass * kAcross * 16; }

  // The thread's chunks of row kStep, zeros where it does not exist. from: the first one
  template <int kStep>
  __device__ static void row(const T* from, bool exists, uint32_t to) {
    static_for<kPasses>([&](auto pass) {
      cp_async<place(kStep, pass), pass * kAcross * 16>(to, from, exists ? 16 : 0);
    });
  }
  // Of all its rows. from: the thread's first chunk of a tile [num_rows, head_dim]
  __device__ static void rows(const T* from, int64_t stride, int num_rows, uint32_t to) {
    const int64_t step = kRows * stride;
    if (num_rows == LUMOS_TILE_TOKENS) {
      static_for<kSteps>([&](auto i) {
        static_for<kPasses>([&](auto pass) { cp_async<place(i, pass), pass * kAcross * 16>(to, from); });
        from += step;
      });
    } else {
      static_for<kSteps>([&](auto i) {
        row<i>(from, row() + i * kRows < num_rows, to);
        from += step;
      });
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
struct PackedRows {
  using Copy = TileCopy<T, kHeadDim>;

  __device__ static void start(const lumos_attention_params& p, int tile, RunCursor& cursor) {
    cursor.start(p.rows.runs, p.rows.offsets[tile], p.rows.offsets[tile + 1]);
  }
  // data: [slots, head_dim] of one head. to: the thread's first chunk in shared memory
  __device__ static void copy(const lumos_attention_params&, const Tile& tile, const T* data,
                              const lumos_tokens& tokens, uint32_t to) {
    const int64_t slot = tile.slot_begin + Copy::row();
    Copy::rows(data + slot * tokens.stride_token + Copy::chunk() * kVectorSize<T>, tokens.stride_token, tile.num_tokens,
               to);
  }
};

// Keys in pages, under the runs of paged_runs.cuh. Slots without a page of the pool count as zeros.
template <class T, int kHeadDim>
struct PagedRows {
  using Copy = TileCopy<T, kHeadDim>;

  __device__ static void start(const lumos_attention_params& p, int tile, RunCursor& cursor) {
    const PagedRuns runs(p);
    cursor.start(runs.of(tile), 0, runs.counts[tile]);
  }
  __device__ static void copy(const lumos_attention_params& p, const Tile& tile, const T* data,
                              const lumos_tokens& tokens, uint32_t to) {
    const int32_t* table = p.page_table + tile.sequence * p.max_pages;
    const T* first = data + Copy::chunk() * kVectorSize<T>;
    static_for<Copy::kSteps>([&](auto i) {
      const int row = Copy::row() + i * Copy::kRows, slot = tile.slot_begin + row;
      const int page = slot / int(p.page_size), offset = slot - page * int(p.page_size);
      const int physical = row < tile.num_tokens && page < p.max_pages ? __ldg(table + page) : -1;
      const bool exists = 0 <= physical && physical < p.num_pages;
      const T* from = first + physical * tokens.stride_page + offset * tokens.stride_token;
      Copy::template row<i>(exists ? from : first, exists, to);
    });
  }
};

}  // namespace lumos
