#include "ops/attention/forward_launch.cuh"

namespace lumos {

template void launch_forward<__nv_bfloat16, 64, PagedRows>(const lumos_attention_params&);

}  // namespace lumos
