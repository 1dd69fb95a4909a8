// Attention forward in bf16 on tile registers: a block of query rows against chunks of packed key tiles.
//
// A unit is a group of 32 rows (tokens x heads that share the key head) and a key tile of 64 tokens:
//   scores   S [32, 64] = Q K'
//   weights  P = 2^(scale log2(e) S - reference), 0 where not seen; sums of P, each lane by itself
//   values   O [32, head_dim] += P V
// The weights of one unit are computed between the tile products of its neighbours: values of the unit before, scores
// of the unit after. A row's reference is the greatest score of the first tile in which it sees a key. It rises, and
// the row's sums are rescaled, only where the weights of a tile sum to more than kLimit in a lane: a decision of the
// row alone.
#include <cmath>

#include "cpu/simd_math.h"
#include "ops/attention/amx_keys.h"
#include "ops/attention/attention_kernel.h"
#include "ops/attention/tile_mask.h"

namespace lumos::LUMOS_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
constexpr int kGroupRows = 32;
constexpr float kLimit = 256.0f;

// Minimax polynomial of 2^f on [0, 1), exactly 1 at 0: relative error 1.5e-7 with rounding.
constexpr float kExp2Above[5] = {0x1.62e4bap-1f, 0x1.ebdb56p-3f, 0x1.c91cf8p-5f, 0x1.277806p-7f, 0x1.e976p-10f};

// 2^x where seen, else 0; 0 at -inf, inf at inf, NaN stays NaN.
LUMOS_INLINE vec exp2_where(uint64_t seen, vec x) {
  const vec f = (vec)_mm512_maskz_reduce_ps(0xffff, (__m512)x, 0x09);  // x - floor(x)
  vec p = broadcast(kExp2Above[4]);
  for (int i = 3; i >= 0; --i) p = fma(p, f, broadcast(kExp2Above[i]));
  p = fma(p, f, broadcast(1.0f));
  return (vec)_mm512_maskz_scalef_ps(static_cast<__mmask16>(seen), (__m512)p, (__m512)x);
}

// A row of weights in bf16: 32 tokens of each half.
LUMOS_INLINE void store_weights(const vec weights[4], bfloat16* row) {
  for (int half = 0; half < 2; ++half) {
    store_dwords(row + half * 2 * kTileElements,
                 (ivec)_mm512_maskz_cvtne2ps_pbh(~0u, (__m512)weights[2 * half + 1], (__m512)weights[2 * half]));
  }
}

struct Unit {
  int64_t group;
  int slot;                    // of the key tile in the chunk
  bool whole;                  // 64 tokens, all seen by every row
  bool skip;                   // v is not finite, and some row does not see all of it
  uint64_t masks[kGroupRows];  // unless whole
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
    for (int i = 0; i < 2; ++i) weights_[i] = (bfloat16*)take(kGroupRows * kTileTokens * 2);
    sum_before_ = (float*)take(kGroupRows * kLanes * 4);
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
      if (chunk_tiles_ > 0) run_chunk();
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
      store(sum_ + (group * kGroupRows + r) * kLanes, vec{});
      reference_[group * kGroupRows + r] = -INFINITY;
    }
    for (int i = 0; i < kGroupRows * head_dim_; i += kLanes) store(acc_ + group * kGroupRows * head_dim_ + i, vec{});
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

  // The unit behind (group, slot) in the chunk; false at its end.
  bool next_unit(int64_t& group, int& slot, Unit& unit) const {
    for (; group < num_groups_; ++group, slot = -1) {
      if (num_rows(group) == 0) continue;
      while (++slot < chunk_tiles_) {
        const Relation relation = relations_[group / groups_of_tile_][slot];
        if (relation == kNone) continue;
        unit.group = group;
        unit.slot = slot;
        unit.whole = relation == kFull && keys_[slot].num_tokens == kTileTokens;
        unit.skip = relation == kPartial && !finite_[slot];
        if (!unit.whole) set_masks(relation == kFull, unit);
        return true;
      }
    }
    return false;
  }

  void set_masks(bool full, Unit& unit) const {
    const Tile tile = query_tile(unit.group), &keys = keys_[unit.slot];
    for (int r = 0; r < num_rows(unit.group); ++r) {
      const int64_t token = tile.slot_begin + (first_row(unit.group) + r) / heads_;
      unit.masks[r] = full ? lumos_range_bits(0, keys.num_tokens)
                           : lumos_visible_bits(p_.intervals + token * LUMOS_NUM_INTERVALS, keys.index_begin,
                                                keys.num_tokens, hidden_[unit.slot]);
    }
  }

  void run_chunk() {
    Unit units[3];
    int64_t group = 0;
    int slot = -1;
    if (!next_unit(group, slot, units[0])) return;
    const int steps = 2 * head_dim_ / 32;
    for (int step = 0; step < steps; ++step) scores_step(units[0], step, 0);
    int u = 0;
    for (bool more = true; more; ++u) {
      const Unit* before = u > 0 ? &units[(u - 1) % 3] : nullptr;
      Unit& next = units[(u + 1) % 3];
      more = next_unit(group, slot, next);
      if (before && before->skip) pack_finite_v(*before);
      if (units[u % 3].whole) {
        weigh<true>(before, units[u % 3], more ? &next : nullptr, u);
      } else {
        weigh<false>(before, units[u % 3], more ? &next : nullptr, u);
      }
      if (before && before->skip) add_infinite_v(*before, weights_[(u - 1) & 1]);
      if (rising_) raise(units[u % 3], u & 1);
    }
    const Unit& last = units[(u - 1) % 3];
    if (last.skip) pack_finite_v(last);
    for (int step = 0; step < steps; ++step) values_step(last, step, (u - 1) & 1);
    if (last.skip) add_infinite_v(last, weights_[(u - 1) & 1]);
  }

  // Four products of 32 dimensions: step = (half of the keys, dimensions).
  LUMOS_INLINE void scores_step(const Unit& unit, int step, int buffer) const {
    const int steps = head_dim_ / 32, half = step >= steps, d = step - half * steps;
    if (d == 0) {
      tile_zero<0>();
      tile_zero<1>();
      tile_zero<2>();
      tile_zero<3>();
    }
    const bfloat16* q = q_ + unit.group * kGroupRows * head_dim_ + d * 2 * kTileElements;
    const bfloat16* k = k_ + unit.slot * kTileTokens * head_dim_ + step * 2 * kTileElements;
    tile_load<4>(q, 64);
    tile_load<6>(k, 64);
    tile_load<7>(k + kTileElements, 64);
    tile_load<5>(q + kTileElements, 64);
    tile_multiply<0, 4, 6>();
    tile_multiply<1, 4, 7>();
    tile_multiply<2, 5, 6>();
    tile_multiply<3, 5, 7>();
    if (d == steps - 1) {
      float* scores = scores_[buffer] + half * 32;
      tile_store<0>(scores, 256);
      tile_store<1>(scores + 16, 256);
      tile_store<2>(scores + 16 * kTileTokens, 256);
      tile_store<3>(scores + 16 * kTileTokens + 16, 256);
    }
  }

  // Four products of 32 tokens: step = (dimensions, half of the keys).
  LUMOS_INLINE void values_step(const Unit& unit, int step, int buffer) const {
    float* out = acc_ + unit.group * kGroupRows * head_dim_ + step / 2 * 1024;
    const int half = step % 2;
    if (half == 0) {
      tile_load<0>(out, 64);
      tile_load<1>(out + 256, 64);
      tile_load<2>(out + 512, 64);
      tile_load<3>(out + 768, 64);
    }
    const bfloat16* p = weights_[buffer] + half * 2 * kTileElements;
    const bfloat16* v = packed_v(unit.skip ? kAmxChunkTiles : unit.slot) + step * 2 * kTileElements;
    tile_load<4>(p, 64);
    tile_load<6>(v, 64);
    tile_load<7>(v + kTileElements, 64);
    tile_load<5>(p + kTileElements, 64);
    tile_multiply<0, 4, 6>();
    tile_multiply<1, 4, 7>();
    tile_multiply<2, 5, 6>();
    tile_multiply<3, 5, 7>();
    if (half == 1) {
      tile_store<0>(out, 64);
      tile_store<1>(out + 256, 64);
      tile_store<2>(out + 512, 64);
      tile_store<3>(out + 768, 64);
    }
  }

  // The weights of `unit`, with the tile products of its neighbours between the rows.
  template <bool Whole>
  void weigh(const Unit* before, const Unit& unit, const Unit* next, int u) {
    const int rows = num_rows(unit.group), steps = head_dim_ / 16, buffer = u & 1;
    const float factor = factor_;
    const float* scores = scores_[buffer];
    const float* reference = reference_ + unit.group * kGroupRows;
    float* sum = sum_ + unit.group * kGroupRows * kLanes;
    float* sum_before = sum_before_;
    bfloat16* weights = weights_[buffer];
    uvec top{};
    int r = 0;
    for (int step = 0; step < 2 * steps; ++step) {
      if (step < steps) {
        if (next) scores_step(*next, step, buffer ^ 1);
      } else {
        if (before) values_step(*before, step - steps, buffer ^ 1);
      }
      for (const int end = rows * (step + 1) / (2 * steps); r < end; ++r) {
        const vec shift = broadcast(reference[r]);
        const uint64_t seen = Whole ? ~UINT64_C(0) : unit.masks[r];
        vec w[4];
        for (int i = 0; i < 4; ++i) {
          w[i] = exp2_where(seen >> (16 * i), load(scores + r * kTileTokens + i * kLanes) * factor - shift);
        }
        const vec total = (w[0] + w[1]) + (w[2] + w[3]);
        const vec old = load(sum + r * kLanes);
        store(sum_before + r * kLanes, old);
        store(sum + r * kLanes, old + total);
        top = (uvec)total > top ? (uvec)total : top;
        store_weights(w, weights + r / 16 * kTileElements + r % 16 * kTileSum);
      }
    }
    rising_ = _mm512_cmpgt_epu32_mask((__m512i)top, (__m512i)broadcast(kLimit)) != 0;  // or NaN
  }

  // The rows of the unit whose weights are too great, or NaN, again; the values of the units before are in acc.
  void raise(const Unit& unit, int buffer) {
    for (int r = 0; r < num_rows(unit.group); ++r) {
      float* sum = sum_ + (unit.group * kGroupRows + r) * kLanes;
      float* reference = reference_ + unit.group * kGroupRows + r;
      const uint64_t seen = unit.whole ? ~UINT64_C(0) : unit.masks[r];
      const vec old = load(sum_before_ + r * kLanes);
      vec x[4], w[4];
      for (int i = 0; i < 4; ++i) {
        x[i] = load(scores_[buffer] + r * kTileTokens + i * kLanes) * factor_;
        w[i] = exp2_where(seen >> (16 * i), x[i] - *reference);
      }
      const vec before = (w[0] + w[1]) + (w[2] + w[3]);
      if (_mm512_cmp_ps_mask((__m512)before, (__m512)broadcast(kLimit), _CMP_NLE_UQ) == 0) continue;
      vec greatest = broadcast(-INFINITY);
      for (int i = 0; i < 4; ++i) greatest = max(select(seen >> (16 * i), x[i], broadcast(-INFINITY)), greatest);
      const float tile_greatest = horizontal_max(greatest);
      float shrink = 1.0f;
      if (tile_greatest > *reference) {
        shrink = exp2_where(~0u, broadcast(*reference - tile_greatest))[0];
        *reference = tile_greatest;
        for (int d = 0; d < head_dim_; d += kLanes) {
          float* values = acc(unit.group, r, d);
          store(values, load(values) * shrink);
        }
      }
      for (int i = 0; i < 4; ++i) w[i] = exp2_where(seen >> (16 * i), x[i] - *reference);
      store(sum, old * shrink + ((w[0] + w[1]) + (w[2] + w[3])));
      store_weights(w, weights_[buffer] + r / 16 * kTileElements + r % 16 * kTileSum);
    }
  }

  // v of the unit with zeros for what is not finite, behind the tiles of the chunk.
  void pack_finite_v(const Unit& unit) {
    const bfloat16* from = packed_v(unit.slot);
    bfloat16* to = packed_v(kAmxChunkTiles);
    for (int i = 0; i < kTileTokens * head_dim_; i += kTileSum) {
      const __m512i x = (__m512i)load_dwords(from + i), exponent = _mm512_set1_epi16(0x7f80);
      const __mmask32 finite = _mm512_cmpneq_epi16_mask(_mm512_and_si512(x, exponent), exponent);
      store_dwords(to + i, (ivec)_mm512_maskz_mov_epi16(finite, x));
    }
  }

  // What pack_finite_v left out, for the rows that see it.
  void add_infinite_v(const Unit& unit, const bfloat16* weights) {
    const bfloat16* rows[kTileTokens];
    key_rows(p_, p_.v, keys_[unit.slot], kv_head_, rows);
    for (int r = 0; r < num_rows(unit.group); ++r) {
      for (int t = 0; t < kTileTokens; ++t) {
        if (!(unit.masks[r] >> t & 1)) continue;
        const float weight =
            to_float(weights[t / 32 * 2 * kTileElements + r / 16 * kTileElements + r % 16 * kTileSum + t % 32]);
        for (int d = 0; d < head_dim_; ++d) {
          const float value = to_float(rows[t][d]);
          if (value - value != 0.0f) *acc(unit.group, r, d) += weight * value;
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
      const float reference = reference_[group * kGroupRows + r];
      const float sum = horizontal_sum(load(sum_ + (group * kGroupRows + r) * kLanes));
      const bool nothing = sum == 0.0f;  // a row that sees a key has had a weight of 1
      p_.lse[row] = nothing ? -INFINITY : static_cast<float>((reference + log2(static_cast<double>(sum))) * kLn2);
      if (p_.row_state) {
        p_.row_state[2 * row] = reference;
        p_.row_state[2 * row + 1] = sum;
      }
      bfloat16* out = static_cast<bfloat16*>(p_.out) + row * head_dim_;
      for (int d = 0; d < head_dim_; d += kLanes) {
        store(out + d, nothing ? vec{} : load(acc(group, r, d)) / broadcast(sum) + 0.0f);
      }
    }
  }

  const lumos_attention_params& p_;
  const int64_t kv_head_, begin_, num_tiles_, heads_, groups_of_tile_, num_groups_;
  const int head_dim_;
  const float factor_;    // scale log2(e)
  bfloat16* q_;           // [groups, 32, head_dim], in tiles
  float* acc_;            // [groups, 32, head_dim], in tiles
  float* sum_;            // [groups, 32, 16]: of each lane
  float* reference_;      // [groups, 32]
  bfloat16 *k_, *v_;      // [tiles of the chunk, 64, head_dim] in tiles; v_ has one more
  float* scores_[2];      // [32, 64]
  bfloat16* weights_[2];  // [2 halves of the tokens, 2 of 16 rows, 16, 32]
  float* sum_before_;     // [32, 16]
  bool rising_ = false;
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
