#include "lumos/sample_codes.h"

#include "bindings/tensor.h"

namespace lumos {

void register_sample_codes(pybind11::module_& module) {
  module.def("sample_codes", [](const Tensor& cond, const Tensor& uncond, const Tensor& known, const Tensor& given,
                                const Tensor& uniforms, float guidance_scale, float temperature, const Tensor& codes,
                                const Tensor& confidence, const Device& device) {
    expect(cond, "cond", cond.dtype, {-1, -1, -1}, true);
    const std::vector<int64_t> rows{cond.shape[0], cond.shape[1]};
    if (uncond.data) expect(uncond, "uncond", cond.dtype, cond.shape, true);
    expect(known, "known", LUMOS_BOOL, rows);
    if (given.data) expect(given, "given", LUMOS_INT64, rows);
    if (uniforms.data) expect(uniforms, "uniforms", LUMOS_FLOAT32, rows);
    expect(codes, "codes", LUMOS_INT64, rows);
    expect(confidence, "confidence", LUMOS_FLOAT32, rows);
    lumos_sample_codes_params params{};
    params.cond = cond.data;
    params.uncond = uncond.data;
    params.dtype = cond.dtype;
    params.known = known.as<uint8_t>();
    params.given = given.as<int64_t>();
    params.uniforms = uniforms.as<float>();
    params.codes = codes.as<int64_t>();
    params.confidence = confidence.as<float>();
    params.num_samples = cond.shape[0];
    params.num_rows = cond.shape[1];
    params.num_classes = cond.shape[2];
    params.cond_stride_sample = cond.strides[0];
    params.cond_stride_row = cond.strides[1];
    if (uncond.data) {
      params.uncond_stride_sample = uncond.strides[0];
      params.uncond_stride_row = uncond.strides[1];
    }
    params.guidance_scale = guidance_scale;
    params.temperature = temperature;
    call_on(device, params, LUMOS_LAUNCHERS(sample_codes));
  });
}

}  // namespace lumos
