#pragma once

#include "cpu/dispatch.h"
#include "lumos/linear_cross_entropy.h"

// Rows [begin, end).
LUMOS_DECLARE_KERNEL(void, linear_cross_entropy_rows,
                     (const lumos_linear_cross_entropy_params& params, int64_t begin, int64_t end))
LUMOS_DECLARE_KERNEL(void, linear_cross_entropy_backward_rows,
                     (const lumos_linear_cross_entropy_backward_params& params, int64_t begin, int64_t end))
