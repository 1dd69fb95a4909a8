#pragma once

#include "lumos/attention.h"

namespace lumos {

// Forward over checked params.
void run_attention_forward(const lumos_attention_params& params);

}  // namespace lumos
