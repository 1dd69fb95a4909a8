#pragma once

#include "cpu/dispatch.h"
#include "lumos/transpose.h"

namespace lumos {

// Rows and columns of one item of work: as many pages of x and of out as the TLB holds together.
constexpr int64_t kTransposeBlock = 256;

}  // namespace lumos

// The block that begins at (row, column).
LUMOS_DECLARE_KERNEL(void, transpose_block, (const lumos_transpose_params& params, int64_t row, int64_t column))
