// Which heads and tokens a thread block of the CUDA kernels has. A block works on the heads of one row of weights, so
// that it fetches one row and its threads keep it in registers.
#pragma once

#include <climits>
#include <cstdint>

#include "cuda/token_blocks.h"
#include "lumos/qk_norm.h"
#include "ops/qk_norm/qk_norm_check.h"

namespace lumos {

// Of q, or of k. Powers of two, for the threads of a block: heads side by side * tokens * lanes of a head =
// kBlockThreads.
struct RowTiles {
  int64_t row_heads;  // heads that share a row of weights
  int heads_log2, tokens_log2;
  int thread_heads;      // heads that a thread goes over
  int64_t token_blocks;  // blocks that share a row of weights
  int64_t num_blocks;    // token_blocks of each row
};

// Blocks of q, row after row, then those of k.
struct QkTiles {
  int lanes_log2;  // lanes of a head, each with a vector of either half; some idle where head_dim is no power of two
  RowTiles q, k;
};

inline RowTiles row_tiles(const lumos_qk_norm_heads& heads, int64_t num_tokens, int lanes_log2) {
  RowTiles tiles{};
  tiles.row_heads = heads.num_heads / heads.num_rows;
  const int groups_log2 = 8 - lanes_log2;
  static_assert(kBlockThreads == 1 << 8, "groups_log2");
  // About four heads a thread, as in token_blocks().
  while ((int64_t(4) << tiles.heads_log2) < tiles.row_heads && tiles.heads_log2 < groups_log2) ++tiles.heads_log2;
  tiles.tokens_log2 = groups_log2 - tiles.heads_log2;
  tiles.thread_heads = static_cast<int>((tiles.row_heads + (1 << tiles.heads_log2) - 1) >> tiles.heads_log2);
  tiles.token_blocks = tiles.row_heads ? (num_tokens + (1 << tiles.tokens_log2) - 1) >> tiles.tokens_log2 : 0;
  tiles.num_blocks = tiles.token_blocks * heads.num_rows;
  return tiles;
}

inline QkTiles qk_tiles(const char* op, const lumos_qk_norm_params& p) {
  require_shapes(op, p);
  constexpr int64_t kMaxHeadDim = 256;  // more sums of a block would not fit into shared memory
  require(p.head_dim <= kMaxHeadDim, "%s: head_dim is %lld; the CUDA kernels take up to %lld: pass backend='reference'",
          op, static_cast<long long>(p.head_dim), static_cast<long long>(kMaxHeadDim));
  const int64_t vectors = p.head_dim / 2 / (p.dtype == LUMOS_FLOAT32 ? 4 : 8);
  QkTiles tiles{};
  while (1 << tiles.lanes_log2 < vectors) ++tiles.lanes_log2;
  tiles.q = row_tiles(p.q, p.num_tokens, tiles.lanes_log2);
  tiles.k = row_tiles(p.k, p.num_tokens, tiles.lanes_log2);
  require(tiles.q.num_blocks + tiles.k.num_blocks <= INT_MAX, "%s: %lld tokens are more than a grid holds", op,
          static_cast<long long>(p.num_tokens));
  return tiles;
}

}  // namespace lumos
