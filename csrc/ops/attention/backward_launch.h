// Launches of the two passes of the backward, one instantiation a file in instances/.
#pragma once

#include <cuda_runtime_api.h>

#include "lumos/attention.h"

namespace lumos {

struct RowTerms;

// Scores to base 2, as in the forward, whose maxima they are compared with.
inline float base2_scale(const lumos_attention_params& p) { return static_cast<float>(p.scale * 1.4426950408889634); }

// terms: [heads, tokens], of attention_row_terms_kernel
template <class T, int kHeadDim>
void launch_backward(const lumos_attention_backward_params& params, const RowTerms* terms, cudaStream_t stream);
void launch_backward_fp32(const lumos_attention_backward_params& params, const RowTerms* terms, cudaStream_t stream);

}  // namespace lumos
