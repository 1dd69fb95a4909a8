// Which keys of a key tile each query of a query tile sees: 64 bits a row.
#pragma once

#include "lumos/visibility.h"
#include "ops/attention/tile_pack.h"

namespace lumos::LUMOS_ISA {

struct TileMask {
  uint64_t rows[kTileTokens];  // bit t of rows[r]: row r sees column t
  bool whole;                  // 64 columns, all seen by every row: no row need be masked
};

static inline uint64_t hidden_bits(const lumos_attention_params& p, const Tile& keys) {
  uint64_t bits = 0;
  if (p.hidden) {
    for (int t = 0; t < keys.num_tokens; ++t) bits |= static_cast<uint64_t>(p.hidden[keys.slot_begin + t] != 0) << t;
  }
  return bits;
}

// Rows are queries, columns are keys. A full pair of tiles is visible whole and reads no interval.
static inline void mask_by_query(const lumos_attention_params& p, const Tile& queries, const Tile& keys, bool full,
                                 TileMask& mask) {
  mask.whole = full && keys.num_tokens == kTileTokens;
  if (mask.whole) return;
  const uint64_t hidden = full ? 0 : hidden_bits(p, keys);
  for (int r = 0; r < queries.num_tokens; ++r) {
    mask.rows[r] = full ? lumos_range_bits(0, keys.num_tokens)
                        : lumos_visible_bits(p.intervals + (queries.slot_begin + r) * LUMOS_NUM_INTERVALS,
                                             keys.index_begin, keys.num_tokens, hidden);
  }
}

// Rows are keys, columns are queries.
static inline void mask_by_key(const lumos_attention_params& p, const Tile& queries, const Tile& keys, bool full,
                               TileMask& mask) {
  mask.whole = full && queries.num_tokens == kTileTokens;
  if (mask.whole) return;
  if (full) {
    for (int r = 0; r < keys.num_tokens; ++r) mask.rows[r] = lumos_range_bits(0, queries.num_tokens);
    return;
  }
  TileMask by_query;
  mask_by_query(p, queries, keys, false, by_query);
  for (int r = 0; r < keys.num_tokens; ++r) {
    uint64_t bits = 0;
    for (int t = 0; t < queries.num_tokens; ++t) bits |= (by_query.rows[t] >> r & 1) << t;
    mask.rows[r] = bits;
  }
}

// Walks the runs of several tiles together, in increasing order of the other side's tiles.
class RunCursor {
 public:
  RunCursor() = default;
  RunCursor(const lumos_tile_runs& runs, int64_t tile)
      : runs_(runs.runs), run_(runs.offsets[tile]), end_(runs.offsets[tile + 1]) {}

  // Whether this tile meets `other`, which must not decrease from call to call.
  bool meets(int64_t other) {
    while (run_ < end_ && runs_[3 * run_ + 1] <= other) ++run_;
    return run_ < end_ && runs_[3 * run_] <= other;
  }

  bool full() const { return runs_[3 * run_ + 2] != 0; }

  // The first tile at or after `other` that this tile meets, or -1.
  int64_t next(int64_t other) {
    meets(other);
    if (run_ >= end_) return -1;
    return runs_[3 * run_] > other ? runs_[3 * run_] : other;
  }

 private:
  const int32_t* runs_ = nullptr;
  int64_t run_ = 0, end_ = 0;
};

// The first tile at or after `other` that any of the cursors meets, or -1.
static inline int64_t next_tile(RunCursor* cursors, int64_t count, int64_t other) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t tile = cursors[i].next(other);
    if (tile >= 0 && (best < 0 || tile < best)) best = tile;
  }
  return best;
}

constexpr int kMaxBlockTiles = 16;

}  // namespace lumos::LUMOS_ISA
