#include "lumos/merge_attention.h"

#include "bindings/tensor.h"

namespace lumos {

void register_merge_attention(pybind11::module_& module) {
  module.def("merge_attention", [](const Tensor& out_a, const Tensor& lse_a, const Tensor& out_b, const Tensor& lse_b,
                                   const Tensor& out, const Tensor& lse, const Device& device) {
    expect(out_a, "out_a", out.dtype, {-1, -1, -1}, true);
    const auto& shape = out_a.shape;
    expect(out_b, "out_b", out.dtype, shape, true);
    expect(out, "out", out.dtype, shape);
    expect(lse_a, "lse_a", LUMOS_FLOAT32, {shape[0], shape[1]});
    expect(lse_b, "lse_b", LUMOS_FLOAT32, {shape[0], shape[1]});
    expect(lse, "lse", LUMOS_FLOAT32, {shape[0], shape[1]});
    lumos_merge_attention_params params{};
    params.out_a = out_a.data;
    params.out_b = out_b.data;
    params.lse_a = lse_a.as<float>();
    params.lse_b = lse_b.as<float>();
    params.out = out.data;
    params.lse = lse.as<float>();
    params.dtype = out.dtype;
    params.num_tokens = shape[0];
    params.num_heads = shape[1];
    params.head_dim = shape[2];
    params.out_a_stride_token = out_a.strides[0];
    params.out_a_stride_head = out_a.strides[1];
    params.out_b_stride_token = out_b.strides[0];
    params.out_b_stride_head = out_b.strides[1];
    call_on(device, params, LUMOS_LAUNCHERS(merge_attention));
  });
}

}  // namespace lumos
