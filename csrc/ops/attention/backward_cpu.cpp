// Backward of attention by vectors of float, for fp32 and bf16 in memory.
//
// Keys are rows and queries columns: s' = k q', dp' = v grad_out', then grad_v += p' grad_out, grad_k += ds' q and,
// read the other way round, grad_q += ds k. A pair that is not seen has p = ds = 0 and is skipped where an operand is
// not finite.
#include <cmath>

#include "cpu/simd_math.h"
#include "ops/attention/backward_walk.h"

namespace lumos::LUMOS_ISA {
namespace {

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

template <class T>
class VectorBlock {
 public:
  VectorBlock(const lumos_attention_backward_params& params, int64_t kv_head, int64_t num_tiles, const float* delta,
              float* scratch)
      : b_(params),
        p_(params.forward),
        kv_head_(kv_head),
        head_dim_(static_cast<int>(p_.head_dim)),
        factor_(static_cast<float>(p_.scale * kLog2E)),
        delta_(delta) {
    const auto take = [&](int64_t tiles, int64_t columns) {
      float* const memory = scratch;
      scratch += tiles * kTileTokens * columns;
      return memory;
    };
    for (float** side : {&k_, &v_, &grad_k_, &grad_v_}) *side = take(num_tiles, head_dim_);
    slopes_ = take(num_tiles, kTileTokens);
    for (float** side : {&q_, &q_columns_, &grad_out_, &grad_out_columns_}) *side = take(1, head_dim_);
    weights_ = take(1, kTileTokens);
  }

  void pack_keys(int64_t i, const Tile& keys) {
    keys_[i] = keys;
    ::lumos::LUMOS_ISA::pack_keys<T>(p_, p_.k, keys, kv_head_, head_dim_, tile(k_, i));
    ::lumos::LUMOS_ISA::pack_keys<T>(p_, p_.v, keys, kv_head_, head_dim_, tile(v_, i));
    zero_rows(tile(grad_k_, i), 0, head_dim_);
    zero_rows(tile(grad_v_, i), 0, head_dim_);
  }

  void pack_queries(const Tile& queries, int64_t head) {
    queries_ = queries;
    ::lumos::LUMOS_ISA::pack_queries<T>(p_.q, queries, head, head_dim_, q_);
    transpose([&](int t) { return q_ + t * head_dim_; }, queries.num_tokens, head_dim_, q_columns_);
    ::lumos::LUMOS_ISA::pack_queries<T>(b_.grad_out, queries, head, head_dim_, grad_out_);
    transpose([&](int t) { return grad_out_ + t * head_dim_; }, queries.num_tokens, head_dim_, grad_out_columns_);
    terms_.read(p_, delta_, queries, head);
  }

  void add_grad_kv(const TilePair& pair) {
    const int rows = keys_[pair.key].num_tokens, columns = queries_.num_tokens;
    float* slopes = slopes_ + pair.key * kTileTokens * kTileTokens;
    tile_scores(rows, tile(k_, pair.key), q_columns_, head_dim_, columns, weights_);
    tile_scores(rows, tile(v_, pair.key), grad_out_columns_, head_dim_, columns, slopes);
    for (int r = 0; r < rows; ++r) {
      const uint64_t seen = pair.mask.whole ? 0 : pair.mask.rows[r];
      for (int t = 0; t < columns; t += kLanes) {
        softmax_slope(weights_ + r * kTileTokens + t, slopes + r * kTileTokens + t, factor_, load(terms_.maximum + t),
                      load(terms_.inverse + t), load(terms_.delta + t), seen >> t, pair.mask.whole);
      }
    }
    accumulate(pair, {weights_, kTileTokens, 1}, grad_out_, tile(grad_v_, pair.key));
    accumulate(pair, {slopes, kTileTokens, 1}, q_, tile(grad_k_, pair.key));
  }

  // sums [64, head_dim]
  void add_grad_q(const TilePair* pairs, int num_pairs, float* sums) {
    for (int n = 0; n < num_pairs; ++n) {
      const int64_t i = pairs[n].key;
      const TileMask& mask = pairs[n].mask;
      const Weights slopes{slopes_ + i * kTileTokens * kTileTokens, 1, kTileTokens};
      if (mask.whole || all_finite(tile(k_, i), head_dim_)) {
        accumulate_rows(slopes, queries_.num_tokens, tile(k_, i), head_dim_, keys_[i].num_tokens, sums);
      } else {
        accumulate_seen_rows(
            slopes, queries_.num_tokens, tile(k_, i), head_dim_, keys_[i].num_tokens,
            [&](int r, int t) { return mask.rows[t] >> r & 1; }, sums);
      }
    }
  }

  void store_grad_kv(int64_t i) {
    for (int r = 0; r < keys_[i].num_tokens; ++r) {
      const int64_t row = ((keys_[i].slot_begin + r) * p_.num_kv_heads + kv_head_) * head_dim_;
      store_row(tile(grad_k_, i) + r * head_dim_, p_.scale, head_dim_, static_cast<T*>(b_.grad_k) + row);
      store_row(tile(grad_v_, i) + r * head_dim_, 1.0f, head_dim_, static_cast<T*>(b_.grad_v) + row);
    }
  }

 private:
  float* tile(float* side, int64_t i) const { return side + i * kTileTokens * head_dim_; }

  void accumulate(const TilePair& pair, const Weights& weights, const float* values, float* acc) const {
    const int rows = keys_[pair.key].num_tokens, columns = queries_.num_tokens;
    if (pair.mask.whole || all_finite(values, head_dim_)) {
      accumulate_rows(weights, rows, values, head_dim_, columns, acc);
    } else {
      accumulate_seen_rows(
          weights, rows, values, head_dim_, columns, [&](int r, int t) { return pair.mask.rows[r] >> t & 1; }, acc);
    }
  }

  const lumos_attention_backward_params& b_;
  const lumos_attention_params& p_;
  const int64_t kv_head_;
  const int head_dim_;
  const float factor_;  // scale log2(e)
  const float* const delta_;
  float *k_, *v_, *grad_k_, *grad_v_;     // [tiles, 64, head_dim]
  float* slopes_;                         // ds' of the query tile at hand [tiles, 64, 64]
  float *q_, *grad_out_;                  // [64, head_dim]
  float *q_columns_, *grad_out_columns_;  // [head_dim, 64]
  float* weights_;                        // p' [64, 64]
  QueryTerms terms_;
  Tile keys_[kMaxBlockTiles], queries_;
};

template <class T>
void backward_block(const lumos_attention_backward_params& b, int64_t kv_head, int64_t begin, int64_t end,
                    const BackwardSums& sums, BlockTurn& turn, float* scratch) {
  VectorBlock<T> block(b, kv_head, end - begin, sums.delta, scratch);
  walk_backward(b, kv_head, begin, end, sums, turn, block);
  for (int64_t i = 0; i < end - begin; ++i) block.store_grad_kv(i);
}

template <class T>
void delta_tokens(const lumos_attention_backward_params& b, int64_t tile, float* delta) {
  // The order of tile_scores: where a query sees one key, out is that v and ds is exactly 0. Several chains side by
  // side.
  constexpr int kChains = 8;
  const auto& p = b.forward;
  const Tile queries = tile_at(p.query_tiles, tile);
  const int64_t end = queries.slot_begin + queries.num_tokens;
  const int head_dim = static_cast<int>(p.head_dim);
  for (int64_t head = 0; head < p.num_heads; ++head) {
    for (int64_t token = queries.slot_begin; token < end; token += kChains) {
      const T *grad[kChains], *out[kChains];
      float sum[kChains] = {};
      for (int i = 0; i < kChains; ++i) {
        const int64_t t = token + i < end ? token + i : end - 1;
        grad[i] = query_row<T>(b.grad_out, t, head);
        out[i] = static_cast<const T*>(p.out) + (t * p.num_heads + head) * p.head_dim;
      }
      for (int first = 0; first < head_dim; first += kChain) {
        float part[kChains] = {};
        for (int d = first; d < chain_end(first, head_dim); ++d) {
          for (int i = 0; i < kChains; ++i) part[i] = fma(to_float(grad[i][d]), to_float(out[i][d]), part[i]);
        }
        for (int i = 0; i < kChains; ++i) sum[i] += part[i];
      }
      for (int i = 0; i < kChains && token + i < end; ++i) delta[head * p.num_query_tokens + token + i] = sum[i];
    }
  }
}

template <class T>
void store_grad_q(const lumos_attention_backward_params& b, int64_t tile, const BackwardSums& sums) {
  const auto& p = b.forward;
  const Tile queries = tile_at(p.query_tiles, tile);
  const int head_dim = static_cast<int>(p.head_dim);
  for (int64_t head = 0; head < p.num_heads; ++head) {
    const float* rows = sums.grad_q + (tile * p.num_heads + head) * sums.tile_floats;
    for (int r = 0; r < queries.num_tokens; ++r) {
      store_row(rows + r * head_dim, p.scale, head_dim,
                static_cast<T*>(b.grad_q) + ((queries.slot_begin + r) * p.num_heads + head) * head_dim);
    }
  }
}

}  // namespace

void attention_delta(const lumos_attention_backward_params& params, int64_t tile, const BackwardSums& sums) {
  if (params.forward.dtype == LUMOS_BFLOAT16) {
    delta_tokens<bfloat16>(params, tile, sums.delta);
  } else {
    delta_tokens<float>(params, tile, sums.delta);
  }
}

void attention_backward_block(const lumos_attention_backward_params& params, int64_t kv_head, int64_t begin,
                              int64_t end, const BackwardSums& sums, BlockTurn& turn, float* scratch) {
  if (params.forward.dtype == LUMOS_BFLOAT16) {
    backward_block<bfloat16>(params, kv_head, begin, end, sums, turn, scratch);
  } else {
    backward_block<float>(params, kv_head, begin, end, sums, turn, scratch);
  }
}

void attention_store_grad_q(const lumos_attention_backward_params& params, int64_t tile, const BackwardSums& sums) {
  if (params.forward.dtype == LUMOS_BFLOAT16) {
    store_grad_q<bfloat16>(params, tile, sums);
  } else {
    store_grad_q<float>(params, tile, sums);
  }
}

}  // namespace lumos::LUMOS_ISA
