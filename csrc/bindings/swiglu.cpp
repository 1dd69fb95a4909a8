#include "lumos/swiglu.h"

#include "bindings/tensor.h"

namespace lumos {
namespace {

lumos_swiglu_params inputs(const Tensor& gate, const Tensor& up, const Tensor& out, const Device& device) {
  expect(gate, "gate", gate.dtype, {-1, -1}, true);
  expect(up, "up", gate.dtype, gate.shape, true);
  expect(out, "out", gate.dtype, gate.shape);
  lumos_swiglu_params params{};
  params.gate = gate.data;
  params.up = up.data;
  params.out = out.data;
  params.dtype = gate.dtype;
  params.num_rows = gate.shape[0];
  params.width = gate.shape[1];
  params.gate_stride_row = gate.strides[0];
  params.up_stride_row = up.strides[0];
  params.num_threads = device.num_threads;
  return params;
}

void forward(const Tensor& gate, const Tensor& up, const Tensor& out, const Device& device) {
  launch_on(device, inputs(gate, up, out, device), lumos_cpu_swiglu);
}

void backward(const Tensor& grad_out, const Tensor& gate, const Tensor& up, const Tensor& out, const Tensor& grad_gate,
              const Tensor& grad_up, const Device& device) {
  lumos_swiglu_backward_params params{};
  params.forward = inputs(gate, up, out, device);
  expect(grad_out, "grad_out", gate.dtype, gate.shape);
  expect(grad_gate, "grad_gate", gate.dtype, gate.shape);
  expect(grad_up, "grad_up", gate.dtype, gate.shape);
  params.grad_out = grad_out.data;
  params.grad_gate = grad_gate.data;
  params.grad_up = grad_up.data;
  launch_on(device, params, lumos_cpu_swiglu_backward);
}

}  // namespace

void register_swiglu(pybind11::module_& module) {
  module.def("swiglu", forward);
  module.def("swiglu_backward", backward);
}

}  // namespace lumos
