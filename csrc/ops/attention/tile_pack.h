// Tiles between the caller's memory (any dtype, strides, pages) and fast memory (float, zeros up to 64 tokens).
#pragma once

#include <utility>

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

typedef float quad __attribute__((vector_size(16)));

LUMOS_INLINE quad load_quad(const float* p) {
  quad x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

LUMOS_INLINE quad load_quad(const bfloat16* p) {
  typedef uint16_t half_quad __attribute__((vector_size(8)));
  typedef uint32_t bits_quad __attribute__((vector_size(16)));
  half_quad x;
  std::memcpy(&x, p, sizeof x);
  return (quad)(__builtin_convertvector(x, bits_quad) << 16);
}

// Dimensions d .. d + 3 of rows i, i + 4, i + 8, ...
template <class T>
LUMOS_INLINE vec load_quads(const T* const rows[kLanes], int i, int d) {
#if defined(__AVX2__)
  const auto pair = [&](int first) {
    return __builtin_shufflevector(load_quad(rows[first] + d), load_quad(rows[first + 4] + d), 0, 1, 2, 3, 4, 5, 6, 7);
  };
#if defined(__AVX512F__)
  return __builtin_shufflevector(pair(i), pair(i + 8), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
  return pair(i);
#endif
#else
  return load_quad(rows[i] + d);
#endif
}

// Lanes 4 n + j of the results are dimension 0, 1, 2, 3 of x[j], lanes 4 n ..
template <int... Lane>
LUMOS_INLINE void transpose_quads(vec x[4], std::integer_sequence<int, Lane...>) {
  const auto low = [](vec a, vec b) {
    return __builtin_shufflevector(a, b, (Lane / 4 * 4 + Lane % 4 / 2 + Lane % 2 * kLanes)...);
  };
  const auto high = [](vec a, vec b) {
    return __builtin_shufflevector(a, b, (Lane / 4 * 4 + 2 + Lane % 4 / 2 + Lane % 2 * kLanes)...);
  };
  const auto first = [](vec a, vec b) {
    return __builtin_shufflevector(a, b, (Lane / 4 * 4 + Lane % 2 + Lane % 4 / 2 * kLanes)...);
  };
  const auto second = [](vec a, vec b) {
    return __builtin_shufflevector(a, b, (Lane / 4 * 4 + 2 + Lane % 2 + Lane % 4 / 2 * kLanes)...);
  };
  const vec low_a = low(x[0], x[1]), high_a = high(x[0], x[1]), low_b = low(x[2], x[3]), high_b = high(x[2], x[3]);
  x[0] = first(low_a, low_b);
  x[1] = second(low_a, low_b);
  x[2] = first(high_a, high_b);
  x[3] = second(high_a, high_b);
}

// columns[d, t] = row(t)[d] for t below num_tokens, those of the last row up to whole vectors;  columns [head_dim, 64].
template <class Row>
LUMOS_INLINE void transpose(Row&& row, int num_tokens, int head_dim, float* columns) {
  for (int t = 0; t < num_tokens; t += kLanes) {
    decltype(row(0)) rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = row(t + i < num_tokens ? t + i : num_tokens - 1);
    for (int d = 0; d < head_dim; d += 4) {
      vec x[4];
      for (int i = 0; i < 4; ++i) x[i] = load_quads(rows, i, d);
      transpose_quads(x, std::make_integer_sequence<int, kLanes>());
      for (int i = 0; i < 4; ++i) store(columns + (d + i) * kTileTokens + t, x[i]);
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
