// Key tiles in the layouts that tile products want (cpu/amx.h), from the caller's memory, packed or in pages.
#pragma once

#include "cpu/amx.h"
#include "ops/attention/tile_pack.h"

namespace lumos::LUMOS_ISA {

alignas(64) static const bfloat16 kZeroRow[LUMOS_MAX_HEAD_DIM] = {};

// rows[t] = row of the tile's token t, of k or v; zeros behind its end.
static inline void key_rows(const lumos_attention_params& p, const lumos_tokens& tokens, const Tile& tile, int64_t head,
                            const bfloat16* rows[kTileTokens]) {
  int t = 0;
  while (t < tile.num_tokens) {
    const int64_t slot = tile.slot_begin + t;
    const bfloat16* row = key_row<bfloat16>(p, tokens, tile.sequence, slot, head);
    int end = tile.num_tokens;  // of the tokens in this page
    if (p.page_table && p.page_size - slot % p.page_size < end - t) {
      end = t + static_cast<int>(p.page_size - slot % p.page_size);
    }
    for (; t < end; ++t, row += tokens.stride_token) rows[t] = row;
  }
  for (; t < kTileTokens; ++t) rows[t] = kZeroRow;
}

// For the sum over dimensions: B tiles [2 halves of the tokens, head_dim / 32, 2 of 16 tokens].
static inline void pack_k(const bfloat16* const rows[kTileTokens], int head_dim, bfloat16* tiles) {
  for (int first = 0; first < kTileTokens; first += 32) {
    for (int d = 0; d < head_dim; d += kTileSum, tiles += 2 * kTileElements) {
      pack_dimension_pairs(rows + first, d, tiles);
      pack_dimension_pairs(rows + first + 16, d, tiles + kTileElements);
    }
  }
}

// For the sum over tokens: B tiles [head_dim / 32, 2 halves of the tokens, 2 of 16 dimensions].
static inline void pack_v(const bfloat16* const rows[kTileTokens], int head_dim, bfloat16* tiles) {
  for (int d = 0; d < head_dim; d += 32, tiles += 4 * kTileElements) {
    pack_row_pairs(rows, d, tiles);
    pack_row_pairs(rows + 32, d, tiles + 2 * kTileElements);
  }
}

}  // namespace lumos::LUMOS_ISA
