#pragma once

#include "cpu/dispatch.h"
#include "lumos/sample_codes.h"

namespace lumos {

// Classes whose probabilities are summed in one go; fixed, so that sums have the same bits wherever a row lies.
constexpr int64_t kBlockClasses = 512;

}  // namespace lumos

// One unknown row, counted over all samples. `scratch`: num_classes floats, rounded up to kBlockClasses.
LUMOS_DECLARE_KERNEL(void, sample_codes_row, (const lumos_sample_codes_params& params, int64_t row, float* scratch))
