#pragma once

#include "cpu/dispatch.h"
#include "lumos/mm_rope.h"

// Tokens [begin, end). `table` holds head_dim floats: cosines, then sines of one token.
LUMOS_DECLARE_KERNEL(void, mm_rope_tokens,
                     (const lumos_mm_rope_params& params, int64_t begin, int64_t end, float* table))
