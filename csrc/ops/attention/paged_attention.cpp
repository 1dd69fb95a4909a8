// Launcher of paged_attention: builds the runs of key tiles from the intervals, then runs the forward of
// block_attention.
#include <algorithm>
#include <vector>

#include "cpu/error.h"
#include "lumos/visibility.h"
#include "ops/attention/attention_check.h"
#include "ops/attention/attention_forward.h"

namespace lumos {
namespace {

enum Visibility { kNone, kSome, kFull };

// What the tokens of a query tile see, each row of intervals once where neighbours have the same: those of a frame
// have.
std::vector<const int32_t*> distinct_intervals(const lumos_attention_params& p, const int32_t* queries) {
  std::vector<const int32_t*> distinct;
  for (int32_t r = 0; r < queries[1]; ++r) {
    const int32_t* row = p.intervals + (queries[0] + int64_t{r}) * LUMOS_NUM_INTERVALS;
    if (r == 0 || !std::equal(row, row + LUMOS_NUM_INTERVALS, distinct.back())) distinct.push_back(row);
  }
  return distinct;
}

Visibility classify(const std::vector<const int32_t*>& intervals, const int32_t* keys) {
  const uint64_t all = lumos_range_bits(0, keys[1]);
  uint64_t any = 0, every = all;
  for (const int32_t* row : intervals) {
    const uint64_t seen = lumos_visible_bits(row, keys[2], keys[1], 0);
    any |= seen;
    every &= seen;
  }
  return every == all ? kFull : any ? kSome : kNone;
}

struct Runs {
  std::vector<int32_t> offsets{0}, runs;  // runs [n, 3]
};

Runs build_runs(const lumos_attention_params& p) {
  Runs built;
  std::vector<int64_t> first_tile(p.num_sequences + 1, 0);
  for (int64_t i = 0; i < p.key_tiles.num_tiles; ++i) ++first_tile[p.key_tiles.rows[4 * i + 3] + 1];
  for (int64_t s = 0; s < p.num_sequences; ++s) first_tile[s + 1] += first_tile[s];
  for (int64_t i = 0; i < p.query_tiles.num_tiles; ++i) {
    const int32_t* queries = p.query_tiles.rows + 4 * i;
    const auto intervals = distinct_intervals(p, queries);
    Visibility previous = kNone;
    for (int64_t j = first_tile[queries[3]]; j < first_tile[queries[3] + 1]; ++j) {
      const Visibility now = classify(intervals, p.key_tiles.rows + 4 * j);
      const int32_t tile = static_cast<int32_t>(j);
      if (now == kNone) {
      } else if (now == previous) {
        built.runs[built.runs.size() - 2] = tile + 1;
      } else {
        built.runs.insert(built.runs.end(), {tile, tile + 1, now == kFull});
      }
      previous = now;
    }
    built.offsets.push_back(static_cast<int32_t>(built.runs.size() / 3));
  }
  return built;
}

void check_query_sequences(const lumos_attention_params& p) {
  for (int64_t i = 0; i < p.query_tiles.num_tiles; ++i) {
    require(p.query_tiles.rows[4 * i + 3] < p.num_sequences,
            "query_tiles: row %lld is of sequence %d; the page table has %lld", static_cast<long long>(i),
            p.query_tiles.rows[4 * i + 3], static_cast<long long>(p.num_sequences));
  }
}

}  // namespace
}  // namespace lumos

extern "C" lumos_status lumos_cpu_paged_attention(const lumos_attention_params* params) {
  return lumos::guarded([&] {
    lumos_attention_params p = *params;
    lumos::check_attention(p);
    lumos::check_covering_tiles("query_tiles", p.query_tiles, p.num_query_tokens);
    lumos::check_paged_tiles(p);
    lumos::check_query_sequences(p);
    p.hidden = nullptr;
    const lumos::Runs built = lumos::build_runs(p);
    p.rows = {built.offsets.data(), built.runs.data(), static_cast<int64_t>(built.runs.size() / 3)};
    lumos::run_attention_forward(p);
  });
}
