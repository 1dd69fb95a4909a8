// Attention forward: online softmax over key tiles, for a block of query tiles that share each packed key tile.
//
// Scores are times scale * log2(e): base-2 logarithms. A row's reference is the greatest score of the first tile in
// which it sees a key. It rises, and the row's sums are rescaled, only where the weights of a tile sum to more than
// kLimit in a lane: a decision of the row alone.
#include <algorithm>
#include <cmath>

#include "cpu/simd_math.h"
#include "ops/attention/attention_kernel.h"
#include "ops/attention/tile_mask.h"

namespace lumos::LUMOS_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
constexpr float kLimit = 256.0f;

// One row of scores becomes weights 2^(score - reference), 0 where not seen, whose sums are added to `sum`, each lane
// by itself. The columns behind the first `Vectors` vectors are not seen and left alone.
template <int Vectors, bool Whole>
LUMOS_INLINE void softmax_row(float* scores, float factor, uint64_t seen, int head_dim, float* reference, float* sum,
                              float* acc) {
  vec x[Vectors], weights[Vectors], total;
  const auto weigh = [&] {
    total = vec{};
    for (int j = 0; j < Vectors; ++j) {
      weights[j] = exp2(x[j] - *reference);
      if (!Whole) weights[j] = select(seen >> (j * kLanes), weights[j], vec{});
      total += weights[j];
    }
  };
  for (int j = 0; j < Vectors; ++j) x[j] = load(scores + j * kLanes) * factor;
  weigh();
  if (!all_at_most(total, kLimit)) {
    vec greatest = broadcast(-INFINITY);
    for (int j = 0; j < Vectors; ++j) {
      greatest = max(Whole ? x[j] : select(seen >> (j * kLanes), x[j], broadcast(-INFINITY)), greatest);
    }
    const float tile_greatest = horizontal_max(greatest);
    if (tile_greatest > *reference) {
      const float shrink = exp2(broadcast(*reference - tile_greatest))[0];
      for (int d = 0; d < head_dim; d += kLanes) store(acc + d, load(acc + d) * shrink);
      store(sum, load(sum) * shrink);
      *reference = tile_greatest;
    }
    weigh();
  }
  for (int j = 0; j < Vectors; ++j) store(scores + j * kLanes, weights[j]);
  store(sum, load(sum) + total);
}

template <class T>
class ForwardBlock {
 public:
  ForwardBlock(const lumos_attention_params& params, int64_t kv_head, int64_t begin, int64_t end, float* scratch)
      : p_(params),
        kv_head_(kv_head),
        begin_(begin),
        num_tiles_(end - begin),
        group_(params.num_heads / params.num_kv_heads),
        head_dim_(static_cast<int>(params.head_dim)),
        factor_(static_cast<float>(params.scale * kLog2E)) {
    const int64_t states = num_tiles_ * group_, tile_floats = kTileTokens * params.head_dim;
    q_ = scratch;
    acc_ = q_ + states * tile_floats;
    k_ = acc_ + states * tile_floats;
    v_ = k_ + tile_floats;
    scores_ = v_ + tile_floats;
    reference_ = scores_ + kTileTokens * kTileTokens;
    sum_ = reference_ + states * kTileTokens;
    for (int64_t state = 0; state < states; ++state) {
      pack_queries<T>(p_.q, query_tile(state), query_head(state), head_dim_, q_ + state * tile_floats);
      zero_rows(acc_ + state * tile_floats, 0, head_dim_);
      for (int r = 0; r < kTileTokens; ++r) {
        reference_[state * kTileTokens + r] = -INFINITY;
        store(sum_ + (state * kTileTokens + r) * kLanes, vec{});
      }
    }
  }

  void run() {
    RunCursor cursors[kMaxBlockTiles];
    for (int64_t i = 0; i < num_tiles_; ++i) cursors[i] = RunCursor(p_.rows, begin_ + i);
    for (int64_t j = 0; (j = next_tile(cursors, num_tiles_, j)) >= 0; ++j) {
      const Tile keys = tile_at(p_.key_tiles, j);
      transpose([&](int t) { return key_row<T>(p_, p_.k, keys.sequence, keys.slot_begin + t, kv_head_); },
                keys.num_tokens, head_dim_, k_);
      pack_keys<T>(p_, p_.v, keys, kv_head_, head_dim_, v_);
      for (int64_t i = 0; i < num_tiles_; ++i) {
        if (!cursors[i].meets(j)) continue;
        TileMask mask;
        mask_by_query(p_, tile_at(p_.query_tiles, begin_ + i), keys, cursors[i].full(), mask);
        const bool skip = !mask.whole && !cursors[i].full() && !all_finite(v_, head_dim_);
        if (j + 1 < p_.key_tiles.num_tiles) prefetch(tile_at(p_.key_tiles, j + 1), i);
        for (int64_t h = 0; h < group_; ++h) visit(i * group_ + h, keys, mask, skip);
      }
    }
    for (int64_t state = 0; state < num_tiles_ * group_; ++state) finish(state);
  }

 private:
  Tile query_tile(int64_t state) const { return tile_at(p_.query_tiles, begin_ + state / group_); }
  int64_t query_head(int64_t state) const { return kv_head_ * group_ + state % group_; }

  void visit(int64_t state, const Tile& keys, const TileMask& mask, bool skip) {
    const int num_rows = query_tile(state).num_tokens;
    const float* q = q_ + state * kTileTokens * head_dim_;
    float* acc = acc_ + state * kTileTokens * head_dim_;
    tile_scores(num_rows, q, k_, head_dim_, keys.num_tokens, scores_);
    constexpr int kFew = kTileTokens / 4;
    if (mask.whole) {
      softmax<kTileTokens / kLanes, true>(state, num_rows, mask);
    } else if (keys.num_tokens <= kFew) {
      softmax<kFew / kLanes, false>(state, num_rows, mask);
    } else {
      softmax<kTileTokens / kLanes, false>(state, num_rows, mask);
    }
    const Weights weights{scores_, kTileTokens, 1};
    if (skip) {
      accumulate_seen_rows(
          weights, num_rows, v_, head_dim_, keys.num_tokens, [&](int r, int t) { return mask.rows[r] >> t & 1; }, acc);
    } else {
      accumulate_rows(weights, num_rows, v_, head_dim_, keys.num_tokens, acc);
    }
  }

  // A share of the next key tile, so that it comes from memory behind the products.
  void prefetch(const Tile& keys, int64_t i) const {
    const int64_t end = std::min<int64_t>((i + 1) * kTileTokens / num_tiles_, keys.num_tokens);
    for (int64_t t = i * kTileTokens / num_tiles_; t < end; ++t) {
      for (const lumos_tokens* tokens : {&p_.k, &p_.v}) {
        const T* row = key_row<T>(p_, *tokens, keys.sequence, keys.slot_begin + t, kv_head_);
        for (int d = 0; d < head_dim_; d += 64 / sizeof(T)) __builtin_prefetch(row + d, 0, 2);
      }
    }
  }

  template <int Vectors, bool Whole>
  void softmax(int64_t state, int num_rows, const TileMask& mask) {
    for (int r = 0; r < num_rows; ++r) {
      const int64_t row = state * kTileTokens + r;
      softmax_row<Vectors, Whole>(scores_ + r * kTileTokens, factor_, Whole ? 0 : mask.rows[r], head_dim_,
                                  reference_ + row, sum_ + row * kLanes, acc_ + row * head_dim_);
    }
  }

  void finish(int64_t state) {
    const Tile tile = query_tile(state);
    for (int r = 0; r < tile.num_tokens; ++r) {
      const float reference = reference_[state * kTileTokens + r];
      const float sum = horizontal_sum(load(sum_ + (state * kTileTokens + r) * kLanes));
      const float* acc = acc_ + (state * kTileTokens + r) * head_dim_;
      const int64_t row = (tile.slot_begin + r) * p_.num_heads + query_head(state);
      const bool nothing = sum == 0.0f;  // a row that sees a key has had a weight of 1
      p_.lse[row] = nothing ? -INFINITY : static_cast<float>((reference + log2(static_cast<double>(sum))) * kLn2);
      if (p_.row_state) {
        p_.row_state[2 * row] = reference;
        p_.row_state[2 * row + 1] = sum;
      }
      T* out = static_cast<T*>(p_.out) + row * head_dim_;
      for (int d = 0; d < head_dim_; d += kLanes) {
        store(out + d, nothing ? vec{} : load(acc + d) / broadcast(sum) + 0.0f);
      }
    }
  }

  const lumos_attention_params& p_;
  const int64_t kv_head_, begin_, num_tiles_, group_;
  const int head_dim_;
  const float factor_;  // scale log2(e)
  float *q_, *acc_;     // [tiles, group, 64, head_dim]
  float *k_, *v_;       // K transposed [head_dim, 64], V [64, head_dim]
  float* scores_;       // [64, 64], then weights
  float* reference_;    // [tiles, group, 64]
  float* sum_;          // [tiles, group, 64, kLanes]: of each lane
};

}  // namespace

void attention_forward(const lumos_attention_params& params, int64_t kv_head, int64_t begin, int64_t end,
                       float* scratch) {
  if (params.dtype == LUMOS_BFLOAT16) {
    ForwardBlock<bfloat16>(params, kv_head, begin, end, scratch).run();
  } else {
    ForwardBlock<float>(params, kv_head, begin, end, scratch).run();
  }
}

}  // namespace lumos::LUMOS_ISA
