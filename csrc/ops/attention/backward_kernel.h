// Kernels of the backward of attention, per instruction set.
//
//   p = 2^(s - maximum) / sum,  delta = sum_d grad_out out,  ds = p (grad_out v' - delta)
//   grad_v = p' grad_out,  grad_k = scale ds' q,  grad_q = scale ds k
//
// with s times scale * log2(e), and the maximum and the sum of the forward: p has its accuracy whatever the size of
// lse. One pass: a block of key tiles owns its grad_k and grad_v, and adds to the sums of grad_q in its turn.
#pragma once

#include "cpu/dispatch.h"
#include "lumos/attention.h"
#include "ops/attention/block_turns.h"

namespace lumos {

// What the blocks share.
struct BackwardSums {
  float* delta;         // [heads, query tokens]
  float* grad_q;        // [query tiles, heads, tile_floats]: sums of each tile, in an order of the kernel's own
  int64_t tile_floats;  // 64 head_dim
};

// Floats of scratch for one block of `tiles` key tiles, at any instruction set. For each tile k, v, both or their
// transposes, grad_k, grad_v and its ds; for a query tile q and grad_out in two layouts, p and its terms.
inline int64_t backward_scratch_floats(int64_t tiles, int64_t head_dim) {
  constexpr int64_t kTile = LUMOS_TILE_TOKENS;
  return tiles * kTile * (4 * head_dim + kTile) + kTile * (4 * head_dim + kTile + 3);
}

}  // namespace lumos

#define LUMOS_BACKWARD_KERNELS(DECLARE)                                                                    \
  /* delta of query tile `tile`, of all heads. */                                                          \
  DECLARE(void, attention_delta,                                                                           \
          (const lumos_attention_backward_params& params, int64_t tile, const BackwardSums& sums))         \
  /* grad_k and grad_v of key tiles [begin, end) of `kv_head`, and what they add to the sums of grad_q. */ \
  DECLARE(void, attention_backward_block,                                                                  \
          (const lumos_attention_backward_params& params, int64_t kv_head, int64_t begin, int64_t end,     \
           const BackwardSums& sums, BlockTurn& turn, float* scratch))                                     \
  /* grad_q of query tile `tile`, of all heads, from its sums. */                                          \
  DECLARE(void, attention_store_grad_q,                                                                    \
          (const lumos_attention_backward_params& params, int64_t tile, const BackwardSums& sums))

LUMOS_BACKWARD_KERNELS(LUMOS_DECLARE_KERNEL)
LUMOS_BACKWARD_KERNELS(LUMOS_DECLARE_AMX_KERNEL)
