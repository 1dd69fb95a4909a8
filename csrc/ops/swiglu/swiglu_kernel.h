#pragma once

#include "cpu/dispatch.h"
#include "lumos/swiglu.h"

LUMOS_DECLARE_KERNEL(void, swiglu_rows, (const lumos_swiglu_params& params, int64_t begin, int64_t end))
LUMOS_DECLARE_KERNEL(void, swiglu_backward_rows,
                     (const lumos_swiglu_backward_params& params, int64_t begin, int64_t end))
