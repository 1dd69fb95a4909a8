// Backward of attention for bf16 by tiles (AMX): the plan of backward_cpu.cpp on quads of 32 x 32, whose sums fill four
// tile registers.
//
//   s' = k q', dp' = v grad_out'          left: rows of k, v; right: pairs of dimensions of q, grad_out
//   grad_v += p' grad_out, grad_k += ds' q  left: rows of p', ds'; right: pairs of rows of grad_out, q
//   grad_q' += k' ds'                     left: rows of k';  right: pairs of rows of ds'
//
// 0 times NaN is NaN: rows that are not finite are zeros where they are summed over, and are added one by one, for
// those that see them.
#include <algorithm>

#include "cpu/amx_quad.h"
#include "cpu/short_exp2.h"
#include "ops/attention/backward_walk.h"

namespace lumos::LUMOS_ISA {
namespace {

LUMOS_INLINE __m512 floats(const float* p) { return _mm512_loadu_ps(p); }

LUMOS_INLINE __m512i rounded(__m512 first, __m512 second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }

// Rows of a tile; zeros behind its end.
struct TileRowPointers {
  const bfloat16* rows[kTileTokens];

  TileRowPointers(const lumos_tokens& tokens, const Tile& tile, int64_t head) {
    for (int t = 0; t < kTileTokens; ++t) {
      rows[t] = t < tile.num_tokens ? query_row<bfloat16>(tokens, tile.slot_begin + t, head) : zeros();
    }
  }

  // Bit t: row t holds NaN or infinity.
  uint64_t not_finite(int head_dim) const {
    uint64_t bits = 0;
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    for (int t = 0; t < kTileTokens; ++t) {
      __mmask32 found = 0;
      for (int d = 0; d < head_dim; d += kTileSum) {
        found |= _mm512_cmpeq_epi16_mask(_mm512_and_si512((__m512i)load_dwords(rows[t] + d), exponent), exponent);
      }
      bits |= static_cast<uint64_t>(found != 0) << t;
    }
    return bits;
  }

  void replace_by_zeros(uint64_t tokens) {
    for (; tokens; tokens &= tokens - 1) rows[__builtin_ctzll(tokens)] = zeros();
  }

  static const bfloat16* zeros() {
    alignas(64) static const bfloat16 row[LUMOS_MAX_HEAD_DIM] = {};
    return row;
  }
};

// [tokens / 16, head_dim / 32] tiles of dimension pairs, in pairs of token groups: [2, head_dim / 32, 2].
void pack_dimensions(const TileRowPointers& side, int num_tokens, int head_dim, bfloat16* tiles) {
  for (int t = 0; t < num_tokens; t += kQuad) {
    for (int d = 0; d < head_dim; d += kTileSum, tiles += 2 * kTileElements) {
      pack_dimension_pairs(side.rows + t, d, tiles);
      pack_dimension_pairs(side.rows + t + kTileRows, d, tiles + kTileElements);
    }
  }
}

// [tokens / 32, head_dim / 16] tiles of row pairs.
void pack_tokens(const TileRowPointers& side, int num_tokens, int head_dim, bfloat16* tiles) {
  for (int t = 0; t < num_tokens; t += kTileSum) {
    for (int d = 0; d < head_dim; d += kTileSum, tiles += 2 * kTileElements) pack_row_pairs(side.rows + t, d, tiles);
  }
}

void pack_rows(const TileRowPointers& side, int head_dim, bfloat16* rows) {
  for (int t = 0; t < kTileTokens; ++t) {
    for (int d = 0; d < head_dim; d += kTileSum) store_dwords(rows + t * head_dim + d, load_dwords(side.rows[t] + d));
  }
}

// columns[d, t] = rows[t, d];  columns [head_dim, 64]
void pack_columns(const TileRowPointers& side, int head_dim, bfloat16* columns) {
  alignas(64) uint16_t even[32];
  for (int i = 0; i < 32; ++i) even[i] = static_cast<uint16_t>(2 * i);
  const __m512i evens = _mm512_load_si512(even), odds = _mm512_add_epi16(evens, _mm512_set1_epi16(1));
  for (int t = 0; t < kTileTokens; t += kQuad) {
    for (int d = 0; d < head_dim; d += kTileSum) {
      alignas(64) bfloat16 pairs[2 * kTileElements];
      pack_dimension_pairs(side.rows + t, d, pairs);
      pack_dimension_pairs(side.rows + t + kTileRows, d, pairs + kTileElements);
      for (int i = 0; i < kTileRows; ++i) {
        const __m512i a = (__m512i)load_dwords(pairs + i * kTileSum);
        const __m512i b = (__m512i)load_dwords(pairs + kTileElements + i * kTileSum);
        bfloat16* out = columns + (d + 2 * i) * kTileTokens + t;
        store_dwords(out, (ivec)_mm512_permutex2var_epi16(a, evens, b));
        store_dwords(out + kTileTokens, (ivec)_mm512_permutex2var_epi16(a, odds, b));
      }
    }
  }
}

class TileBlock {
 public:
  TileBlock(const lumos_attention_backward_params& params, int64_t kv_head, int64_t num_tiles, const float* delta,
            float* scratch)
      : b_(params),
        p_(params.forward),
        kv_head_(kv_head),
        head_dim_(static_cast<int>(p_.head_dim)),
        factor_(static_cast<float>(p_.scale * kLog2E)),
        delta_(delta) {
    for (float** side : {&grad_k_, &grad_v_}) *side = take<float>(&scratch, num_tiles, head_dim_);
    for (bfloat16** side : {&k_, &v_, &k_columns_}) *side = take<bfloat16>(&scratch, num_tiles, head_dim_);
    slope_pairs_ = take<bfloat16>(&scratch, num_tiles, kTileTokens);
    for (bfloat16** side : {&q_dimensions_, &q_tokens_, &grad_out_dimensions_, &grad_out_tokens_}) {
      *side = take<bfloat16>(&scratch, 1, head_dim_);
    }
    weights_ = take<bfloat16>(&scratch, 1, kTileTokens);
    slopes_ = take<bfloat16>(&scratch, 1, kTileTokens);
  }

  void pack_keys(int64_t i, const Tile& keys) {
    keys_[i] = keys;
    TileRowPointers k(p_.k, keys, kv_head_);
    pack_rows(k, head_dim_, tile(k_, i));
    pack_rows({p_.v, keys, kv_head_}, head_dim_, tile(v_, i));
    k_not_finite_[i] = k.not_finite(head_dim_);
    k.replace_by_zeros(k_not_finite_[i]);
    pack_columns(k, head_dim_, tile(k_columns_, i));
    zero_rows(tile(grad_k_, i), 0, head_dim_);
    zero_rows(tile(grad_v_, i), 0, head_dim_);
  }

  void pack_queries(const Tile& queries, int64_t head) {
    queries_ = queries;
    head_ = head;
    q_not_finite_ = pack_side(p_.q, q_dimensions_, q_tokens_);
    grad_out_not_finite_ = pack_side(b_.grad_out, grad_out_dimensions_, grad_out_tokens_);
    terms_.read(p_, delta_, queries, head);
  }

  void add_grad_kv(const TilePair& pair) {
    const int64_t i = pair.key;
    for (int key = 0; key < keys_[i].num_tokens; key += kQuad) {
      for (int query = 0; query < queries_.num_tokens; query += kQuad) {
        product(tile(k_, i) + key * head_dim_, q_dimensions_ + query * head_dim_, scores_);
        product(tile(v_, i) + key * head_dim_, grad_out_dimensions_ + query * head_dim_, products_);
        softmax_quad(pair, key, query);
      }
    }
    accumulate(i, weights_, grad_out_tokens_, tile(grad_v_, i));
    accumulate(i, slopes_, q_tokens_, tile(grad_k_, i));
    add_rows(pair, grad_out_not_finite_, weights_, b_.grad_out, tile(grad_v_, i));
    add_rows(pair, q_not_finite_, slopes_, p_.q, tile(grad_k_, i));
  }

  // sums [head_dim, 64]
  void add_grad_q(const TilePair* pairs, int num_pairs, float* sums) {
    for (int query = 0; query < queries_.num_tokens; query += kQuad) {
      for (int d = 0; d < head_dim_; d += kQuad) {
        float* quad = sums + d * kTileTokens + query;
        load_quad(quad, kTileTokens);
        for (int n = 0; n < num_pairs; ++n) {
          const int64_t i = pairs[n].key;
          for (int key = 0; key < keys_[i].num_tokens; key += kTileSum) {
            multiply_quad(tile(k_columns_, i) + d * kTileTokens + key, kTileTokens, slope_tiles(i, key, query));
          }
        }
        store_quad(quad, kTileTokens);
      }
    }
    for (int n = 0; n < num_pairs; ++n) add_columns(pairs[n], sums);
  }

  void store_grad_kv(int64_t i) {
    for (int r = 0; r < keys_[i].num_tokens; ++r) {
      const int64_t row = ((keys_[i].slot_begin + r) * p_.num_kv_heads + kv_head_) * head_dim_;
      store_row(tile(grad_k_, i) + r * head_dim_, p_.scale, head_dim_, static_cast<bfloat16*>(b_.grad_k) + row);
      store_row(tile(grad_v_, i) + r * head_dim_, 1.0f, head_dim_, static_cast<bfloat16*>(b_.grad_v) + row);
    }
  }

 private:
  template <class T>
  static T* take(float** scratch, int64_t tiles, int64_t columns) {
    T* const memory = reinterpret_cast<T*>(*scratch);
    *scratch += tiles * kTileTokens * columns * static_cast<int64_t>(sizeof(T)) / 4;
    return memory;
  }

  template <class T>
  T* tile(T* side, int64_t i) const {
    return side + i * kTileTokens * head_dim_;
  }

  // The two tiles of row pairs of ds' for 32 keys and 32 queries.
  bfloat16* slope_tiles(int64_t i, int key, int query) const {
    return slope_pairs_ + i * kTileTokens * kTileTokens + (key * kTileTokens / kTileSum + query) * kTileSum;
  }

  uint64_t pack_side(const lumos_tokens& tokens, bfloat16* dimensions, bfloat16* row_pairs) const {
    TileRowPointers side(tokens, queries_, head_);
    pack_dimensions(side, queries_.num_tokens, head_dim_, dimensions);
    const uint64_t not_finite = side.not_finite(head_dim_);
    side.replace_by_zeros(not_finite);
    pack_tokens(side, queries_.num_tokens, head_dim_, row_pairs);
    return not_finite;
  }

  // out [32, 32] = left right over head_dim
  LUMOS_INLINE void product(const bfloat16* left, const bfloat16* right, float* out) const {
    zero_quad();
    for (int d = 0; d < head_dim_; d += kTileSum) multiply_quad(left + d, head_dim_, right + d * kQuad);
    store_quad(out, kQuad);
  }

  // p' and ds' of the quad from scores_ and products_; 0 where not seen and behind the last key.
  void softmax_quad(const TilePair& pair, int key, int query) {
    const __m512 factor = _mm512_set1_ps(factor_);
    const __m512 maximum[2] = {floats(terms_.maximum + query), floats(terms_.maximum + query + 16)};
    const __m512 inverse[2] = {floats(terms_.inverse + query), floats(terms_.inverse + query + 16)};
    const __m512 delta[2] = {floats(terms_.delta + query), floats(terms_.delta + query + 16)};
    bfloat16* pairs = slope_tiles(pair.key, key, query);
    for (int r = 0; r < kQuad; r += 2) {
      __m512i slopes[2];
      for (int i = 0; i < 2; ++i) {
        const int row = key + r + i;
        uint64_t seen = pair.mask.whole ? ~UINT64_C(0) : pair.mask.rows[row];
        seen = row < keys_[pair.key].num_tokens ? seen >> query : 0;
        __m512 p[2], ds[2];
        for (int j = 0; j < 2; ++j) {
          const __mmask16 mask = static_cast<__mmask16>(seen >> (16 * j));
          const __m512 s = floats(scores_ + (r + i) * kQuad + 16 * j),
                       dp = floats(products_ + (r + i) * kQuad + 16 * j);
          p[j] = _mm512_maskz_mul_ps(mask, (__m512)short_exp2((vec)_mm512_fmsub_ps(s, factor, maximum[j]), 0xffff),
                                     inverse[j]);
          ds[j] = _mm512_maskz_mul_ps(mask, p[j], _mm512_sub_ps(dp, delta[j]));
        }
        store_dwords(weights_ + row * kTileTokens + query, (ivec)rounded(p[0], p[1]));
        slopes[i] = rounded(ds[0], ds[1]);
        store_dwords(slopes_ + row * kTileTokens + query, (ivec)slopes[i]);
      }
      typedef int64_t quads __attribute__((vector_size(64)));
      const quads low = (quads)_mm512_unpacklo_epi16(slopes[0], slopes[1]);
      const quads high = (quads)_mm512_unpackhi_epi16(slopes[0], slopes[1]);
      bfloat16* out = pairs + r / 2 * kTileSum;
      store_dwords(out, (ivec)__builtin_shufflevector(low, high, 0, 1, 8, 9, 2, 3, 10, 11));
      store_dwords(out + kTileElements, (ivec)__builtin_shufflevector(low, high, 4, 5, 12, 13, 6, 7, 14, 15));
    }
  }

  // acc [64, head_dim] += rows row_pairs over the queries
  void accumulate(int64_t i, const bfloat16* rows, const bfloat16* row_pairs, float* acc) const {
    for (int d = 0; d < head_dim_; d += kQuad) {
      for (int key = 0; key < keys_[i].num_tokens; key += kQuad) {
        load_quad(acc + key * head_dim_ + d, head_dim_);
        for (int query = 0; query < queries_.num_tokens; query += kTileSum) {
          multiply_quad(rows + key * kTileTokens + query, kTileTokens, row_pairs + query * head_dim_ + d * kTileSum);
        }
        store_quad(acc + key * head_dim_ + d, head_dim_);
      }
    }
  }

  // acc[key, :] += weights[key, t] tokens[t, :] for the queries t in `queries` that the key is seen by.
  void add_rows(const TilePair& pair, uint64_t queries, const bfloat16* weights, const lumos_tokens& tokens,
                float* acc) const {
    for (; queries; queries &= queries - 1) {
      const int t = __builtin_ctzll(queries);
      const bfloat16* row = query_row<bfloat16>(tokens, queries_.slot_begin + t, head_);
      for (int key = 0; key < keys_[pair.key].num_tokens; ++key) {
        if (!pair.mask.whole && !(pair.mask.rows[key] >> t & 1)) continue;
        const vec weight = broadcast(to_float(weights[key * kTileTokens + t]));
        for (int d = 0; d < head_dim_; d += kLanes) {
          float* out = acc + key * head_dim_ + d;
          store(out, fma(weight, load(row + d), load(out)));
        }
      }
    }
  }

  // sums[:, query] += ds[query, t] k[t, :] for the keys t that are not finite and that the query sees.
  void add_columns(const TilePair& pair, float* sums) const {
    for (uint64_t keys = k_not_finite_[pair.key]; keys; keys &= keys - 1) {
      const int t = __builtin_ctzll(keys);
      const bfloat16* row = tile(k_, pair.key) + t * head_dim_;
      const int key = t / kTileSum * kTileSum;
      for (int query = 0; query < queries_.num_tokens; ++query) {
        if (!pair.mask.whole && !(pair.mask.rows[t] >> query & 1)) continue;
        const bfloat16* tiles = slope_tiles(pair.key, key, query / kQuad * kQuad);
        const float slope = to_float(tiles[query % kQuad / kTileRows * kTileElements + (t - key) / 2 * kTileSum +
                                           query % kTileRows * 2 + t % 2]);
        for (int d = 0; d < head_dim_; ++d) {
          float* out = sums + d * kTileTokens + query;
          *out = fma(slope, to_float(row[d]), *out);
        }
      }
    }
  }

  const lumos_attention_backward_params& b_;
  const lumos_attention_params& p_;
  const int64_t kv_head_;
  const int head_dim_;
  const float factor_;  // scale log2(e)
  const float* const delta_;
  float *grad_k_, *grad_v_;  // [tiles, 64, head_dim]
  bfloat16 *k_, *v_;         // [tiles, 64, head_dim]
  bfloat16* k_columns_;      // [tiles, head_dim, 64]
  bfloat16* slope_pairs_;    // ds' of the query tile at hand: row pairs [tiles, 2, 4] tiles
  bfloat16 *q_dimensions_, *q_tokens_, *grad_out_dimensions_, *grad_out_tokens_;
  bfloat16 *weights_, *slopes_;  // p', ds' [64, 64]
  alignas(64) float scores_[kQuad * kQuad], products_[kQuad * kQuad];
  QueryTerms terms_;
  Tile keys_[kMaxBlockTiles], queries_;
  int64_t head_;
  uint64_t k_not_finite_[kMaxBlockTiles], q_not_finite_, grad_out_not_finite_;
};

}  // namespace

void attention_delta(const lumos_attention_backward_params& b, int64_t tile, const BackwardSums& sums) {
  // By the very products that dp is made of: where a query sees one key, out is that v and ds is exactly 0.
  const TileRegisters registers;
  const auto& p = b.forward;
  const Tile queries = tile_at(p.query_tiles, tile);
  const lumos_tokens out_tokens{p.out, p.num_heads * p.head_dim, p.head_dim, 0};
  alignas(64) bfloat16 out_rows[kTileElements], pairs[kTileElements];
  alignas(64) float product[kTileRows * kTileRows];
  for (int64_t head = 0; head < p.num_heads; ++head) {
    const TileRowPointers out(out_tokens, queries, head), grad_out(b.grad_out, queries, head);
    for (int t = 0; t < queries.num_tokens; t += kTileRows) {
      tile_zero<0>();
      for (int64_t d = 0; d < p.head_dim; d += kTileSum) {
        for (int i = 0; i < kTileRows; ++i) store_dwords(out_rows + i * kTileSum, load_dwords(out.rows[t + i] + d));
        pack_dimension_pairs(grad_out.rows + t, d, pairs);
        tile_load<1>(out_rows, 64);
        tile_load<2>(pairs, 64);
        tile_multiply<0, 1, 2>();
      }
      tile_store<0>(product, 64);
      for (int i = 0; i < kTileRows && t + i < queries.num_tokens; ++i) {
        sums.delta[head * p.num_query_tokens + queries.slot_begin + t + i] = product[i * kTileRows + i];
      }
    }
  }
}

void attention_backward_block(const lumos_attention_backward_params& b, int64_t kv_head, int64_t begin, int64_t end,
                              const BackwardSums& sums, BlockTurn& turn, float* scratch) {
  const TileRegisters registers;
  TileBlock block(b, kv_head, end - begin, sums.delta, scratch);
  walk_backward(b, kv_head, begin, end, sums, turn, block);
  for (int64_t i = 0; i < end - begin; ++i) block.store_grad_kv(i);
}

void attention_store_grad_q(const lumos_attention_backward_params& b, int64_t tile, const BackwardSums& sums) {
  const auto& p = b.forward;
  const Tile queries = tile_at(p.query_tiles, tile);
  for (int64_t head = 0; head < p.num_heads; ++head) {
    const float* columns = sums.grad_q + (tile * p.num_heads + head) * sums.tile_floats;  // [head_dim, 64]
    for (int t = 0; t < queries.num_tokens; t += kTileRows) {
      for (int64_t d = 0; d < p.head_dim; d += kTileRows) {
        // Floats are turned round like pairs of bf16.
        const bfloat16* from[kTileRows];
        for (int i = 0; i < kTileRows; ++i) {
          from[i] = reinterpret_cast<const bfloat16*>(columns + (d + i) * kTileTokens + t);
        }
        alignas(64) float rows[kTileRows * kTileRows];
        pack_dimension_pairs(from, 0, reinterpret_cast<bfloat16*>(rows));
        for (int i = 0; i < kTileRows && t + i < queries.num_tokens; ++i) {
          store_row(
              rows + i * kTileRows, p.scale, kTileRows,
              static_cast<bfloat16*>(b.grad_q) + ((queries.slot_begin + t + i) * p.num_heads + head) * p.head_dim + d);
        }
      }
    }
  }
}

}  // namespace lumos::LUMOS_ISA
