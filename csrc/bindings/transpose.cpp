#include "lumos/transpose.h"

#include "bindings/tensor.h"

namespace lumos {
namespace {

void transpose(const Tensor& x, const Tensor& out, const Device& device) {
  expect(x, "x", x.dtype, {-1, -1}, true);
  expect(out, "out", x.dtype, {x.shape[1], x.shape[0]});
  lumos_transpose_params params{};
  params.x = x.data;
  params.out = out.data;
  params.dtype = x.dtype;
  params.num_rows = x.shape[0];
  params.num_columns = x.shape[1];
  params.x_stride_row = x.strides[0];
  params.num_threads = device.num_threads;
  launch_on(device, params, lumos_cpu_transpose);
}

}  // namespace

void register_transpose(pybind11::module_& module) { module.def("transpose", transpose); }

}  // namespace lumos
