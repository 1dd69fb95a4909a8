#include "ops/attention/forward_float.cuh"

namespace lumos {

template void launch_forward_float<PagedKeys>(const lumos_attention_params&);

}  // namespace lumos
