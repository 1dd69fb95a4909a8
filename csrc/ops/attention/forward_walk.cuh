// The walk of a block of the forward over the key tiles that its two sides meet.
//
// The first warp makes steps of it, up to kBatch at once, ahead of the others, which find them in shared memory.
#pragma once

#include "ops/attention/key_rows.cuh"

namespace lumos {

constexpr int kForwardThreads = kCopyThreads, kForwardWarps = kForwardThreads / 32, kWarpRows = 32;
constexpr int kSides = kForwardWarps * kWarpRows / LUMOS_TILE_TOKENS;

// Query tile and head of one side; num_rows is 0 for a side without work.
struct ForwardSide {
  int tile, head, num_rows, slot_begin;
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
  return found;
}

// What a warp does with a key tile: nothing where its side does not meet the tile or it has no queries; mask by the
// bounds of the queries, or the end of the tile, or not at all.
enum WarpWork : uint32_t { kNothing, kByQuery, kByLength, kUnmasked };

// Of a warp's two bits of `works`, not kUnmasked.
__device__ inline bool is_by_query(uint32_t work) { return work & 0x55555555u; }

// One step of the walk. Behind the last one follows a step without keys and works.
struct alignas(16) WalkStep {
  int slot_begin, num_tokens, index_begin;
  uint32_t works;  // WarpWork, 2 bits for each warp; kPartialStep if one of them is kByQuery
  int sequence;

  __device__ Tile keys() const { return {slot_begin, num_tokens, index_begin, sequence}; }
};
constexpr uint32_t kPartialStep = 1u << 31;

// In shared memory, to spare registers.
struct ForwardBlock {
  static constexpr int kSteps = 16, kBatch = 8;  // the two steps in use stay while a batch is made
  WalkStep steps[kSteps];
  ForwardSide sides[kSides];
  int kv_head;
  TileWalk<kSides> walk;

  // Of the calling warp.
  __device__ const ForwardSide& side() const { return sides[threadIdx.x / LUMOS_TILE_TOKENS]; }
  __device__ static int first_row() { return threadIdx.x % LUMOS_TILE_TOKENS / kWarpRows * kWarpRows; }
  __device__ int num_rows() const { return min(max(side().num_rows - first_row(), 0), kWarpRows); }

  __device__ static int after(int step, int count = 1) { return (step + count) & (kSteps - 1); }

  // Makes at least one step behind `last` and returns the last one now. The whole first warp calls it.
  __device__ int take_steps(const lumos_tiles& key_tiles, int last) {
    const int lane = threadIdx.x;
    if (walk.done()) {
      steps[after(last)] = {};
      return after(last);
    }
    const int count = min(walk.end - walk.tile, kBatch);
    if (lane < count) {
      const Tile keys = load_tile(key_tiles, walk.tile + lane);
      const WarpWork whole = keys.num_tokens == LUMOS_TILE_TOKENS ? kUnmasked : kByLength;
      uint32_t works = 0;
#pragma unroll
      for (int w = 0; w < kForwardWarps; ++w) {
        const int side = w * kWarpRows / LUMOS_TILE_TOKENS;
        const TileState state = walk.states[side];
        if (sides[side].num_rows > w * kWarpRows % LUMOS_TILE_TOKENS && state != kUnseen)
          works |= state == kPartial ? kByQuery << 2 * w | kPartialStep : whole << 2 * w;
      }
      steps[after(last, 1 + lane)] = {keys.slot_begin, keys.num_tokens, keys.index_begin, works, keys.sequence};
    }
    __syncwarp();
    if (lane == 0) walk.advance(count);
    __syncwarp();
    return after(last, count);
  }
};

}  // namespace lumos
