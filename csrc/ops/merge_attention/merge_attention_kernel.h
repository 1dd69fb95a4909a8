#pragma once

#include "cpu/dispatch.h"
#include "lumos/merge_attention.h"

// Tokens [begin, end).
LUMOS_DECLARE_KERNEL(void, merge_attention_tokens,
                     (const lumos_merge_attention_params& params, int64_t begin, int64_t end))
