#include "lumos/remask.h"

#include "bindings/tensor.h"

namespace lumos {

void register_remask(pybind11::module_& module) {
  module.def("remask",
             [](const Tensor& confidence, const Tensor& known, const Tensor& num_masked, int64_t num_masked_of_all,
                float temperature, const Tensor& gumbel, const Tensor& masked, const Device& device) {
               expect(confidence, "confidence", LUMOS_FLOAT32, {-1, -1});
               const auto& rows = confidence.shape;
               expect(known, "known", LUMOS_BOOL, rows);
               if (num_masked.data) expect(num_masked, "num_masked", LUMOS_INT64, {rows[0]});
               if (gumbel.data) expect(gumbel, "gumbel", LUMOS_FLOAT32, rows);
               expect(masked, "masked", LUMOS_BOOL, rows);
               lumos_remask_params params{};
               params.confidence = confidence.as<float>();
               params.known = known.as<uint8_t>();
               params.num_masked = num_masked.as<int64_t>();
               params.gumbel = gumbel.as<float>();
               params.masked = masked.as<uint8_t>();
               params.num_samples = rows[0];
               params.num_rows = rows[1];
               params.num_masked_of_all = num_masked_of_all;
               params.temperature = temperature;
               call_on(device, params, LUMOS_LAUNCHERS(remask));
             });
}

}  // namespace lumos
