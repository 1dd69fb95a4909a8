// Where the rows of a key tile lie in global memory, and their way into shared memory.
//
// A block of kCopyThreads copies a tile of 64 rows, kRows at a time: `kAcross` neighbouring threads have neighbouring
// chunks of one row, in each of kPasses passes.
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
  // Rows of 128 bytes are copied in two halves, whole sectors: half as many addresses.
  static constexpr int kAcross = kRowBytes == 128 ? 4 : Order::kGroup, kPasses = kRowBytes / 16 / kAcross;
  static constexpr int kRows = kCopyThreads / kAcross, kSteps = LUMOS_TILE_TOKENS / kRows;
  static_assert(kRows % 8 == 0);  // rows that a thread copies have equal turns

  // 8 lanes at once meet all banks: where they have two rows, these are 4 apart, for then their turns are.
  __device__ static int row(int thread = threadIdx.x) {
    if (kAcross == Order::kGroup) return thread / kAcross;
    return thread / 32 * 8 + thread % 32 / 8 + thread / 4 % 2 * 4;
  }
  __device__ static int chunk(int thread = threadIdx.x) { return thread % kAcross; }
  // Of the thread's first chunk. That of step i and pass j: (offset ^ turned(j)) + place(i, j)
  __device__ static uint32_t offset(int thread = threadIdx.x) { return Order::offset(row(thread), chunk(thread)); }
  __host__ __device__ static constexpr int turned(int pass) { return pass * kAcross % Order::kGroup * 16; }
  __host__ __device__ static constexpr int place(int step, int pass) {
    return step * kRows * kRowBytes + pass * kAcross / Order::kGroup * Order::kGroup * 16;
  }

  // The thread's first chunk of a tile at this slot, in global memory.
  __device__ static uint64_t first_chunk(const lumos_tokens& tokens, int64_t slot, int head, int thread = threadIdx.x) {
    const T* data = static_cast<const T*>(tokens.data) + head * tokens.stride_head;
    return __cvta_generic_to_global(data + (slot + row(thread)) * tokens.stride_token + chunk(thread) * kVectorSize<T>);
  }

  // The thread's chunks of row kStep, zeros where it does not exist. from, to: the first one; kTo: bytes behind `to`
  template <int kStep, int kTo = 0>
  __device__ static void row(uint64_t from, bool exists, uint32_t to) {
    unrolled<kPasses>([&](auto pass) {
      constexpr int j = pass.value;
      cp_async_at<kTo + place(kStep, j), j * kAcross * 16>(to ^ turned(j), from, exists ? 16 : 0);
    });
  }
  template <int kStep, int kTo>
  __device__ static void row(uint64_t from, uint32_t to) {
    unrolled<kPasses>([&](auto pass) {
      constexpr int j = pass.value;
      cp_async_at<kTo + place(kStep, j), j * kAcross * 16>(to ^ turned(j), from);
    });
  }
  // Of all its rows. from: the thread's first chunk of a tile [num_rows, head_dim]; kWhole: num_rows is 64
  template <bool kWhole, int kTo = 0>
  __device__ static void rows(uint64_t from, uint64_t stride_bytes, int num_rows, uint32_t to) {
    unrolled<kSteps>([&](auto step) {
      constexpr int i = step.value;
      if constexpr (kWhole) {
        row<i, kTo>(from, to);
      } else {
        row<i, kTo>(from, row() + i * kRows < num_rows, to);
      }
      from += kRows * stride_bytes;
    });
  }
  // Whether one of the thread's chunks of a tile in shared memory holds NaN or infinity. own: offset()
  __device__ static bool holds_not_finite(const unsigned char* tile, uint32_t own) {
    uint32_t found = 0;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int j = 0; j < kPasses; ++j) {
        const uint4 x = *reinterpret_cast<const uint4*>(tile + (own ^ turned(j)) + place(i, j));
        found |= not_finite<T>(x.x) | not_finite<T>(x.y) | not_finite<T>(x.z) | not_finite<T>(x.w);
      }
    }
    return found & kNotFinite;
  }
};

// Keys in packed memory, slot after slot.
struct PackedKeys {
  // Of a tile, in bytes from slot 0: made once for all threads.
  struct Place {
    int64_t k_bytes, v_bytes;
  };
  template <class T>
  __device__ static Place place(const lumos_attention_params& p, const Tile& tile) {
    const int64_t slot = tile.slot_begin * int64_t(sizeof(T));
    return {slot * p.k.stride_token, slot * p.v.stride_token};
  }
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
  struct Place {
    int sequence;
  };
  template <class T>
  __device__ static Place place(const lumos_attention_params&, const Tile& tile) {
    return {tile.sequence};
  }
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

// A key tile as the walk leaves it in shared memory.
template <class Keys>
struct alignas(16) KeyTile {
  int slot_begin, num_tokens, index_begin;
  uint32_t works;  // see forward_walk.cuh
  typename Keys::Place place;
};

// Tiles of keys and values on their way to shared memory, as one thread sees them. to: the thread's first chunk
template <class Keys, class T, int kHeadDim>
class KeyCopy;

template <class T, int kHeadDim>
class KeyCopy<PackedKeys, T, kHeadDim> {
  using Copy = TileCopy<T, kHeadDim>;
  using Keys = KeyTile<PackedKeys>;

 public:
  // head: of the keys; outlives this
  __device__ KeyCopy(const lumos_attention_params& p, const int& head)
      : p_(p),
        head_(head),
        k_(kept(Copy::first_chunk(p.k, 0, head))),
        kept_v_(kHasRoom ? kept(Copy::first_chunk(p.v, 0, head)) : 0),
        k_stride_bytes_(p.k.stride_token * sizeof(T)),
        v_stride_bytes_(p.v.stride_token * sizeof(T)) {
    if (kHasRoom) {
      k_stride_bytes_ = kept(k_stride_bytes_);
      v_stride_bytes_ = kept(v_stride_bytes_);
    }
  }
  // kWhole: it has 64 keys. kValues: bytes behind `to`
  template <bool kWhole>
  __device__ void keys(const Keys& tile, uint32_t to) const {
    Copy::template rows<kWhole>(k_ + tile.place.k_bytes, k_stride_bytes_, tile.num_tokens, to);
  }
  template <bool kWhole, int kValues = 0>
  __device__ void values(const Keys& tile, uint32_t to) const {
    const uint64_t v = kHasRoom ? kept_v_ : Copy::first_chunk(p_.v, 0, head_, kept(int(threadIdx.x)));
    Copy::template rows<kWhole, kValues>(v + tile.place.v_bytes, v_stride_bytes_, tile.num_tokens, to);
  }

 private:
  static constexpr bool kHasRoom = kHeadDim <= 64;  // in registers; without it, values are made anew
  const lumos_attention_params& p_;
  const int& head_;
  uint64_t k_, kept_v_;  // the thread's first chunk of a tile at slot 0, in global memory
  uint64_t k_stride_bytes_, v_stride_bytes_;
};

template <class T, int kHeadDim>
class KeyCopy<PagedKeys, T, kHeadDim> {
  using Copy = TileCopy<T, kHeadDim>;
  using Keys = KeyTile<PagedKeys>;

 public:
  __device__ KeyCopy(const lumos_attention_params& p, const int& head) : p_(p), head_(head) {}
  template <bool>
  __device__ void keys(const Keys& tile, uint32_t to) const {
    rows(p_.k, tile, to);
  }
  template <bool, int kValues = 0>
  __device__ void values(const Keys& tile, uint32_t to) const {
    rows(p_.v, tile, to + kValues);
  }

 private:
  __device__ void rows(const lumos_tokens& tokens, const Keys& keys, uint32_t to) const {
    const Tile tile = {keys.slot_begin, keys.num_tokens, keys.index_begin, keys.place.sequence};
    const T* data = static_cast<const T*>(tokens.data) + head_ * tokens.stride_head;
#pragma unroll 1
    for (int i = 0; i < Copy::kSteps; ++i) {
      const T* row = PagedKeys::row(p_, tile, Copy::row() + i * Copy::kRows, data, tokens);
      const T* from = (row ? row : data) + Copy::chunk() * kVectorSize<T>;
      Copy::template row<0>(__cvta_generic_to_global(from), row != nullptr, to + Copy::place(i, 0));
    }
  }

  const lumos_attention_params& p_;
  const int& head_;  // in shared memory, and no loop unrolled: to spare registers
};

}  // namespace lumos
