#pragma once

#include "cpu/dispatch.h"
#include "lumos/rms_norm.h"

LUMOS_DECLARE_KERNEL(void, rms_norm_rows, (const lumos_rms_norm_params& params, int64_t begin, int64_t end))

// Gradients of rows [begin, end). Adds theirs of the weight to `sums` [width].
LUMOS_DECLARE_KERNEL(void, rms_norm_backward_rows,
                     (const lumos_rms_norm_backward_params& params, int64_t begin, int64_t end, float* sums))
