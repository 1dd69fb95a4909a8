// Launcher of the backward of block_attention.
#include <algorithm>
#include <memory>

#include "cpu/error.h"
#include "cpu/thread_pool.h"
#include "ops/attention/attention_check.h"
#include "ops/attention/attention_work.h"
#include "ops/attention/backward_kernel.h"

namespace lumos {
namespace {

// The kernel for tiles where there is one for the dtype.
#define LUMOS_SELECT_BACKWARD(name) select_backward(p, LUMOS_SELECT_AMX_KERNEL(name), LUMOS_SELECT_KERNEL(name))
template <class Kernel>
Kernel* select_backward(const lumos_attention_params& p, Kernel* tiles, Kernel* vectors) {
  return tiles && p.dtype == LUMOS_BFLOAT16 ? tiles : vectors;
}

void run_attention_backward(const lumos_attention_backward_params& b) {
  const auto& p = b.forward;
  const int64_t tile_floats = LUMOS_TILE_TOKENS * p.head_dim, num_tiles = p.query_tiles.num_tiles;
  const std::unique_ptr<float[]> delta(new float[p.num_heads * p.num_query_tokens]);
  const std::unique_ptr<float[]> grad_q(new float[num_tiles * p.num_heads * tile_floats]);
  const BackwardSums sums{delta.get(), grad_q.get(), tile_floats};

  auto* delta_kernel = LUMOS_SELECT_BACKWARD(attention_delta);
  parallel_for(num_tiles, p.num_threads, [&](int64_t tile) {
    delta_kernel(b, tile, sums);
    std::fill_n(sums.grad_q + tile * p.num_heads * tile_floats, p.num_heads * tile_floats, 0.0f);
  });

  // Blocks of key tiles that stay in a cache of 2 MB. The first see the most queries under a causal layout, and grad_q
  // takes its sums in this order.
  auto* kernel = LUMOS_SELECT_BACKWARD(attention_backward_block);
  const TileBlocks blocks(p.key_tiles.num_tiles, p.num_kv_heads, p.head_dim <= 128 ? 8 : 4, p.num_threads);
  BlockTurns turns(p.num_kv_heads, blocks.num_blocks, num_tiles);
  parallel_for(blocks.num_items(), p.num_threads, [&](int64_t item) {
    const int64_t head = item % p.num_kv_heads, block = item / p.num_kv_heads, begin = block * blocks.block_tiles;
    const int64_t end = std::min(begin + blocks.block_tiles, blocks.num_tiles);
    BlockTurn turn(turns, head, block);
    const int64_t scratch_bytes = backward_scratch_floats(blocks.block_tiles, p.head_dim) * sizeof(float);
    kernel(b, head, begin, end, sums, turn, static_cast<float*>(thread_scratch(scratch_bytes)));
  });

  auto* store_kernel = LUMOS_SELECT_BACKWARD(attention_store_grad_q);
  parallel_for(num_tiles, p.num_threads, [&](int64_t tile) { store_kernel(b, tile, sums); });
}

}  // namespace
}  // namespace lumos

extern "C" lumos_status lumos_cpu_block_attention_backward(const lumos_attention_backward_params* params) {
  return lumos::guarded([&] {
    lumos::check_block_attention(params->forward);
    lumos::check_runs("col_runs", params->columns, params->forward.key_tiles.num_tiles,
                      params->forward.query_tiles.num_tiles);
    lumos::run_attention_backward(*params);
  });
}
