// Tiles between the caller's memory (any dtype, strides, pages) and fast memory (float, zeros up to 64 tokens).
#pragma once

#include "cpu/simd.h"
#include "lumos/attention.h"
#include "ops/attention/tile_product.h"

namespace lumos::LUMOS_ISA {

struct Tile {
  int64_t slot_begin;
  int num_tokens;
  int64_t index_begin, sequence;
};

LUMOS_INLINE Tile tile_at(const lumos_tiles& tiles, int64_t i) {
  const int32_t* row = tiles.rows + 4 * i;
  return {row[0], row[1], row[2], row[3]};
}

template <class T>
LUMOS_INLINE const T* query_row(const lumos_tokens& tokens, int64_t slot, int64_t head) {
  return static_cast<const T*>(tokens.data) + slot * tokens.stride_token + head * tokens.stride_head;
}

// Row of token `slot` of k or v; packed keys are the case of one page.
template <class T>
LUMOS_INLINE const T* key_row(const lumos_attention_params& p, const lumos_tokens& tokens, int64_t sequence,
                              int64_t slot, int64_t head) {
  if (!p.page_table) return query_row<T>(tokens, slot, head);
  const int64_t page = p.page_table[sequence * p.max_pages + slot / p.page_size];
  return static_cast<const T*>(tokens.data) + page * tokens.stride_page + slot % p.page_size * tokens.stride_token +
         head * tokens.stride_head;
}

template <class T>
LUMOS_INLINE void copy_row(const T* from, int head_dim, float* to) {
  for (int d = 0; d < head_dim; d += kLanes) store(to + d, load(from + d));
}

static inline void zero_rows(float* rows, int first, int head_dim) {
  for (int i = first * head_dim; i < kTileTokens * head_dim; i += kLanes) store(rows + i, vec{});
}

// rows[t, :] = tokens[t, head, :];  rows [64, head_dim].
template <class T>
void pack_queries(const lumos_tokens& tokens, const Tile& tile, int64_t head, int head_dim, float* rows) {
  for (int t = 0; t < tile.num_tokens; ++t) {
    copy_row(query_row<T>(tokens, tile.slot_begin + t, head), head_dim, rows + t * head_dim);
  }
  zero_rows(rows, tile.num_tokens, head_dim);
}

template <class T>
void pack_keys(const lumos_attention_params& p, const lumos_tokens& tokens, const Tile& tile, int64_t head,
               int head_dim, float* rows) {
  for (int t = 0; t < tile.num_tokens; ++t) {
    copy_row(key_row<T>(p, tokens, tile.sequence, tile.slot_begin + t, head), head_dim, rows + t * head_dim);
  }
  zero_rows(rows, tile.num_tokens, head_dim);
}

// columns[d, t] = rows[t, d] for the first num_tokens t, rounded up to whole vectors;  rows [64, head_dim], columns
// [head_dim, 64]. Blocks of 4 x 4, by shuffles.
static inline void transpose(const float* rows, int num_tokens, int head_dim, float* columns) {
  typedef float quad __attribute__((vector_size(16)));
  const int end = (num_tokens + kLanes - 1) / kLanes * kLanes;
  for (int d = 0; d < head_dim; d += 4) {
    for (int t = 0; t < end; t += 4) {
      quad x[4];
      for (int i = 0; i < 4; ++i) std::memcpy(&x[i], rows + (t + i) * head_dim + d, sizeof(quad));
      const quad low_a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5),
                 high_a = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
      const quad low_b = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5),
                 high_b = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
      const quad y[4] = {
          __builtin_shufflevector(low_a, low_b, 0, 1, 4, 5), __builtin_shufflevector(low_a, low_b, 2, 3, 6, 7),
          __builtin_shufflevector(high_a, high_b, 0, 1, 4, 5), __builtin_shufflevector(high_a, high_b, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i) std::memcpy(columns + (d + i) * kTileTokens + t, &y[i], sizeof(quad));
    }
  }
}

// Whether every element of the tile is finite; if so, a weight of 0 is as good as skipping it.
static inline bool all_finite(const float* rows, int head_dim) {
  vec sum{};
  for (int i = 0; i < kTileTokens * head_dim; i += kLanes) {
    const vec x = load(rows + i);
    sum += x - x;  // 0, or NaN for NaN and infinities
  }
  bool finite = true;
  for (int i = 0; i < kLanes; ++i) finite = finite && sum[i] == 0.0f;
  return finite;
}

// out[t, :] = factor rows[t, :], with +0 for -0.
template <class T>
LUMOS_INLINE void store_row(const float* row, float factor, int head_dim, T* out) {
  for (int d = 0; d < head_dim; d += kLanes) store(out + d, load(row + d) * broadcast(factor) + 0.0f);
}

}  // namespace lumos::LUMOS_ISA
