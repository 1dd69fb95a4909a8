#pragma once

#include "cpu/dispatch.h"
#include "lumos/qk_norm.h"

namespace lumos {

// Heads of one token that lie in scratch at a time: those of q or those of k.
inline int64_t scratch_heads(const lumos_qk_norm_params& p) {
  return p.q.num_heads > p.k.num_heads ? p.q.num_heads : p.k.num_heads;
}

// Floats of scratch that one call needs.

// Rotation table; rows and one number each.
inline int64_t forward_scratch_floats(const lumos_qk_norm_params& p) {
  return p.head_dim + scratch_heads(p) * (p.head_dim + 1);
}

// Rotation table; rows, their gradients and three numbers each.
inline int64_t backward_scratch_floats(const lumos_qk_norm_params& p) {
  return p.head_dim + scratch_heads(p) * (2 * p.head_dim + 3);
}

}  // namespace lumos

// Tokens [begin, end) of q and k.
LUMOS_DECLARE_KERNEL(void, qk_norm_tokens,
                     (const lumos_qk_norm_params& params, int64_t begin, int64_t end, float* scratch))

// Gradients of tokens [begin, end) of q and k. Adds theirs of the weights to `sums`: [q rows, head_dim] of the weight,
// the same of the bias, then those of k.
LUMOS_DECLARE_KERNEL(void, qk_norm_backward_tokens,
                     (const lumos_qk_norm_backward_params& params, int64_t begin, int64_t end, float* sums,
                      float* scratch))
