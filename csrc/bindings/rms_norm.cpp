#include "lumos/rms_norm.h"

#include "bindings/tensor.h"

namespace lumos {
namespace {

lumos_rms_norm_params inputs(const Tensor& x, const Tensor& weight, double eps, const Device& device) {
  expect(x, "x", x.dtype, {-1, -1}, true);
  expect(weight, "weight", LUMOS_FLOAT32, {x.shape[1]});
  lumos_rms_norm_params params{};
  params.x = x.data;
  params.weight = weight.as<float>();
  params.dtype = x.dtype;
  params.num_rows = x.shape[0];
  params.width = x.shape[1];
  params.x_stride_row = x.strides[0];
  params.eps = static_cast<float>(eps);
  params.num_threads = device.num_threads;
  return params;
}

void forward(const Tensor& x, const Tensor& weight, const Tensor& out, double eps, const Device& device) {
  auto params = inputs(x, weight, eps, device);
  expect(out, "out", x.dtype, x.shape);
  params.out = out.data;
  launch_on(device, params, lumos_cpu_rms_norm);
}

void backward(const Tensor& grad_out, const Tensor& x, const Tensor& weight, const Tensor& grad_x,
              const Tensor& grad_weight, double eps, const Device& device) {
  lumos_rms_norm_backward_params params{};
  params.forward = inputs(x, weight, eps, device);
  expect(grad_out, "grad_out", x.dtype, x.shape, true);
  expect(grad_x, "grad_x", x.dtype, x.shape);
  expect(grad_weight, "grad_weight", LUMOS_FLOAT32, weight.shape);
  params.grad_out = grad_out.data;
  params.grad_x = grad_x.data;
  params.grad_weight = grad_weight.as<float>();
  params.grad_out_stride_row = grad_out.strides[0];
  launch_on(device, params, lumos_cpu_rms_norm_backward);
}

}  // namespace

void register_rms_norm(pybind11::module_& module) {
  module.def("rms_norm", forward);
  module.def("rms_norm_backward", backward);
}

}  // namespace lumos
