// Attention forward in bf16 on tile registers: a block of query rows against chunks of packed key tiles.
//
// A group of 32 rows (tokens x heads that share the key head) meets one key tile of 64 tokens after another:
//   scores   S [32, 64] = Q K', one tile ahead of
//   weights  P = 2^(scale log2(e) S - reference), 0 where not seen; sums of P, each lane by itself
//   values   O [32, head_dim] += P V, of up to kPending tiles at once, so that O is loaded and stored once for them
// A row's reference is the greatest score of the first tile in which it sees a key. It rises, and the row's sums are
// rescaled, only where the weights of a tile sum to more than kLimit in a lane: a decision of the row alone.
#include <cmath>

#include "cpu/amx_quad.h"
#include "cpu/short_exp2.h"
#include "cpu/simd_math.h"
#include "ops/attention/amx_keys.h"
#include "ops/attention/attention_kernel.h"
#include "ops/attention/tile_mask.h"

namespace lumos::LUMOS_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
constexpr int kGroupRows = 32, kPending = 4;
constexpr float kLimit = 256.0f;

// Row r of a meeting: in bf16, tiles [2 halves of the tokens, 2 of 16 rows].
LUMOS_INLINE void store_weights(const vec weights[4], int r, bfloat16* tiles) {
  bfloat16* row = tiles + r / 16 * kTileElements + r % 16 * kTileSum;
  for (int half = 0; half < 2; ++half) {
    store_dwords(row + half * 2 * kTileElements,
                 (ivec)_mm512_maskz_cvtne2ps_pbh(~0u, (__m512)weights[2 * half + 1], (__m512)weights[2 * half]));
  }
}

// A key tile that a group meets.
struct Meeting {
  int slot;                    // of the key tile in the chunk
  bool whole;                  // 64 tokens, all seen by every row
  bool skip;                   // v is not finite, and some row does not see all of it
  uint64_t masks[kGroupRows];  // unless whole: bit t of row r
};

class ForwardBlock {
 public:
  ForwardBlock(const lumos_attention_params& params, int64_t kv_head, int64_t begin, int64_t end, void* scratch)
      : p_(params),
        kv_head_(kv_head),
        begin_(begin),
        num_tiles_(end - begin),
        heads_(params.num_heads / params.num_kv_heads),
        groups_of_tile_(forward_amx_groups(heads_)),
        num_groups_(num_tiles_ * groups_of_tile_),
        head_dim_(static_cast<int>(params.head_dim)),
        factor_(static_cast<float>(params.scale * kLog2E)) {
    const int64_t group_elements = kGroupRows * params.head_dim, tile_elements = kTileTokens * params.head_dim;
    char* memory = static_cast<char*>(scratch);
    auto take = [&](int64_t num_bytes) { return (memory += num_bytes) - num_bytes; };
    q_ = (bfloat16*)take(num_groups_ * group_elements * 2);
    acc_ = (float*)take(num_groups_ * group_elements * 4);
    sum_ = (float*)take(num_groups_ * kGroupRows * kLanes * 4);
    reference_ = (float*)take(num_groups_ * kGroupRows * 4);
    k_ = (bfloat16*)take(kAmxChunkTiles * tile_elements * 2);
    v_ = (bfloat16*)take((kAmxChunkTiles + 1) * tile_elements * 2);
    for (int i = 0; i < 2; ++i) scores_[i] = (float*)take(kGroupRows * kTileTokens * 4);
    for (int i = 0; i < kPending; ++i) weights_[i] = (bfloat16*)take(kGroupRows * kTileTokens * 2);
    sum_before_ = (float*)take(kGroupRows * kLanes * 4);
    has_values_ = (bool*)take(num_groups_);
    for (int64_t group = 0; group < num_groups_; ++group) begin_group(group);
  }

  void run() {
    const TileRegisters registers;
    RunCursor cursors[kAmxMaxBlockTiles];
    for (int64_t i = 0; i < num_tiles_; ++i) cursors[i] = RunCursor(p_.rows, begin_ + i);
    for (int64_t j = 0; j >= 0;) {
      for (chunk_tiles_ = 0; chunk_tiles_ < kAmxChunkTiles; ++j) {
        j = next_tile(cursors, num_tiles_, j);
        if (j < 0) break;
        pack(cursors, j, chunk_tiles_++);
      }
      for (int64_t group = 0; group < num_groups_; ++group) run_chunk(group);
    }
    for (int64_t group = 0; group < num_groups_; ++group) finish(group);
  }

 private:
  enum Relation : uint8_t { kNone, kPartial, kFull };

  Tile query_tile(int64_t group) const { return tile_at(p_.query_tiles, begin_ + group / groups_of_tile_); }

  // Rows of a query tile are its tokens, each with all heads.
  int64_t first_row(int64_t group) const { return group % groups_of_tile_ * kGroupRows; }

  int num_rows(int64_t group) const {
    const int64_t rows = query_tile(group).num_tokens * heads_ - first_row(group);
    return static_cast<int>(rows < 0 ? 0 : rows < kGroupRows ? rows : kGroupRows);
  }

  // acc of (row, d): tiles [head_dim / 32, 2 of 16 rows, 2 of 16 dimensions].
  float* acc(int64_t group, int row, int d) const {
    return acc_ + group * kGroupRows * head_dim_ + d / 32 * 1024 + row / 16 * 512 + d % 32 / 16 * 256 + row % 16 * 16 +
           d % 16;
  }

  // q as tiles [head_dim / 32, 2 of 16 rows].
  void begin_group(int64_t group) {
    const Tile tile = query_tile(group);
    bfloat16* q = q_ + group * kGroupRows * head_dim_;
    for (int r = 0; r < kGroupRows; ++r) {
      const int64_t row = first_row(group) + r;
      const bfloat16* from = r < num_rows(group) ? query_row<bfloat16>(p_.q, tile.slot_begin + row / heads_,
                                                                       kv_head_ * heads_ + row % heads_)
                                                 : kZeroRow;
      for (int d = 0; d < head_dim_; d += 32) store_dwords(q + d * 32 + r * 32, load_dwords(from + d));
    }
    has_values_[group] = false;
  }

  bfloat16* packed_v(int slot) const { return v_ + slot * kTileTokens * head_dim_; }

  void pack(RunCursor* cursors, int64_t j, int slot) {
    keys_[slot] = tile_at(p_.key_tiles, j);
    const bfloat16* rows[kTileTokens];
    key_rows(p_, p_.k, keys_[slot], kv_head_, rows);
    pack_k(rows, head_dim_, k_ + slot * kTileTokens * head_dim_);
    key_rows(p_, p_.v, keys_[slot], kv_head_, rows);
    pack_v(rows, head_dim_, packed_v(slot));
    bool partial = false;
    for (int64_t i = 0; i < num_tiles_; ++i) {
      relations_[i][slot] = !cursors[i].meets(j) ? kNone : cursors[i].full() ? kFull : kPartial;
      partial = partial || relations_[i][slot] == kPartial;
    }
    hidden_[slot] = partial ? hidden_bits(p_, keys_[slot]) : 0;
    finite_[slot] = !partial || is_finite(packed_v(slot));
  }

  bool is_finite(const bfloat16* tiles) const {
    uint32_t infinite = 0;
    for (int i = 0; i < kTileTokens * head_dim_; i += kTileSum) {
      const __m512i exponents = _mm512_and_si512((__m512i)load_dwords(tiles + i), _mm512_set1_epi16(0x7f80));
      infinite |= _mm512_cmpeq_epi16_mask(exponents, _mm512_set1_epi16(0x7f80));
    }
    return infinite == 0;
  }

  void run_chunk(int64_t group) {
    const int num_meetings = set_meetings(group);
    if (num_meetings == 0) return;
    multiply_scores(group, meetings_[0].slot, scores_[0]);
    int first = 0;  // of the meetings whose values are not yet in acc
    for (int i = 0; i < num_meetings; ++i) {
      if (i + 1 < num_meetings) multiply_scores(group, meetings_[i + 1].slot, scores_[(i + 1) & 1]);
      if (i == 0 && !has_values_[group]) {
        weigh_first(group);
      } else if (meetings_[i].whole ? weigh<true>(group, i) : weigh<false>(group, i)) {
        add_values(group, first, i);
        first = i;
        raise(group, i);
      }
      if (i + 1 - first == kPending || i + 1 == num_meetings) {
        add_values(group, first, i + 1);
        first = i + 1;
      }
    }
  }

  // The key tiles of the chunk that the group meets; returns their number.
  int set_meetings(int64_t group) {
    const int rows = num_rows(group);
    int num_meetings = 0;
    for (int slot = 0; slot < chunk_tiles_ && rows > 0; ++slot) {
      const Relation relation = relations_[group / groups_of_tile_][slot];
      if (relation == kNone) continue;
      const Tile tile = query_tile(group), &keys = keys_[slot];
      Meeting& meeting = meetings_[num_meetings++];
      meeting.slot = slot;
      meeting.whole = relation == kFull && keys.num_tokens == kTileTokens;
      meeting.skip = relation == kPartial && !finite_[slot];
      for (int r = 0; r < rows && !meeting.whole; ++r) {
        const int64_t token = tile.slot_begin + (first_row(group) + r) / heads_;
        meeting.masks[r] = relation == kFull ? lumos_range_bits(0, keys.num_tokens)
                                             : lumos_visible_bits(p_.intervals + token * LUMOS_NUM_INTERVALS,
                                                                  keys.index_begin, keys.num_tokens, hidden_[slot]);
      }
    }
    return num_meetings;
  }

  void multiply_scores(int64_t group, int slot, float* scores) const {
    const bfloat16* k = k_ + slot * kTileTokens * head_dim_;
    for (int half = 0; half < 2; ++half, scores += 32) {
      const bfloat16* q = q_ + group * kGroupRows * head_dim_;
      zero_quad();
      for (int d = 0; d < head_dim_; d += kTileSum, q += 2 * kTileElements, k += 2 * kTileElements) {
        multiply_quad(q, kTileSum, k);
      }
      store_quad(scores, kTileTokens);
    }
  }

  // The weights of meeting 0, the group's first: the rows that see a key of it take their references.
  void weigh_first(int64_t group) {
    for (int r = 0; r < num_rows(group); ++r) {
      const float* scores = scores_[0] + r * kTileTokens;
      float* reference = reference_ + group * kGroupRows + r;
      const uint64_t seen = meetings_[0].whole ? ~UINT64_C(0) : meetings_[0].masks[r];
      vec greatest = broadcast(-INFINITY);
      for (int j = 0; j < 4; ++j) {
        greatest = max(select(seen >> (16 * j), load(scores + j * kLanes) * factor_, broadcast(-INFINITY)), greatest);
      }
      *reference = horizontal_max(greatest);
      vec w[4];
      for (int j = 0; j < 4; ++j) w[j] = weight(scores + j * kLanes, *reference, seen >> (16 * j));
      store(sum_ + (group * kGroupRows + r) * kLanes, (w[0] + w[1]) + (w[2] + w[3]));
      store_weights(w, r, weights_[0]);
    }
  }

  // 2^(factor score - reference) in the lanes of `seen`.
  LUMOS_INLINE vec weight(const float* scores, float reference, uint64_t seen) const {
    return short_exp2(fma(load(scores), broadcast(factor_), broadcast(-reference)), seen);
  }

  // The weights of meeting i. Returns whether some row must raise its reference.
  template <bool Whole>
  bool weigh(int64_t group, int i) const {
    const int rows = num_rows(group);
    const uint64_t* masks = meetings_[i].masks;
    const float *scores = scores_[i & 1], *reference = reference_ + group * kGroupRows;
    float *sum = sum_ + group * kGroupRows * kLanes, *sum_before = sum_before_;
    bfloat16* weights = weights_[i % kPending];
    uvec top{};
    for (int r = 0; r < rows; ++r) {
      const uint64_t seen = Whole ? ~UINT64_C(0) : masks[r];
      vec w[4];
      for (int j = 0; j < 4; ++j) w[j] = weight(scores + r * kTileTokens + j * kLanes, reference[r], seen >> (16 * j));
      const vec total = (w[0] + w[1]) + (w[2] + w[3]), before = load(sum + r * kLanes);
      store(sum_before + r * kLanes, before);
      store(sum + r * kLanes, before + total);
      top = (uvec)total > top ? (uvec)total : top;
      store_weights(w, r, weights);
    }
    return _mm512_cmpgt_epu32_mask((__m512i)top, (__m512i)broadcast(kLimit)) != 0;  // or NaN
  }

  // The rows of meeting i whose weights are too great, or NaN, again; the values of those before it are in acc.
  void raise(int64_t group, int i) {
    for (int r = 0; r < num_rows(group); ++r) {
      float* sum = sum_ + (group * kGroupRows + r) * kLanes;
      float* reference = reference_ + group * kGroupRows + r;
      const uint64_t seen = meetings_[i].whole ? ~UINT64_C(0) : meetings_[i].masks[r];
      const float* scores = scores_[i & 1] + r * kTileTokens;
      vec w[4];
      vec greatest = broadcast(-INFINITY);
      for (int j = 0; j < 4; ++j) {
        w[j] = weight(scores + j * kLanes, *reference, seen >> (16 * j));
        greatest = max(select(seen >> (16 * j), load(scores + j * kLanes) * factor_, broadcast(-INFINITY)), greatest);
      }
      const vec total = (w[0] + w[1]) + (w[2] + w[3]);
      if (_mm512_cmp_ps_mask((__m512)total, (__m512)broadcast(kLimit), _CMP_NLE_UQ) == 0) continue;
      const float tile_greatest = horizontal_max(greatest);
      float shrink = 1.0f;
      if (tile_greatest > *reference) {
        shrink = short_exp2(broadcast(*reference - tile_greatest), ~0u)[0];
        for (int d = 0; d < head_dim_; d += kLanes) {
          float* values = acc(group, r, d);
          store(values, load(values) * shrink);
        }
        *reference = tile_greatest;
      }
      for (int j = 0; j < 4; ++j) w[j] = weight(scores + j * kLanes, *reference, seen >> (16 * j));
      store(sum, load(sum_before_ + r * kLanes) * shrink + ((w[0] + w[1]) + (w[2] + w[3])));
      store_weights(w, r, weights_[i % kPending]);
    }
  }

  // acc += P V of the meetings [first, end), at most kPending.
  void add_values(int64_t group, int first, int end) {
    if (first == end) return;
    bool skip = false;
    for (int i = first; i < end; ++i) skip = skip || meetings_[i].skip;
    if (!skip) return multiply_values(group, first, end, v_, kTileTokens * head_dim_);
    for (int i = first; i < end; ++i) {
      if (meetings_[i].skip) {
        pack_finite_v(meetings_[i].slot);
        multiply_values(group, i, i + 1, packed_v(kAmxChunkTiles), 0);
        add_infinite_v(group, i);
      } else {
        multiply_values(group, i, i + 1, v_, kTileTokens * head_dim_);
      }
    }
  }

  void multiply_values(int64_t group, int first, int end, const bfloat16* v, int64_t slot_stride) {
    float* out = acc_ + group * kGroupRows * head_dim_;
    for (int d = 0; d < head_dim_; d += 32, out += 1024, v += 4 * kTileElements) {
      if (has_values_[group]) {
        tile_load<0>(out, 64);
        tile_load<1>(out + 256, 64);
        tile_load<2>(out + 512, 64);
        tile_load<3>(out + 768, 64);
      } else {
        zero_quad();
      }
      for (int i = first; i < end; ++i) {
        const bfloat16 *p = weights_[i % kPending], *right = v + meetings_[i].slot * slot_stride;
        multiply_quad(p, kTileSum, right);
        multiply_quad(p + 2 * kTileElements, kTileSum, right + 2 * kTileElements);
      }
      tile_store<0>(out, 64);
      tile_store<1>(out + 256, 64);
      tile_store<2>(out + 512, 64);
      tile_store<3>(out + 768, 64);
    }
    has_values_[group] = true;
  }

  // v of the slot with zeros for what is not finite, behind the tiles of the chunk.
  void pack_finite_v(int slot) const {
    const bfloat16* from = packed_v(slot);
    bfloat16* to = packed_v(kAmxChunkTiles);
    for (int i = 0; i < kTileTokens * head_dim_; i += kTileSum) {
      const __m512i x = (__m512i)load_dwords(from + i), exponent = _mm512_set1_epi16(0x7f80);
      const __mmask32 finite = _mm512_cmpneq_epi16_mask(_mm512_and_si512(x, exponent), exponent);
      store_dwords(to + i, (ivec)_mm512_maskz_mov_epi16(finite, x));
    }
  }

  // What pack_finite_v left out, for the rows that see it.
  void add_infinite_v(int64_t group, int i) const {
    const bfloat16* rows[kTileTokens];
    key_rows(p_, p_.v, keys_[meetings_[i].slot], kv_head_, rows);
    for (int r = 0; r < num_rows(group); ++r) {
      for (int t = 0; t < kTileTokens; ++t) {
        if (!(meetings_[i].masks[r] >> t & 1)) continue;
        const float weight = to_float(
            weights_[i % kPending][t / 32 * 2 * kTileElements + r / 16 * kTileElements + r % 16 * kTileSum + t % 32]);
        for (int d = 0; d < head_dim_; ++d) {
          const float value = to_float(rows[t][d]);
          if (value - value != 0.0f) *acc(group, r, d) += weight * value;
        }
      }
    }
  }

  void finish(int64_t group) {
    const Tile tile = query_tile(group);
    for (int r = 0; r < num_rows(group); ++r) {
      const int64_t row_of_tile = first_row(group) + r;
      const int64_t row =
          (tile.slot_begin + row_of_tile / heads_) * p_.num_heads + kv_head_ * heads_ + row_of_tile % heads_;
      const bool met = has_values_[group];
      const float reference = met ? reference_[group * kGroupRows + r] : -INFINITY;
      const float sum = met ? horizontal_sum(load(sum_ + (group * kGroupRows + r) * kLanes)) : 0.0f;
      const vec inverse = broadcast(1.0f / sum);
      const bool nothing = sum == 0.0f;  // a row that sees a key has had a weight of 1
      p_.lse[row] = nothing ? -INFINITY : static_cast<float>((reference + static_cast<double>(log2f(sum))) * kLn2);
      if (p_.row_state) {
        p_.row_state[2 * row] = reference;
        p_.row_state[2 * row + 1] = sum;
      }
      bfloat16* out = static_cast<bfloat16*>(p_.out) + row * head_dim_;
      for (int d = 0; d < head_dim_; d += 2 * kLanes) {
        vec values[2];
        for (int j = 0; j < 2; ++j) values[j] = nothing ? vec{} : load(acc(group, r, d + j * kLanes)) * inverse + 0.0f;
        store_dwords(out + d, (ivec)_mm512_maskz_cvtne2ps_pbh(~0u, (__m512)values[1], (__m512)values[0]));
      }
    }
  }

  const lumos_attention_params& p_;
  const int64_t kv_head_, begin_, num_tiles_, heads_, groups_of_tile_, num_groups_;
  const int head_dim_;
  const float factor_;           // scale log2(e)
  bfloat16* q_;                  // [groups, 32, head_dim], in tiles
  float* acc_;                   // [groups, 32, head_dim], in tiles
  float* sum_;                   // [groups, 32, 16]: of each lane
  float* reference_;             // [groups, 32]
  bfloat16 *k_, *v_;             // [tiles of the chunk, 64, head_dim] in tiles; v_ has one more
  float* scores_[2];             // [32, 64]
  bfloat16* weights_[kPending];  // [2 halves of the tokens, 2 of 16 rows, 16, 32]
  bool* has_values_;             // [groups]: acc has been written
  float* sum_before_;            // [32, 16]
  Meeting meetings_[kAmxChunkTiles];
  int chunk_tiles_ = 0;
  Tile keys_[kAmxChunkTiles];
  uint64_t hidden_[kAmxChunkTiles];
  bool finite_[kAmxChunkTiles];
  Relation relations_[kAmxMaxBlockTiles][kAmxChunkTiles];
};

}  // namespace

void attention_forward_tiles(const lumos_attention_params& params, int64_t kv_head, int64_t begin, int64_t end,
                             void* scratch) {
  ForwardBlock(params, kv_head, begin, end, scratch).run();
}

}  // namespace lumos::LUMOS_ISA
