// Attention backward: two passes, each of which owns what it writes, so that there are no atomics.
//
//   p = 2^(s - maximum) / sum,  delta = sum_d grad_out out,  ds = p (grad_out v' - delta)
//   over key tiles:                               grad_q = scale ds k
//   over query tiles, by the transposed schedule: grad_v = p' grad_out,  grad_k = scale ds' q
//
// with s times scale * log2(e), and the maximum and the sum of the forward: p has its accuracy whatever the size of
// lse. A pair that is not seen has p = ds = 0 and is skipped where an operand is not finite.
#include <cmath>

#include "cpu/simd_math.h"
#include "ops/attention/attention_kernel.h"
#include "ops/attention/tile_mask.h"

namespace lumos::LUMOS_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634;

// One vector of columns: weights = 2^(factor weights - maximum) inverse, slopes = weights (slopes - delta); both 0
// where not seen.
LUMOS_INLINE void softmax_slope(float* weights, float* slopes, float factor, vec maximum, vec inverse, vec delta,
                                uint64_t seen, bool whole) {
  vec p = exp2(load(weights) * factor - maximum) * inverse;
  vec ds = p * (load(slopes) - delta);
  if (!whole) {
    p = select(seen, p, vec{});
    ds = select(seen, ds, vec{});
  }
  store(weights, p);
  store(slopes, ds);
}

LUMOS_INLINE void accumulate(int rows, const TileMask& mask, int first_row, bool skip, const float* weights,
                             const float* values, int head_dim, int num_tokens, float* acc) {
  if (skip) {
    tile_accumulate_masked(rows, mask.rows + first_row, weights, values, head_dim, acc);
  } else {
    tile_accumulate(rows, weights, values, head_dim, num_tokens, acc);
  }
}

// Of each query: maximum, 1 / sum and delta.
struct RowState {
  float *maximum, *inverse, *delta;

  explicit RowState(float* memory, int64_t rows) : maximum(memory), inverse(memory + rows), delta(memory + 2 * rows) {}

  // Rows first .. first + 63 from a query tile; 0 behind its end.
  void pack(const lumos_attention_params& p, const float* all_delta, const Tile& tile, int64_t head, int64_t first) {
    for (int r = 0; r < kTileTokens; ++r) {
      const int64_t token = tile.slot_begin + r, row = token * p.num_heads + head;
      const bool inside = r < tile.num_tokens;
      maximum[first + r] = inside ? p.row_state[2 * row] : 0.0f;
      inverse[first + r] = inside ? 1.0f / p.row_state[2 * row + 1] : 0.0f;
      delta[first + r] = inside ? all_delta[head * p.num_query_tokens + token] : 0.0f;
    }
  }
};

template <class T>
void delta_tokens(const lumos_attention_backward_params& b, int64_t begin, int64_t end, float* delta) {
  // The order of tile_scores: where a query sees one key, out is that v and ds is exactly 0. Several chains side by
  // side.
  constexpr int kChains = 8;
  const auto& p = b.forward;
  for (int64_t head = 0; head < p.num_heads; ++head) {
    for (int64_t token = begin; token < end; token += kChains) {
      const T *grad[kChains], *out[kChains];
      float sum[kChains] = {};
      for (int i = 0; i < kChains; ++i) {
        const int64_t t = token + i < end ? token + i : end - 1;
        grad[i] = query_row<T>(b.grad_out, t, head);
        out[i] = static_cast<const T*>(p.out) + (t * p.num_heads + head) * p.head_dim;
      }
      for (int64_t first = 0; first < p.head_dim; first += kChain) {
        float part[kChains] = {};
        for (int64_t d = first; d < first + kChain; ++d) {
          for (int i = 0; i < kChains; ++i) part[i] = fma(to_float(grad[i][d]), to_float(out[i][d]), part[i]);
        }
        for (int i = 0; i < kChains; ++i) sum[i] += part[i];
      }
      for (int i = 0; i < kChains && token + i < end; ++i) delta[head * p.num_query_tokens + token + i] = sum[i];
    }
  }
}

template <class T>
void grad_q_block(const lumos_attention_backward_params& b, int64_t kv_head, int64_t begin, int64_t end,
                  const float* delta, float* scratch) {
  const auto& p = b.forward;
  const int head_dim = static_cast<int>(p.head_dim);
  const int64_t num_tiles = end - begin, group = p.num_heads / p.num_kv_heads, states = num_tiles * group;
  const int64_t tile_floats = kTileTokens * p.head_dim;
  const float factor = static_cast<float>(p.scale * kLog2E);
  float* q = scratch;                          // [tiles, group, 64, head_dim]
  float* grad_out = q + states * tile_floats;  // [tiles, group, 64, head_dim]
  float* acc = grad_out + states * tile_floats;
  float* k = acc + states * tile_floats;  // [64, head_dim]
  float* k_columns = k + tile_floats;     // [head_dim, 64]
  float* v = k_columns + tile_floats;
  float* v_columns = v + tile_floats;
  RowState row_state(v_columns + tile_floats, states * kTileTokens);

  RunCursor cursors[kMaxBlockTiles];
  for (int64_t i = 0; i < num_tiles; ++i) {
    cursors[i] = RunCursor(p.rows, begin + i);
    const Tile tile = tile_at(p.query_tiles, begin + i);
    for (int64_t h = 0; h < group; ++h) {
      const int64_t state = i * group + h, head = kv_head * group + h;
      pack_queries<T>(p.q, tile, head, head_dim, q + state * tile_floats);
      pack_queries<T>(b.grad_out, tile, head, head_dim, grad_out + state * tile_floats);
      zero_rows(acc + state * tile_floats, 0, head_dim);
      row_state.pack(p, delta, tile, head, state * kTileTokens);
    }
  }

  for (int64_t j = 0; (j = next_tile(cursors, num_tiles, j)) >= 0; ++j) {
    const Tile keys = tile_at(p.key_tiles, j);
    pack_keys<T>(p, p.k, keys, kv_head, head_dim, k);
    transpose(k, keys.num_tokens, head_dim, k_columns);
    pack_keys<T>(p, p.v, keys, kv_head, head_dim, v);
    transpose(v, keys.num_tokens, head_dim, v_columns);
    for (int64_t i = 0; i < num_tiles; ++i) {
      if (!cursors[i].meets(j)) continue;
      const Tile queries = tile_at(p.query_tiles, begin + i);
      TileMask mask;
      mask_by_query(p, queries, keys, cursors[i].full(), mask);
      const bool skip = !mask.whole && !cursors[i].full() && !all_finite(k, head_dim);
      for (int64_t h = 0; h < group; ++h) {
        const int64_t state = i * group + h;
        for (int r = 0; r < queries.num_tokens; r += kRows) {
          const int rows = queries.num_tokens - r < kRows ? queries.num_tokens - r : kRows;
          const int64_t row = state * kTileTokens + r;
          alignas(64) float weights[kRows * kTileTokens], slopes[kRows * kTileTokens];
          tile_scores(rows, q + row * head_dim, k_columns, head_dim, keys.num_tokens, weights);
          tile_scores(rows, grad_out + row * head_dim, v_columns, head_dim, keys.num_tokens, slopes);
          for (int r0 = 0; r0 < rows; ++r0) {
            const uint64_t seen = mask.whole ? 0 : mask.rows[r + r0];
            for (int t = 0; t < keys.num_tokens; t += kLanes) {
              softmax_slope(weights + r0 * kTileTokens + t, slopes + r0 * kTileTokens + t, factor,
                            broadcast(row_state.maximum[row + r0]), broadcast(row_state.inverse[row + r0]),
                            broadcast(row_state.delta[row + r0]), seen >> t, mask.whole);
            }
          }
          accumulate(rows, mask, r, skip, slopes, k, head_dim, keys.num_tokens, acc + row * head_dim);
        }
      }
    }
  }

  for (int64_t state = 0; state < states; ++state) {
    const Tile tile = tile_at(p.query_tiles, begin + state / group);
    const int64_t head = kv_head * group + state % group;
    for (int r = 0; r < tile.num_tokens; ++r) {
      store_row(acc + state * tile_floats + r * head_dim, p.scale, head_dim,
                static_cast<T*>(b.grad_q) + ((tile.slot_begin + r) * p.num_heads + head) * head_dim);
    }
  }
}

template <class T>
void grad_kv_block(const lumos_attention_backward_params& b, int64_t kv_head, int64_t begin, int64_t end,
                   const float* delta, float* scratch) {
  const auto& p = b.forward;
  const int head_dim = static_cast<int>(p.head_dim);
  const int64_t num_tiles = end - begin, group = p.num_heads / p.num_kv_heads, tile_floats = kTileTokens * p.head_dim;
  const float factor = static_cast<float>(p.scale * kLog2E);
  float* k = scratch;  // [tiles, 64, head_dim], and so the next three
  float* v = k + num_tiles * tile_floats;
  float* grad_k = v + num_tiles * tile_floats;
  float* grad_v = grad_k + num_tiles * tile_floats;
  float* q = grad_v + num_tiles * tile_floats;  // [64, head_dim]
  float* q_columns = q + tile_floats;           // [head_dim, 64]
  float* grad_out = q_columns + tile_floats;
  float* grad_out_columns = grad_out + tile_floats;
  RowState column_state(grad_out_columns + tile_floats, kTileTokens);

  RunCursor cursors[kMaxBlockTiles];
  for (int64_t i = 0; i < num_tiles; ++i) {
    cursors[i] = RunCursor(b.columns, begin + i);
    const Tile keys = tile_at(p.key_tiles, begin + i);
    pack_keys<T>(p, p.k, keys, kv_head, head_dim, k + i * tile_floats);
    pack_keys<T>(p, p.v, keys, kv_head, head_dim, v + i * tile_floats);
    zero_rows(grad_k + i * tile_floats, 0, head_dim);
    zero_rows(grad_v + i * tile_floats, 0, head_dim);
  }

  for (int64_t j = 0; (j = next_tile(cursors, num_tiles, j)) >= 0; ++j) {
    const Tile queries = tile_at(p.query_tiles, j);
    for (int64_t h = 0; h < group; ++h) {
      const int64_t head = kv_head * group + h;
      pack_queries<T>(p.q, queries, head, head_dim, q);
      transpose(q, queries.num_tokens, head_dim, q_columns);
      pack_queries<T>(b.grad_out, queries, head, head_dim, grad_out);
      transpose(grad_out, queries.num_tokens, head_dim, grad_out_columns);
      column_state.pack(p, delta, queries, head, 0);
      for (int64_t i = 0; i < num_tiles; ++i) {
        if (!cursors[i].meets(j)) continue;
        const Tile keys = tile_at(p.key_tiles, begin + i);
        TileMask mask;
        mask_by_key(p, queries, keys, cursors[i].full(), mask);
        const bool maybe_skip = !mask.whole && !cursors[i].full();
        const bool skip_q = maybe_skip && !all_finite(q, head_dim);
        const bool skip_grad = maybe_skip && !all_finite(grad_out, head_dim);
        for (int r = 0; r < keys.num_tokens; r += kRows) {
          const int rows = keys.num_tokens - r < kRows ? keys.num_tokens - r : kRows;
          const int64_t row = i * kTileTokens + r;
          alignas(64) float weights[kRows * kTileTokens], slopes[kRows * kTileTokens];
          tile_scores(rows, k + row * head_dim, q_columns, head_dim, queries.num_tokens, weights);
          tile_scores(rows, v + row * head_dim, grad_out_columns, head_dim, queries.num_tokens, slopes);
          for (int r0 = 0; r0 < rows; ++r0) {
            const uint64_t seen = mask.whole ? 0 : mask.rows[r + r0];
            for (int t = 0; t < queries.num_tokens; t += kLanes) {
              softmax_slope(weights + r0 * kTileTokens + t, slopes + r0 * kTileTokens + t, factor,
                            load(column_state.maximum + t), load(column_state.inverse + t),
                            load(column_state.delta + t), seen >> t, mask.whole);
            }
          }
          accumulate(rows, mask, r, skip_grad, weights, grad_out, head_dim, queries.num_tokens,
                     grad_v + row * head_dim);
          accumulate(rows, mask, r, skip_q, slopes, q, head_dim, queries.num_tokens, grad_k + row * head_dim);
        }
      }
    }
  }

  for (int64_t i = 0; i < num_tiles; ++i) {
    const Tile keys = tile_at(p.key_tiles, begin + i);
    for (int r = 0; r < keys.num_tokens; ++r) {
      const int64_t row = ((keys.slot_begin + r) * p.num_kv_heads + kv_head) * head_dim;
      const int64_t from = (i * kTileTokens + r) * head_dim;
      store_row(grad_k + from, p.scale, head_dim, static_cast<T*>(b.grad_k) + row);
      store_row(grad_v + from, 1.0f, head_dim, static_cast<T*>(b.grad_v) + row);
    }
  }
}

}  // namespace

void attention_delta(const lumos_attention_backward_params& params, int64_t begin, int64_t end, float* delta) {
  if (params.forward.dtype == LUMOS_BFLOAT16) {
    delta_tokens<bfloat16>(params, begin, end, delta);
  } else {
    delta_tokens<float>(params, begin, end, delta);
  }
}

void attention_grad_q(const lumos_attention_backward_params& params, int64_t kv_head, int64_t begin, int64_t end,
                      const float* delta, float* scratch) {
  if (params.forward.dtype == LUMOS_BFLOAT16) {
    grad_q_block<bfloat16>(params, kv_head, begin, end, delta, scratch);
  } else {
    grad_q_block<float>(params, kv_head, begin, end, delta, scratch);
  }
}

void attention_grad_kv(const lumos_attention_backward_params& params, int64_t kv_head, int64_t begin, int64_t end,
                       const float* delta, float* scratch) {
  if (params.forward.dtype == LUMOS_BFLOAT16) {
    grad_kv_block<bfloat16>(params, kv_head, begin, end, delta, scratch);
  } else {
    grad_kv_block<float>(params, kv_head, begin, end, delta, scratch);
  }
}

}  // namespace lumos::LUMOS_ISA
