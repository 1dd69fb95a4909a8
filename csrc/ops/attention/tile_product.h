// The two matrix products of attention on tiles in fast memory.
//
// The right operand is read through the first cache once a product: loops over its strips are outside those over blocks
// of kRows rows. The order of each sum is fixed: in tile_scores a chain of fma over each kChain of head_dim, then a
// chain over those; in accumulate_rows a chain over the tile's tokens, in continuation of acc. So its bits depend
// neither on the row's place, nor on the block, nor on the number of tokens of the tile.
#pragma once

#include "cpu/simd.h"
#include "lumos/attention.h"

namespace lumos::LUMOS_ISA {

constexpr int kTileTokens = LUMOS_TILE_TOKENS;
constexpr int kRows = 6;  // rows of a block: kRows * kColumns sums, kColumns operands and a broadcast fit the registers
constexpr int kColumns = kLanes == 16 ? 4 : 2;
constexpr int kChain = 32;  // shorter chains round less, longer ones are hardly faster

LUMOS_INLINE int chain_end(int first, int head_dim) { return first + kChain < head_dim ? first + kChain : head_dim; }

// One step of tile_scores: the chain that begins at dimension `first`, for R rows and C vectors of columns.
template <int R, int C>
LUMOS_INLINE void score_block(const float* a, const float* b, int head_dim, int first, float* scores) {
  vec sum[R][C] = {};
  const int end = chain_end(first, head_dim);
#pragma GCC unroll 2
  for (int d = first; d < end; ++d) {
    vec right[C];
    for (int j = 0; j < C; ++j) right[j] = load(b + d * kTileTokens + j * kLanes);
    for (int r = 0; r < R; ++r) {
      const vec left = broadcast(a[r * head_dim + d]);
      for (int j = 0; j < C; ++j) sum[r][j] = fma(left, right[j], sum[r][j]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < C; ++j) {
      float* score = scores + r * kTileTokens + j * kLanes;
      store(score, first == 0 ? sum[r][j] : load(score) + sum[r][j]);
    }
  }
}

template <int C>
void score_strip(int rows, const float* a, const float* b, int head_dim, int first, float* scores) {
  for (; rows >= kRows; rows -= kRows, a += kRows * head_dim, scores += kRows * kTileTokens) {
    score_block<kRows, C>(a, b, head_dim, first, scores);
  }
  switch (rows) {
    case 1: return score_block<1, C>(a, b, head_dim, first, scores);
    case 2: return score_block<2, C>(a, b, head_dim, first, scores);
    case 3: return score_block<3, C>(a, b, head_dim, first, scores);
    case 4: return score_block<4, C>(a, b, head_dim, first, scores);
    case 5: return score_block<5, C>(a, b, head_dim, first, scores);
    default: return;
  }
}

// scores[r, c] = sum_d a[r, d] b[d, c];  a [rows, head_dim], b [head_dim, 64], scores [rows, 64]. Columns from
// num_columns on, rounded up to whole vectors, are left alone.
static inline void tile_scores(int rows, const float* a, const float* b, int head_dim, int num_columns, float* scores) {
  for (int first = 0; first < head_dim; first += kChain) {
    for (int c = 0; c < num_columns; c += kColumns * kLanes) {
      if (num_columns - c <= kLanes) {
        score_strip<1>(rows, a, b + c, head_dim, first, scores + c);
      } else if (num_columns - c <= 2 * kLanes) {
        score_strip<2>(rows, a, b + c, head_dim, first, scores + c);
      } else {
        score_strip<kColumns>(rows, a, b + c, head_dim, first, scores + c);
      }
    }
  }
}

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
  int t = 0;
  do {
    vec right[C];
    for (int j = 0; j < C; ++j) right[j] = load(values + t * head_dim + d + j * kLanes);
    for (int r = 0; r < R; ++r) {
      const vec left = broadcast(weights[r * w.row_stride + t * w.token_stride]);
      for (int j = 0; j < C; ++j) sum[r][j] = fma(left, right[j], sum[r][j]);
    }
  } while (++t < num_tokens);
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
