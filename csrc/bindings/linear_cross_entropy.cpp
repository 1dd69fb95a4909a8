#include "lumos/linear_cross_entropy.h"

#include "bindings/tensor.h"

namespace lumos {
namespace {

lumos_logits_block block_of(const Tensor& logits, const Tensor& targets, int64_t column_begin) {
  expect(logits, "logits", logits.dtype, {-1, -1}, true);
  expect(targets, "targets", LUMOS_INT64, {logits.shape[0]});
  lumos_logits_block block{};
  block.data = logits.data;
  block.dtype = logits.dtype;
  block.num_rows = logits.shape[0];
  block.num_columns = logits.shape[1];
  block.row_stride = logits.strides[0];
  block.column_begin = column_begin;
  block.targets = targets.as<int64_t>();
  return block;
}

void forward(const Tensor& logits, const Tensor& targets, int64_t column_begin, bool is_last, const Tensor& loss,
             const Tensor& row_max, const Tensor& row_sum, const Device& device) {
  lumos_linear_cross_entropy_params params{};
  params.logits = block_of(logits, targets, column_begin);
  expect(loss, "loss", LUMOS_FLOAT32, targets.shape);
  expect(row_max, "row_max", LUMOS_FLOAT32, targets.shape);
  expect(row_sum, "row_sum", LUMOS_FLOAT32, targets.shape);
  params.row_max = row_max.as<float>();
  params.row_sum = row_sum.as<float>();
  params.loss = loss.as<float>();
  params.is_last = is_last;
  call_on(device, params, LUMOS_LAUNCHERS(linear_cross_entropy));
}

void backward(const Tensor& grad, const Tensor& logits, const Tensor& targets, int64_t column_begin,
              const Tensor& row_max, const Tensor& row_sum, const Tensor& grad_logits, const Device& device) {
  lumos_linear_cross_entropy_backward_params params{};
  params.logits = block_of(logits, targets, column_begin);
  expect(grad, "grad", LUMOS_FLOAT32, targets.shape);
  expect(row_max, "row_max", LUMOS_FLOAT32, targets.shape);
  expect(row_sum, "row_sum", LUMOS_FLOAT32, targets.shape);
  expect(grad_logits, "grad_logits", logits.dtype, logits.shape, true);
  if (grad_logits.strides != logits.strides) throw pybind11::value_error("grad_logits has other strides than logits");
  params.row_max = row_max.as<float>();
  params.row_sum = row_sum.as<float>();
  params.grad = grad.as<float>();
  params.grad_logits = grad_logits.data;
  call_on(device, params, LUMOS_LAUNCHERS(linear_cross_entropy_backward));
}

}  // namespace

void register_linear_cross_entropy(pybind11::module_& module) {
  module.def("linear_cross_entropy", forward);
  module.def("linear_cross_entropy_backward", backward);
}

}  // namespace lumos
