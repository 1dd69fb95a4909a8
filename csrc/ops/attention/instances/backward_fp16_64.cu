#include "ops/attention/backward_launch.cuh"

template void lumos::launch_backward<__half, 64>(const lumos_attention_backward_params&, const RowTerms*, cudaStream_t);
