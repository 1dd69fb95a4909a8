#include "ops/attention/attention_check.h"

#include "cpu/error.h"

namespace lumos {
namespace {

long long wide(int64_t value) { return static_cast<long long>(value); }

}  // namespace

void check_attention(const lumos_attention_params& p) {
  if (p.dtype != LUMOS_FLOAT32 && p.dtype != LUMOS_BFLOAT16) {
    throw Error(LUMOS_UNSUPPORTED_TYPE, "attention takes float32 and bfloat16");
  }
  require(p.head_dim > 0 && p.head_dim % 32 == 0 && p.head_dim <= LUMOS_MAX_HEAD_DIM,
          "head_dim is %lld; it must be a multiple of 32, at most %d", wide(p.head_dim), LUMOS_MAX_HEAD_DIM);
  require(p.num_kv_heads > 0 && p.num_heads > 0 && p.num_heads % p.num_kv_heads == 0,
          "%lld query heads cannot share %lld key heads evenly", wide(p.num_heads), wide(p.num_kv_heads));
}

void check_covering_tiles(const char* name, const lumos_tiles& tiles, int64_t num_slots) {
  int64_t slot = 0;
  for (int64_t i = 0; i < tiles.num_tiles; ++i) {
    const int32_t* row = tiles.rows + 4 * i;
    require(row[0] == slot && row[1] >= 1 && row[1] <= LUMOS_TILE_TOKENS && row[2] >= 0 && row[3] >= 0,
            "%s: row %lld is not the tile that follows slot %lld", name, wide(i), wide(slot));
    slot += row[1];
  }
  require(slot == num_slots, "%s cover %lld tokens, but there are %lld", name, wide(slot), wide(num_slots));
}

void check_runs(const char* name, const lumos_tile_runs& runs, int64_t num_tiles, int64_t num_others) {
  require(runs.offsets[0] == 0 && runs.offsets[num_tiles] == runs.num_runs, "%s: offsets do not cover the %lld runs",
          name, wide(runs.num_runs));
  for (int64_t i = 0; i < num_tiles; ++i) {
    const int64_t begin = runs.offsets[i], end = runs.offsets[i + 1];
    require(0 <= begin && begin <= end && end <= runs.num_runs, "%s: offsets decrease at tile %lld", name, wide(i));
    int64_t previous_end = 0;
    for (int64_t r = begin; r < end; ++r) {
      const int32_t* run = runs.runs + 3 * r;
      require(previous_end <= run[0] && run[0] < run[1] && run[1] <= num_others,
              "%s: run %lld is not an increasing range of tiles below %lld", name, wide(r), wide(num_others));
      previous_end = run[1];
    }
  }
}

void check_block_attention(const lumos_attention_params& p) {
  check_attention(p);
  require(!p.page_table && p.num_query_tokens == p.num_key_tokens && p.key_tiles.rows == p.query_tiles.rows,
          "block_attention takes as many keys as queries, in the same tiles");
  check_covering_tiles("tiles", p.query_tiles, p.num_query_tokens);
  check_runs("row_runs", p.rows, p.query_tiles.num_tiles, p.key_tiles.num_tiles);
}

void check_paged_tiles(const lumos_attention_params& p) {
  require(p.page_table && p.page_size > 0 && p.max_pages >= 0 && p.num_sequences >= 0, "there is no page table");
  int64_t previous_sequence = 0;
  for (int64_t i = 0; i < p.key_tiles.num_tiles; ++i) {
    const int32_t* row = p.key_tiles.rows + 4 * i;
    const int64_t slot = row[0], num_tokens = row[1], sequence = row[3];
    require(previous_sequence <= sequence && sequence < p.num_sequences,
            "key_tiles: row %lld is of sequence %lld; sequences must be sorted and below %lld", wide(i), wide(sequence),
            wide(p.num_sequences));
    require(
        slot >= 0 && num_tokens >= 1 && num_tokens <= LUMOS_TILE_TOKENS && row[2] >= 0 &&
            slot + num_tokens <= p.max_pages * p.page_size,
        "key_tiles: row %lld, slots %lld to %lld, leaves the %lld slots of the page table or has more than %d tokens",
        wide(i), wide(slot), wide(slot + num_tokens), wide(p.max_pages * p.page_size), LUMOS_TILE_TOKENS);
    for (int64_t page = slot / p.page_size; page <= (slot + num_tokens - 1) / p.page_size; ++page) {
      const int32_t physical = p.page_table[sequence * p.max_pages + page];
      require(0 <= physical && physical < p.num_pages,
              "page_table: page %lld of sequence %lld is %d; the pool has %lld pages", wide(page), wide(sequence),
              physical, wide(p.num_pages));
    }
    previous_sequence = sequence;
  }
}

}  // namespace lumos
