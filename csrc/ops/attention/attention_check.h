// What the attention kernels rely on, checked before they touch memory. All throw lumos::Error.
#pragma once

#include "lumos/attention.h"

namespace lumos {

void check_attention(const lumos_attention_params& params);

// Tiles that cover the slots 0 .. num_slots - 1 one after another.
void check_covering_tiles(const char* name, const lumos_tiles& tiles, int64_t num_slots);

// Runs of each of `num_tiles` tiles over tiles 0 .. num_others - 1, increasing.
void check_runs(const char* name, const lumos_tile_runs& runs, int64_t num_tiles, int64_t num_others);

// What block_attention and its backward rely on: packed keys, in the tiles of the queries.
void check_block_attention(const lumos_attention_params& params);

// Key tiles in virtual slots: sorted by sequence, inside the page table, every page they reach inside the pool.
void check_paged_tiles(const lumos_attention_params& params);

}  // namespace lumos
