// Where the rows of a key tile lie in global memory, and their way into shared memory.
//
// A block of kCopyThreads copies a tile of 64 rows: `kAcross` neighbouring threads one row (in kPasses columns of
// chunks), the block `kRows` rows at a time.
#pragma once

#include "cuda/at_offset.cuh"
#include "cuda/cp_async.cuh"
#include "cuda/kept.cuh"
#include "cuda/not_finite.cuh"
#include "cuda/swizzle.cuh"
#include "cuda/unrolled.cuh"
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
  __host__ __device__ static constexpr int place(int step, int pass) {
    return step * kRows * kRowBytes + pass * kAcross * 16;
  }

  // The thread's first chunk of a tile at this slot, in global memory.
  __device__ static uint64_t first_chunk(const lumos_tokens& tokens, int64_t slot, int head) {
    const T* data = static_cast<const T*>(tokens.data) + head * tokens.stride_head;
    return __cvta_generic_to_global(data + (slot + row()) * tokens.stride_token + chunk() * kVectorSize<T>);
  }

  // The thread's chunks of row kStep, zeros where it does not exist. from: the first one
  template <int kStep>
  __device__ static void row(uint64_t from, bool exists, uint32_t to) {
    unrolled<kPasses>([&](auto pass) {
      cp_async_at<place(kStep, pass.value), pass.value * kAcross * 16>(to, from, exists ? 16 : 0);
    });
  }
  template <int kStep>
  __device__ static void row(uint64_t from, uint32_t to) {
    unrolled<kPasses>([&](auto pass) { cp_async_at<place(kStep, pass.value), pass.value * kAcross * 16>(to, from); });
  }
  // Of all its rows. from: the thread's first chunk of a tile [num_rows, head_dim]
  __device__ static void rows(uint64_t from, uint64_t stride_bytes, int num_rows, uint32_t to) {
    const uint64_t step = kRows * stride_bytes;
    if (num_rows == LUMOS_TILE_TOKENS) {
      unrolled<kSteps>([&](auto i) {
        row<i.value>(from, to);
        from += step;
      });
    } else {
      unrolled<kSteps>([&](auto i) {
        row<i.value>(from, row() + i.value * kRows < num_rows, to);
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
struct PackedKeys {
  __device__ static void start(const lumos_attention_params& p, int tile, RunCursor& cursor) {
    cursor.start(p.rows.runs, p.rows.offsets[tile], p.rows.offsets[tile + 1]);
  }
  // Row of a tile, or NULL where there is none. data: [slots, head_dim] of one head
  template <class T>
  __device__ static const T* row(const lumos_attention_params&, const Tile& tile, int row, const T* data,
                                 const lumos_tokens& tokens) {
    return row < tile.num_tokens ? data + (int64_t(tile.slot_begin) + row) * tokens.stride_token : nullptr;
  }
};

// Keys in pages, under the runs of paged_runs.cuh. Slots without a page of the pool count as zeros.
struct PagedKeys {
  __device__ static void start(const lumos_attention_params& p, int tile, RunCursor& cursor) {
    const PagedRuns runs(p);
    cursor.start(runs.of(tile), 0, runs.counts[tile]);
  }
  template <class T>
  __device__ static const T* row(const lumos_attention_params& p, const Tile& tile, int row, const T* data,
                                 const lumos_tokens& tokens) {
    const int slot = tile.slot_begin + row, page_size = int(p.page_size), page = slot / page_size;
    if (row >= tile.num_tokens || page >= p.max_pages) return nullptr;
    const int physical = __ldg(p.page_table + tile.sequence * p.max_pages + page);
    if (physical < 0 || physical >= p.num_pages) return nullptr;
    return data + physical * tokens.stride_page + (slot - page * page_size) * tokens.stride_token;
  }
};

// Tiles of keys or values on their way to shared memory, as one thread sees them. to: the thread's first chunk
template <class Keys, class T, int kHeadDim>
class KeyCopy;

template <class T, int kHeadDim>
class KeyCopy<PackedKeys, T, kHeadDim> {
  using Copy = TileCopy<T, kHeadDim>;

 public:
  // head: of the keys; outlives this
  __device__ KeyCopy(const lumos_tokens& tokens, const int& head)
      : own_(kept(Copy::first_chunk(tokens, 0, head))), stride_bytes_(tokens.stride_token * sizeof(T)) {
    if (kHeadDim <= 64) stride_bytes_ = kept(stride_bytes_);  // above there is no room
  }
  __device__ void operator()(const lumos_attention_params&, const lumos_tokens&, const Tile& tile, uint32_t to) const {
    Copy::rows(own_ + tile.slot_begin * stride_bytes_, stride_bytes_, tile.num_tokens, to);
  }

 private:
  uint64_t own_, stride_bytes_;  // the thread's first chunk of a tile at slot 0, in global memory
};

template <class T, int kHeadDim>
class KeyCopy<PagedKeys, T, kHeadDim> {
  using Copy = TileCopy<T, kHeadDim>;

 public:
  __device__ KeyCopy(const lumos_tokens&, const int& head) : head_(head) {}
  __device__ void operator()(const lumos_attention_params& p, const lumos_tokens& tokens, const Tile& tile,
                             uint32_t to) const {
    const T* data = static_cast<const T*>(tokens.data) + head_ * tokens.stride_head;
#pragma unroll 1
    for (int i = 0; i < Copy::kSteps; ++i) {
      const T* row = PagedKeys::row(p, tile, Copy::row() + i * Copy::kRows, data, tokens);
      const T* from = (row ? row : data) + Copy::chunk() * kVectorSize<T>;
      Copy::template row<0>(__cvta_generic_to_global(from), row != nullptr, to + Copy::place(i, 0));
    }
  }

 private:
  const int& head_;  // in shared memory, and no loop unrolled: to spare registers
};

}  // namespace lumos
