// Products of whole tiles for the backward, by vectors of float. Each operand is read through the first cache once a
// product, so loops over the strips of the right operand are outside those over rows.
//
// The order of each sum is that of tile_product.h: a chain over the tokens of the tile, in continuation of acc.
#pragma once

#include "ops/attention/tile_product.h"

namespace lumos::LUMOS_ISA {

// weight(r, t) = weights[r * row_stride + t * token_stride]
struct Weights {
  const float* weights;
  int64_t row_stride, token_stride;
};

template <int R, int C>
LUMOS_INLINE void accumulate_strip_rows(const Weights& w, int row, const float* values, int head_dim, int num_tokens,
                                        int d, float* acc) {
  vec sum[R][C];
  float* out = acc + row * head_dim + d;
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < C; ++j) sum[r][j] = load(out + r * head_dim + j * kLanes);
  }
  const float* weights = w.weights + row * w.row_stride;
  for (int t = 0; t < num_tokens; ++t) {
    vec right[C];
    for (int j = 0; j < C; ++j) right[j] = load(values + t * head_dim + d + j * kLanes);
    for (int r = 0; r < R; ++r) {
      const vec left = broadcast(weights[r * w.row_stride + t * w.token_stride]);
      for (int j = 0; j < C; ++j) sum[r][j] = fma(left, right[j], sum[r][j]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < C; ++j) store(out + r * head_dim + j * kLanes, sum[r][j]);
  }
}

template <int C>
void accumulate_strip(const Weights& w, int rows, const float* values, int head_dim, int num_tokens, int d,
                      float* acc) {
  int r = 0;
  for (; r + kRows <= rows; r += kRows) {
    accumulate_strip_rows<kRows, C>(w, r, values, head_dim, num_tokens, d, acc);
  }
  switch (rows - r) {
    case 1: return accumulate_strip_rows<1, C>(w, r, values, head_dim, num_tokens, d, acc);
    case 2: return accumulate_strip_rows<2, C>(w, r, values, head_dim, num_tokens, d, acc);
    case 3: return accumulate_strip_rows<3, C>(w, r, values, head_dim, num_tokens, d, acc);
    case 4: return accumulate_strip_rows<4, C>(w, r, values, head_dim, num_tokens, d, acc);
    case 5: return accumulate_strip_rows<5, C>(w, r, values, head_dim, num_tokens, d, acc);
    default: return;
  }
}

// acc[r, :] += sum_t weight(r, t) values[t, :];  values [num_tokens, head_dim], acc [rows, head_dim].
static inline void accumulate_rows(const Weights& w, int rows, const float* values, int head_dim, int num_tokens,
                                   float* acc) {
  int d = 0;
  for (; d + kColumns * kLanes <= head_dim; d += kColumns * kLanes) {
    accumulate_strip<kColumns>(w, rows, values, head_dim, num_tokens, d, acc);
  }
  for (; d < head_dim; d += 2 * kLanes) accumulate_strip<2>(w, rows, values, head_dim, num_tokens, d, acc);
}

// The same where values may not be finite at tokens that a row does not see: seen(r, t) tells. A token that is skipped
// and one of weight 0 leave the same sum, but for the sign of a zero, which store_row removes.
template <class Seen>
void accumulate_seen_rows(const Weights& w, int rows, const float* values, int head_dim, int num_tokens, Seen&& seen,
                          float* acc) {
  for (int r = 0; r < rows; ++r) {
    for (int t = 0; t < num_tokens; ++t) {
      if (!seen(r, t)) continue;
      const vec left = broadcast(w.weights[r * w.row_stride + t * w.token_stride]);
      for (int d = 0; d < head_dim; d += kLanes) {
        store(acc + r * head_dim + d, fma(left, load(values + t * head_dim + d), load(acc + r * head_dim + d)));
      }
    }
  }
}

}  // namespace lumos::LUMOS_ISA
