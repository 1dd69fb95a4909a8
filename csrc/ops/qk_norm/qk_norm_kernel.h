#pragma once

#include "cpu/dispatch.h"
#include "lumos/qk_norm.h"

// Tokens [begin, end) of q and k. `scratch` holds 2 head_dim floats.
LUMOS_DECLARE_KERNEL(void, qk_norm_tokens,
                     (const lumos_qk_norm_params& params, int64_t begin, int64_t end, float* scratch))

// Gradients of tokens [begin, end) of q and k. Adds theirs of the weights to `sums`: [q rows, head_dim] of the weight,
// the same of the bias, then those of k. `scratch` holds 3 head_dim floats.
LUMOS_DECLARE_KERNEL(void, qk_norm_backward_tokens,
                     (const lumos_qk_norm_backward_params& params, int64_t begin, int64_t end, float* sums,
                      float* scratch))
