// Launcher of block_attention, and the forward that paged_attention shares.
#include <memory>
#include <vector>

#include "cpu/error.h"
#include "cpu/thread_pool.h"
#include "ops/attention/attention_check.h"
#include "ops/attention/attention_forward.h"
#include "ops/attention/attention_kernel.h"
#include "ops/attention/attention_work.h"

namespace lumos {
namespace {

constexpr int64_t kMaxBlockTiles = 16;  // as in tile_mask.h

float* scratch_floats(int64_t count) { return static_cast<float*>(thread_scratch(count * sizeof(float))); }

}  // namespace

namespace {

void run_forward_tiles(const lumos_attention_params& p, decltype(amx::attention_forward_tiles)* kernel) {
  const int64_t group = p.num_heads / p.num_kv_heads;
  // The tiles of a step see equally many keys, as a rule: larger blocks leave no thread waiting.
  const int64_t thread_items = p.page_table ? 2 : 4;
  const TileBlocks blocks(p.query_tiles.num_tiles, p.num_kv_heads, std::max<int64_t>(kAmxMaxBlockTiles / group, 1),
                          p.num_threads, thread_items);
  parallel_for(blocks.num_items(), p.num_threads, [&](int64_t item) {
    kernel(p, blocks.head(item), blocks.begin(item), blocks.end(item),
           thread_scratch(forward_amx_scratch_bytes(blocks.block_tiles, group, p.head_dim)));
  });
}

}  // namespace

void run_attention_forward(const lumos_attention_params& p) {
  const int64_t group = p.num_heads / p.num_kv_heads;
  auto* tiles = LUMOS_SELECT_AMX_KERNEL(attention_forward_tiles);
  if (tiles && p.dtype == LUMOS_BFLOAT16) return run_forward_tiles(p, tiles);
  auto* kernel = LUMOS_SELECT_KERNEL(attention_forward);
  const int64_t block_rows = p.head_dim <= 128 ? kMaxBlockTiles : kMaxBlockTiles / 2;  // in a cache of 2 MB
  const TileBlocks blocks(p.query_tiles.num_tiles, p.num_kv_heads, std::max<int64_t>(block_rows / group, 1),
                          p.num_threads);
  parallel_for(blocks.num_items(), p.num_threads, [&](int64_t item) {
    kernel(p, blocks.head(item), blocks.begin(item), blocks.end(item),
           scratch_floats(forward_scratch_floats(blocks.block_tiles, group, p.head_dim)));
  });
}

}  // namespace lumos

extern "C" lumos_status lumos_cpu_block_attention(const lumos_attention_params* params) {
  return lumos::guarded([&] {
    lumos::check_block_attention(*params);
    lumos::run_attention_forward(*params);
  });
}
