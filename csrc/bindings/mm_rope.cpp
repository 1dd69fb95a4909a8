#include "lumos/mm_rope.h"

#include "bindings/tensor.h"

namespace lumos {

void register_mm_rope(pybind11::module_& module) {
  module.def("mm_rope", [](const Tensor& x, const Tensor& positions, const Tensor& inv_freq, const Tensor& out,
                           bool inverse, bool parity, const Device& device) {
    expect(x, "x", x.dtype, {-1, -1, -1}, true);
    expect(out, "out", x.dtype, x.shape, true);
    expect(positions, "positions", LUMOS_INT32, {x.shape[0], 3});
    expect(inv_freq, "inv_freq", LUMOS_FLOAT32, {x.shape[2] / 2});
    lumos_mm_rope_params params{};
    params.x = x.data;
    params.positions = positions.as<int32_t>();
    params.inv_freq = inv_freq.as<float>();
    params.out = out.data;
    params.dtype = x.dtype;
    params.num_tokens = x.shape[0];
    params.num_heads = x.shape[1];
    params.head_dim = x.shape[2];
    params.x_stride_token = x.strides[0];
    params.x_stride_head = x.strides[1];
    params.out_stride_token = out.strides[0];
    params.out_stride_head = out.strides[1];
    params.inverse = inverse;
    params.parity = parity;
    call_on(device, params, LUMOS_LAUNCHERS(mm_rope));
  });
}

}  // namespace lumos
