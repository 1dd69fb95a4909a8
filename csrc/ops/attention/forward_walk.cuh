// The walk of a block of the forward over the key tiles that its two sides meet.
//
// The first warp makes steps of it, up to kBatch at once, ahead of the others, which find them in shared memory. Where
// all rows of the block see the same first keys of a tile (a frame behind its visible tokens), it becomes a shorter
// one.
#pragma once

#include "ops/attention/key_rows.cuh"

namespace lumos {

constexpr int kForwardThreads = kCopyThreads, kForwardWarps = kForwardThreads / 32, kWarpRows = 32;
constexpr int kSides = kForwardWarps * kWarpRows / LUMOS_TILE_TOKENS;

// Query tile and head of one side; num_rows is 0 for a side without work.
struct ForwardSide {
  int tile, head, num_rows, slot_begin;
  bool same_rows;  // they see the same keys
  uint32_t warps;  // 1 in the two bits of `works` of each warp that has rows
};

// Block (x, y): the last tiles first, for under a causal layout they see the most keys.
__device__ inline ForwardSide forward_side(const lumos_attention_params& p, bool two_heads, int side) {
  ForwardSide found;
  const int last = int(p.query_tiles.num_tiles) - 1;
  found.tile = two_heads ? last - int(blockIdx.x) : (last / 2 - int(blockIdx.x)) * 2 + side;
  found.head = two_heads ? blockIdx.y * 2 + side : blockIdx.y;
  const bool exists = found.tile <= last;
  const Tile tile = exists ? load_tile(p.query_tiles, found.tile) : Tile{0, 0, 0, 0};
  found.num_rows = tile.num_tokens;
  found.slot_begin = tile.slot_begin;
  const int first_warp = side * (LUMOS_TILE_TOKENS / kWarpRows);
  found.warps = uint32_t(found.num_rows > 0) << 2 * first_warp | uint32_t(found.num_rows > kWarpRows)
                                                                     << 2 * first_warp + 2;
  return found;
}

// Whether the rows from a slot on have the same bounds. The whole warp calls it.
__device__ inline bool have_same_bounds(const int32_t* intervals, int64_t slot_begin, int num_rows) {
  RowVisibility first, row;
  first.load(intervals, slot_begin, num_rows > 0);
  bool same = true;
  for (int i = threadIdx.x % 32; i < num_rows; i += 32) {
    row.load(intervals, slot_begin + i, true);
#pragma unroll
    for (int j = 0; j < LUMOS_NUM_INTERVALS; ++j) same &= row.intervals[j] == first.intervals[j];
  }
  return __all_sync(~0u, same);
}

// What a warp does with a key tile: nothing where its side does not meet the tile or it has no queries; mask by the
// bounds of the queries, or the end of the tile, or not at all.
enum WarpWork : uint32_t { kNothing, kByQuery, kByLength, kUnmasked };

// Of a warp's two bits of `works`, not kUnmasked.
__device__ inline bool is_by_query(uint32_t work) { return work & 0x55555555u; }

// A step's `works`: of each warp 2 bits, and flags. One of the warps' is kByQuery; the last step made so far; any of
// these, or fewer than 64 keys. Behind the last step of all follows kNoStep, without keys.
constexpr uint32_t kByQueryStep = 1u << 31, kLastStep = 1u << 29, kUnusualStep = 1u << 30, kNoStep = kUnusualStep;
__device__ inline bool is_unusual(uint32_t works) { return works >= kUnusualStep; }

// In shared memory, to spare registers.
template <class T, class Keys>
struct ForwardBlock {
  static constexpr int kSteps = 16, kBatch = 8;  // a ring, a power of 2
  static_assert(kBatch <= kSteps - 2);           // the two steps in use stay while a batch is made
  KeyTile<Keys> steps[kSteps];
  ForwardSide sides[kSides];
  int kv_head;
  TileWalk<kSides> walk;

  // Of the calling warp.
  __device__ const ForwardSide& side() const { return sides[threadIdx.x / LUMOS_TILE_TOKENS]; }
  __device__ static int first_row() { return threadIdx.x % LUMOS_TILE_TOKENS / kWarpRows * kWarpRows; }
  __device__ int num_rows() const { return min(max(side().num_rows - first_row(), 0), kWarpRows); }

  __device__ static int after(int step, int count = 1) { return (step + count) & (kSteps - 1); }

  // Makes at least one step behind `last`. The whole first warp calls it.
  __device__ void take_steps(const lumos_attention_params& p, int last) {
    const int lane = threadIdx.x % kLanes;  // of each side: the tile from walk.tile on that it makes a step of
    if (walk.done()) {
      steps[after(last)] = {0, 0, 0, kNoStep};
      return;
    }
    const int count = min(walk.end - walk.tile, kBatch);
    Tile keys = {};
    if (lane < count) keys = load_tile(p.key_tiles, walk.tile + lane);
    const auto place = Keys::template place<T>(p, keys);
    const bool masked = !cut_unseen(p, count, keys);
    if (threadIdx.x < count) {
      const WarpWork whole = keys.num_tokens == LUMOS_TILE_TOKENS ? kUnmasked : kByLength;
      uint32_t works = lane == count - 1 ? kLastStep | kUnusualStep : whole == kUnmasked ? 0 : kUnusualStep;
#pragma unroll
      for (int i = 0; i < kSides; ++i) {
        if (walk.states[i] == kUnseen) continue;
        const bool by_query = masked && walk.states[i] == kPartial;
        works |= sides[i].warps * (by_query ? kByQuery : whole) | (by_query ? kByQueryStep : 0);
      }
      steps[after(last, 1 + lane)] = {keys.slot_begin, keys.num_tokens, keys.index_begin, works, place};
    }
    __syncwarp();
    if (threadIdx.x == 0) walk.advance(count);
    __syncwarp();
  }

 private:
  static constexpr int kLanes = 32 / kSides;
  static_assert(kSides == 2 && kBatch <= kLanes);

  // Where all rows that meet the lane's tile see its first keys and not the others, these are cut off: nothing is left
  // to mask but the tile's end. False where that is not so. The whole first warp calls it.
  __device__ bool cut_unseen(const lumos_attention_params& p, int count, Tile& keys) const {
    const int side = threadIdx.x / kLanes;
    const TileState state = walk.states[side], other_state = walk.states[1 - side];
    if (state != kPartial && other_state != kPartial) return true;
    if (!__all_sync(~0u, state != kPartial || sides[side].same_rows)) return false;
    uint64_t hidden = 0;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const uint64_t bits = hidden_bits(p.hidden, load_tile(p.key_tiles, walk.tile + i));
      if (i == int(threadIdx.x % kLanes)) hidden = bits;
    }
    uint64_t bits = lumos_range_bits(0, keys.num_tokens);
    if (state == kPartial) {
      RowVisibility visibility;
      visibility.load(p.intervals, sides[side].slot_begin, true);
      bits = visibility.bits(keys, hidden);
    }
    const uint64_t other = __shfl_xor_sync(~0u, bits, kLanes);
    if (state == kUnseen) bits = other;
    const bool alike = other_state == kUnseen || state == kUnseen || bits == other;
    if (!alike || bits & (bits + 1) || bits == 0) return false;
    keys.num_tokens = __popcll(bits);
    return true;
  }
};

}  // namespace lumos
