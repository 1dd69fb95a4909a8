// The walk of a block of key tiles over the query tiles that see them, from the last to the first, and what both kinds
// of kernels read of a query tile.
#pragma once

#include <algorithm>

#include "ops/attention/backward_kernel.h"
#include "ops/attention/tile_mask.h"

namespace lumos::LUMOS_ISA {

constexpr double kLog2E = 1.4426950408889634;

// Walks the runs of one key tile downwards.
class DownwardCursor {
 public:
  DownwardCursor() = default;
  DownwardCursor(const lumos_tile_runs& runs, int64_t tile)
      : runs_(runs.runs), begin_(runs.offsets[tile]), end_(runs.offsets[tile + 1]) {}

  // Whether this tile meets `other`, which must not increase from call to call.
  bool meets(int64_t other) {
    while (begin_ < end_ && runs_[3 * (end_ - 1)] > other) --end_;
    return begin_ < end_ && runs_[3 * (end_ - 1) + 1] > other;
  }

  bool full() const { return runs_[3 * (end_ - 1) + 2] != 0; }

  // The last tile at or before `other` that this tile meets, or -1.
  int64_t next(int64_t other) {
    if (meets(other)) return other;
    return begin_ < end_ ? runs_[3 * (end_ - 1) + 1] - 1 : -1;
  }

 private:
  const int32_t* runs_ = nullptr;
  int64_t begin_ = 0, end_ = 0;
};

// Of each query of a tile: maximum, 1 / sum and delta; 0 behind its end.
struct QueryTerms {
  alignas(64) float maximum[kTileTokens], inverse[kTileTokens], delta[kTileTokens];

  void read(const lumos_attention_params& p, const float* all_delta, const Tile& tile, int64_t head) {
    for (int r = 0; r < kTileTokens; ++r) {
      const int64_t token = tile.slot_begin + r, row = token * p.num_heads + head;
      const bool inside = r < tile.num_tokens;
      maximum[r] = inside ? p.row_state[2 * row] : 0.0f;
      inverse[r] = inside ? 1.0f / p.row_state[2 * row + 1] : 0.0f;
      delta[r] = inside ? all_delta[head * p.num_query_tokens + token] : 0.0f;
    }
  }
};

// A key tile of the block that the query tile at hand meets.
struct TilePair {
  int64_t key;    // in the block
  TileMask mask;  // rows are keys
};

// Block: pack_keys(i, keys), pack_queries(queries, head), add_grad_kv(pair), and add_grad_q(pairs, num_pairs, sums) for
// the pairs since pack_queries.
template <class Block>
void walk_backward(const lumos_attention_backward_params& b, int64_t kv_head, int64_t begin, int64_t end,
                   const BackwardSums& sums, BlockTurn& turn, Block& block) {
  const auto& p = b.forward;
  const int64_t num_tiles = end - begin, group = p.num_heads / p.num_kv_heads;
  DownwardCursor cursors[kMaxBlockTiles];
  Tile keys[kMaxBlockTiles];
  for (int64_t i = 0; i < num_tiles; ++i) {
    cursors[i] = DownwardCursor(b.columns, begin + i);
    keys[i] = tile_at(p.key_tiles, begin + i);
    block.pack_keys(i, keys[i]);
  }
  for (int64_t j = p.query_tiles.num_tiles - 1;; --j) {
    int64_t next = -1;
    for (int64_t i = 0; i < num_tiles; ++i) next = std::max(next, cursors[i].next(j));
    if (next < 0) return;
    j = next;
    const Tile queries = tile_at(p.query_tiles, j);
    TilePair pairs[kMaxBlockTiles];
    int num_pairs = 0;
    for (int64_t i = 0; i < num_tiles; ++i) {
      if (!cursors[i].meets(j)) continue;
      TilePair& pair = pairs[num_pairs++];
      pair.key = i;
      mask_by_key(p, queries, keys[i], cursors[i].full(), pair.mask);
    }
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      block.pack_queries(queries, head);
      for (int n = 0; n < num_pairs; ++n) block.add_grad_kv(pairs[n]);
      turn.wait(j);
      block.add_grad_q(pairs, num_pairs, sums.grad_q + (j * p.num_heads + head) * sums.tile_floats);
    }
    turn.pass(j);
  }
}

}  // namespace lumos::LUMOS_ISA
