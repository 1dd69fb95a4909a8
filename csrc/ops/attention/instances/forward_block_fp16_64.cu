#include "ops/attention/forward_launch.cuh"

namespace lumos {

template void launch_forward<__half, 64, PackedRows>(const lumos_attention_params&);

}  // namespace lumos
