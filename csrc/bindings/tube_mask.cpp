#include "lumos/tube_mask.h"

#include "bindings/tensor.h"

namespace lumos {

void register_tube_mask(pybind11::module_& module) {
  module.def("tube_mask", [](const Tensor& tokens, const Tensor& rank_uniforms, const Tensor& starts,
                             const Tensor& spans, const Tensor& num_masked, int64_t mask_id, const Tensor& order,
                             int64_t longest_draw, const Tensor& out, const Tensor& mask, const Device& device) {
    expect(tokens, "tokens", LUMOS_INT64, {-1});
    expect(rank_uniforms, "rank_uniforms", LUMOS_FLOAT32, {-1});
    expect(starts, "starts", LUMOS_INT64, {-1});
    expect(spans, "spans", LUMOS_INT64, {-1, 3});
    expect(num_masked, "num_masked", LUMOS_INT64, {spans.shape[0]});
    expect(order, "order", LUMOS_INT32, rank_uniforms.shape);
    expect(out, "out", LUMOS_INT64, tokens.shape);
    expect(mask, "mask", LUMOS_BOOL, tokens.shape);
    if (starts.shape[0] < 1) throw pybind11::value_error("starts is empty");
    lumos_tube_mask_params params{};
    params.tokens = tokens.as<int64_t>();
    params.rank_uniforms = rank_uniforms.as<float>();
    params.starts = starts.as<int64_t>();
    params.spans = spans.as<int64_t>();
    params.num_masked = num_masked.as<int64_t>();
    params.out = out.as<int64_t>();
    params.mask = mask.as<uint8_t>();
    params.order = order.as<int32_t>();
    params.longest_draw = longest_draw;
    params.num_tokens = tokens.shape[0];
    params.num_ranks = rank_uniforms.shape[0];
    params.num_draws = starts.shape[0] - 1;
    params.num_frames = spans.shape[0];
    params.mask_id = mask_id;
    call_on(device, params, LUMOS_LAUNCHERS(tube_mask));
  });
}

}  // namespace lumos
