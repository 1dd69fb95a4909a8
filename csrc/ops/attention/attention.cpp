// Launchers of block_attention, forward and backward, and the forward that paged_attention shares.
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

constexpr int64_t kMaxBlockTiles = 8;  // as in tile_mask.h

void check_block(const lumos_attention_params& p) {
  check_attention(p);
  require(!p.page_table && p.num_query_tokens == p.num_key_tokens && p.key_tiles.rows == p.query_tiles.rows,
          "block_attention takes as many keys as queries, in the same tiles");
  check_covering_tiles("tiles", p.query_tiles, p.num_query_tokens);
  check_runs("row_runs", p.rows, p.query_tiles.num_tiles, p.key_tiles.num_tiles);
}

float* scratch_floats(int64_t count) { return static_cast<float*>(thread_scratch(count * sizeof(float))); }

}  // namespace

namespace {

void run_forward_tiles(const lumos_attention_params& p, decltype(amx::attention_forward_tiles)* kernel) {
  const int64_t group = p.num_heads / p.num_kv_heads;
  const TileBlocks blocks(p.query_tiles.num_tiles, p.num_kv_heads, std::max<int64_t>(kAmxMaxBlockTiles / group, 1),
                          p.num_threads);
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
  const TileBlocks blocks(p.query_tiles.num_tiles, p.num_kv_heads, std::max<int64_t>(kMaxBlockTiles / group, 1),
                          p.num_threads);
  parallel_for(blocks.num_items(), p.num_threads, [&](int64_t item) {
    kernel(p, blocks.head(item), blocks.begin(item), blocks.end(item),
           scratch_floats(forward_scratch_floats(blocks.block_tiles, group, p.head_dim)));
  });
}

namespace {

void run_attention_backward(const lumos_attention_backward_params& b) {
  const auto& p = b.forward;
  const int64_t group = p.num_heads / p.num_kv_heads;
  const std::unique_ptr<float[]> delta(new float[p.num_heads * p.num_query_tokens]);

  constexpr int64_t kChunkTokens = 256;
  auto* delta_kernel = LUMOS_SELECT_KERNEL(attention_delta);
  parallel_for((p.num_query_tokens + kChunkTokens - 1) / kChunkTokens, p.num_threads, [&](int64_t chunk) {
    delta_kernel(b, chunk * kChunkTokens, std::min((chunk + 1) * kChunkTokens, p.num_query_tokens), delta.get());
  });

  // The two passes write different outputs: their items form one list.
  auto* q_kernel = LUMOS_SELECT_KERNEL(attention_grad_q);
  auto* kv_kernel = LUMOS_SELECT_KERNEL(attention_grad_kv);
  const TileBlocks queries(p.query_tiles.num_tiles, p.num_kv_heads, std::max<int64_t>(kMaxBlockTiles / group, 1),
                           p.num_threads);
  const TileBlocks keys(p.key_tiles.num_tiles, p.num_kv_heads, kMaxBlockTiles, p.num_threads);
  parallel_for(queries.num_items() + keys.num_items(), p.num_threads, [&](int64_t item) {
    if (item < keys.num_items()) {
      kv_kernel(b, keys.head(item), keys.begin(item), keys.end(item), delta.get(),
                scratch_floats(grad_kv_scratch_floats(keys.block_tiles, p.head_dim)));
    } else {
      item -= keys.num_items();
      q_kernel(b, queries.head(item), queries.begin(item), queries.end(item), delta.get(),
               scratch_floats(grad_q_scratch_floats(queries.block_tiles, group, p.head_dim)));
    }
  });
}

}  // namespace
}  // namespace lumos

extern "C" lumos_status lumos_cpu_block_attention(const lumos_attention_params* params) {
  return lumos::guarded([&] {
    lumos::check_block(*params);
    lumos::run_attention_forward(*params);
  });
}

extern "C" lumos_status lumos_cpu_block_attention_backward(const lumos_attention_backward_params* params) {
  return lumos::guarded([&] {
    lumos::check_block(params->forward);
    lumos::check_runs("col_runs", params->columns, params->forward.key_tiles.num_tiles,
                      params->forward.query_tiles.num_tiles);
    lumos::run_attention_backward(*params);
  });
}
