#include "ops/attention/backward_launch.cuh"

template void lumos::launch_backward<__nv_bfloat16, 128>(const lumos_attention_backward_params&, const RowTerms*,
                                                         cudaStream_t);
