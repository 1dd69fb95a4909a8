// Attention forward: online softmax over key tiles, for a block of query tiles that share each packed key tile.
//
// Scores are times scale * log2(e): base-2 logarithms. The running maximum rises, and the sums are rescaled, for each
// row by itself.
#include <cmath>

#include "cpu/simd_math.h"
#include "ops/attention/attention_kernel.h"
#include "ops/attention/tile_mask.h"

namespace lumos::LUMOS_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// One row of scores becomes weights 2^(score - maximum), 0 where not seen; its sums are rescaled when the maximum
// rises. The columns behind the first `Vectors` vectors are not seen and left alone.
template <int Vectors>
LUMOS_INLINE void softmax_row(float* scores, float factor, uint64_t seen, bool whole, int head_dim, float* maximum,
                              float* sum, float* acc) {
  vec x[Vectors];
  for (int j = 0; j < Vectors; ++j) {
    x[j] = load(scores + j * kLanes) * factor;
    if (!whole) x[j] = select(seen >> (j * kLanes), x[j], broadcast(-INFINITY));
  }
  vec top = x[0];
  for (int j = 1; j < Vectors; ++j) top = max(x[j], top);
  const float tile_maximum = horizontal_max(top);
  if (tile_maximum > *maximum) {
    const float shrink = exp2(broadcast(*maximum - tile_maximum))[0];
    for (int d = 0; d < head_dim; d += kLanes) store(acc + d, load(acc + d) * shrink);
    *sum *= shrink;
    *maximum = tile_maximum;
  }
  vec total{};
  for (int j = 0; j < Vectors; ++j) {
    x[j] = exp2(x[j] - *maximum);
    if (!whole) x[j] = select(seen >> (j * kLanes), x[j], vec{});
    store(scores + j * kLanes, x[j]);
    total += x[j];
  }
  *sum += horizontal_sum(total);
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
    rows_ = v_ + tile_floats;
    maximum_ = rows_ + tile_floats;
    sum_ = maximum_ + states * kTileTokens;
    for (int64_t state = 0; state < states; ++state) {
      pack_queries<T>(p_.q, query_tile(state), query_head(state), head_dim_, q_ + state * tile_floats);
      zero_rows(acc_ + state * tile_floats, 0, head_dim_);
      for (int r = 0; r < kTileTokens; ++r) {
        maximum_[state * kTileTokens + r] = -INFINITY;
        sum_[state * kTileTokens + r] = 0.0f;
      }
    }
  }

  void run() {
    RunCursor cursors[kMaxBlockTiles];
    for (int64_t i = 0; i < num_tiles_; ++i) cursors[i] = RunCursor(p_.rows, begin_ + i);
    for (int64_t j = 0; (j = next_tile(cursors, num_tiles_, j)) >= 0; ++j) {
      const Tile keys = tile_at(p_.key_tiles, j);
      pack_keys<T>(p_, p_.k, keys, kv_head_, head_dim_, rows_);
      transpose(rows_, keys.num_tokens, head_dim_, k_);
      pack_keys<T>(p_, p_.v, keys, kv_head_, head_dim_, v_);
      for (int64_t i = 0; i < num_tiles_; ++i) {
        if (!cursors[i].meets(j)) continue;
        TileMask mask;
        mask_by_query(p_, tile_at(p_.query_tiles, begin_ + i), keys, cursors[i].full(), mask);
        const bool skip = !mask.whole && !cursors[i].full() && !all_finite(v_, head_dim_);
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
    alignas(64) float scores[kRows * kTileTokens];
    for (int r = 0; r < num_rows; r += kRows) {
      const int rows = num_rows - r < kRows ? num_rows - r : kRows;
      tile_scores(rows, q + r * head_dim_, k_, head_dim_, keys.num_tokens, scores);
      for (int i = 0; i < rows; ++i) {
        float* row = scores + i * kTileTokens;
        if (!mask.whole && mask.rows[r + i] == 0) {
          for (int t = 0; t < kTileTokens; t += kLanes) store(row + t, vec{});
          continue;
        }
        const uint64_t seen = mask.whole ? 0 : mask.rows[r + i];
        float* maximum = &maximum_[state * kTileTokens + r + i];
        float* sum = &sum_[state * kTileTokens + r + i];
        float* out = acc + (r + i) * head_dim_;
        if (keys.num_tokens <= kTileTokens / 4) {
          softmax_row<kTileTokens / 4 / kLanes>(row, factor_, seen, mask.whole, head_dim_, maximum, sum, out);
        } else {
          softmax_row<kTileTokens / kLanes>(row, factor_, seen, mask.whole, head_dim_, maximum, sum, out);
        }
      }
      if (skip) {
        tile_accumulate_masked(rows, mask.rows + r, scores, v_, head_dim_, acc + r * head_dim_);
      } else {
        tile_accumulate(rows, scores, v_, head_dim_, keys.num_tokens, acc + r * head_dim_);
      }
    }
  }

  void finish(int64_t state) {
    const Tile tile = query_tile(state);
    for (int r = 0; r < tile.num_tokens; ++r) {
      const float maximum = maximum_[state * kTileTokens + r], sum = sum_[state * kTileTokens + r];
      const float* acc = acc_ + (state * kTileTokens + r) * head_dim_;
      const int64_t row = (tile.slot_begin + r) * p_.num_heads + query_head(state);
      const bool nothing = sum == 0.0f;  // a row that sees a key has a weight of 1
      p_.lse[row] = nothing ? -INFINITY : static_cast<float>((maximum + log2(static_cast<double>(sum))) * kLn2);
      if (p_.row_state) {
        p_.row_state[2 * row] = maximum;
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
  const float factor_;     // scale log2(e)
  float *q_, *acc_;        // [tiles, group, 64, head_dim]
  float *k_, *v_, *rows_;  // K transposed [head_dim, 64]; V, and K before transposition, [64, head_dim]
  float *maximum_, *sum_;  // [tiles, group, 64]
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
