// The two matrix products of attention on tiles in fast memory, blocked over rows.
//
// The order of each sum is fixed: in tile_scores a chain of fma over each 16 of head_dim, then a chain over those; in
// tile_accumulate a chain over the tile's tokens. So its bits depend neither on the row's place, nor on the block, nor
// on the number of tokens of the tile.
#pragma once

#include "cpu/simd.h"
#include "lumos/attention.h"

namespace lumos::LUMOS_ISA {

constexpr int kTileTokens = LUMOS_TILE_TOKENS;
constexpr int kRows = 6;  // rows of a block: kRows * kColumns sums, kColumns operands and a broadcast fit the registers
constexpr int kChain = 16;  // head_dim is a multiple of it; shorter chains round less
constexpr int kColumns = kLanes == 16 ? 4 : 2;

template <int R, int C>
LUMOS_INLINE void tile_scores_columns(const float* a, const float* b, int head_dim, int c, float* scores) {
  for (int first = 0; first < head_dim; first += kChain) {
    vec sum[R][C] = {};
    for (int d = first; d < first + kChain; ++d) {
      vec right[C];
      for (int j = 0; j < C; ++j) right[j] = load(b + d * kTileTokens + c + j * kLanes);
      for (int r = 0; r < R; ++r) {
        const vec left = broadcast(a[r * head_dim + d]);
        for (int j = 0; j < C; ++j) sum[r][j] = fma(left, right[j], sum[r][j]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < C; ++j) {
        float* score = scores + r * kTileTokens + c + j * kLanes;
        store(score, first == 0 ? sum[r][j] : load(score) + sum[r][j]);
      }
    }
  }
}

// scores[r, c] = sum_d a[r, d] b[d, c];  a [R, head_dim], b [head_dim, 64], scores [R, 64]. Columns from num_columns
// on, rounded up to whole vectors, are left alone.
template <int R>
LUMOS_INLINE void tile_scores_rows(const float* a, const float* b, int head_dim, int num_columns, float* scores) {
  for (int c = 0; c < num_columns; c += kColumns * kLanes) {
    if (num_columns - c <= kLanes) {
      tile_scores_columns<R, 1>(a, b, head_dim, c, scores);
    } else if (num_columns - c <= 2 * kLanes) {
      tile_scores_columns<R, 2>(a, b, head_dim, c, scores);
    } else {
      tile_scores_columns<R, kColumns>(a, b, head_dim, c, scores);
    }
  }
}

// acc[r, :] += sum_t weights[r, t] values[t, :];  weights [R, 64], values [num_tokens, head_dim], acc [R, head_dim].
template <int R, int C>
LUMOS_INLINE void tile_accumulate_columns(const float* weights, const float* values, int head_dim, int num_tokens,
                                          int d, float* acc) {
  vec sum[R][C];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < C; ++j) sum[r][j] = load(acc + r * head_dim + d + j * kLanes);
  }
  for (int t = 0; t < num_tokens; ++t) {
    vec right[C];
    for (int j = 0; j < C; ++j) right[j] = load(values + t * head_dim + d + j * kLanes);
    for (int r = 0; r < R; ++r) {
      const vec left = broadcast(weights[r * kTileTokens + t]);
      for (int j = 0; j < C; ++j) sum[r][j] = fma(left, right[j], sum[r][j]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < C; ++j) store(acc + r * head_dim + d + j * kLanes, sum[r][j]);
  }
}

template <int R>
LUMOS_INLINE void tile_accumulate_rows(const float* weights, const float* values, int head_dim, int num_tokens,
                                       float* acc) {
  int d = 0;
  for (; d + kColumns * kLanes <= head_dim; d += kColumns * kLanes) {
    tile_accumulate_columns<R, kColumns>(weights, values, head_dim, num_tokens, d, acc);
  }
  for (; d < head_dim; d += 2 * kLanes) tile_accumulate_columns<R, 2>(weights, values, head_dim, num_tokens, d, acc);
}

// The block of `rows` rows, 1 to kRows.
static inline void tile_scores(int rows, const float* a, const float* b, int head_dim, int num_columns, float* scores) {
  switch (rows) {
    case 1: return tile_scores_rows<1>(a, b, head_dim, num_columns, scores);
    case 2: return tile_scores_rows<2>(a, b, head_dim, num_columns, scores);
    case 3: return tile_scores_rows<3>(a, b, head_dim, num_columns, scores);
    case 4: return tile_scores_rows<4>(a, b, head_dim, num_columns, scores);
    case 5: return tile_scores_rows<5>(a, b, head_dim, num_columns, scores);
    default: return tile_scores_rows<kRows>(a, b, head_dim, num_columns, scores);
  }
}

static inline void tile_accumulate(int rows, const float* weights, const float* values, int head_dim, int num_tokens,
                                   float* acc) {
  switch (rows) {
    case 1: return tile_accumulate_rows<1>(weights, values, head_dim, num_tokens, acc);
    case 2: return tile_accumulate_rows<2>(weights, values, head_dim, num_tokens, acc);
    case 3: return tile_accumulate_rows<3>(weights, values, head_dim, num_tokens, acc);
    case 4: return tile_accumulate_rows<4>(weights, values, head_dim, num_tokens, acc);
    case 5: return tile_accumulate_rows<5>(weights, values, head_dim, num_tokens, acc);
    default: return tile_accumulate_rows<kRows>(weights, values, head_dim, num_tokens, acc);
  }
}

// tile_accumulate over the tokens of each row's mask only, for values that may not be finite where they are not seen. A
// skipped token and one of weight 0 leave the same sum, but for the sign of a zero, which store_rows removes.
static inline void tile_accumulate_masked(int rows, const uint64_t* masks, const float* weights, const float* values,
                                          int head_dim, float* acc) {
  for (int r = 0; r < rows; ++r) {
    for (int t = 0; t < kTileTokens; ++t) {
      if (!(masks[r] >> t & 1)) continue;
      const vec left = broadcast(weights[r * kTileTokens + t]);
      for (int d = 0; d < head_dim; d += kLanes) {
        store(acc + r * head_dim + d, fma(left, load(values + t * head_dim + d), load(acc + r * head_dim + d)));
      }
    }
  }
}

}  // namespace lumos::LUMOS_ISA
