// Bindings of qk_norm_mm_rope, its backward, and its fusion with paged_write.
#include "lumos/qk_norm.h"

#include "bindings/tensor.h"

namespace lumos {
namespace {

lumos_qk_norm_heads heads(const char* name, const Tensor& x, const Tensor& weight) {
  expect(x, name, x.dtype, {-1, -1, -1}, true);
  expect(weight, "weight", LUMOS_FLOAT32, {-1, x.shape[2]});
  lumos_qk_norm_heads heads{};
  heads.x = x.data;
  heads.weight = weight.as<float>();
  heads.num_heads = x.shape[1];
  heads.num_rows = weight.shape[0];
  heads.x_stride_token = x.strides[0];
  heads.x_stride_head = x.strides[1];
  return heads;
}

// What all three functions read.
lumos_qk_norm_params inputs(const Tensor& q, const Tensor& k, const Tensor& q_weight, const Tensor& k_weight,
                            const Tensor& positions, const Tensor& inv_freq, double eps, bool parity,
                            const Device& device) {
  lumos_qk_norm_params params{};
  params.q = heads("q", q, q_weight);
  params.k = heads("k", k, k_weight);
  expect(k, "k", q.dtype, {q.shape[0], -1, q.shape[2]}, true);
  expect(positions, "positions", LUMOS_INT32, {q.shape[0], 3});
  expect(inv_freq, "inv_freq", LUMOS_FLOAT32, {q.shape[2] / 2});
  params.positions = positions.as<int32_t>();
  params.inv_freq = inv_freq.as<float>();
  params.dtype = q.dtype;
  params.num_tokens = q.shape[0];
  params.head_dim = q.shape[2];
  params.eps = static_cast<float>(eps);
  params.parity = parity;
  set_device(params, device);
  return params;
}

void add_bias(lumos_qk_norm_heads& heads, const Tensor& bias, int64_t head_dim) {
  expect(bias, "bias", LUMOS_FLOAT32, {heads.num_rows, head_dim});
  heads.bias = bias.as<float>();
}

void qk_norm_mm_rope(const Tensor& q, const Tensor& k, const Tensor& q_weight, const Tensor& q_bias,
                     const Tensor& k_weight, const Tensor& k_bias, const Tensor& positions, const Tensor& inv_freq,
                     const Tensor& q_out, const Tensor& k_out, double eps, bool parity, const Device& device) {
  auto params = inputs(q, k, q_weight, k_weight, positions, inv_freq, eps, parity, device);
  add_bias(params.q, q_bias, q.shape[2]);
  add_bias(params.k, k_bias, q.shape[2]);
  expect(q_out, "q_out", q.dtype, q.shape);
  expect(k_out, "k_out", q.dtype, k.shape);
  params.q.out = q_out.data;
  params.k.out = k_out.data;
  launch_on(device, params, LUMOS_LAUNCHERS(qk_norm_mm_rope));
}

void qk_norm_mm_rope_paged_write(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_weight,
                                 const Tensor& q_bias, const Tensor& k_weight, const Tensor& k_bias,
                                 const Tensor& positions, const Tensor& inv_freq, const Tensor& k_pages,
                                 const Tensor& v_pages, const Tensor& slots, const Tensor& q_out, double eps,
                                 bool parity, const Device& device) {
  auto params = inputs(q, k, q_weight, k_weight, positions, inv_freq, eps, parity, device);
  add_bias(params.q, q_bias, q.shape[2]);
  add_bias(params.k, k_bias, q.shape[2]);
  expect(v, "v", q.dtype, k.shape, true);
  expect(k_pages, "k_pages", q.dtype, {-1, -1, k.shape[1], k.shape[2]});
  expect(v_pages, "v_pages", q.dtype, k_pages.shape);
  expect(slots, "slots", LUMOS_INT64, {q.shape[0]});
  expect(q_out, "q_out", q.dtype, q.shape);
  params.q.out = q_out.data;
  params.k.out = k_pages.data;
  params.slots = slots.as<int64_t>();
  params.v = v.data;
  params.v_pages = v_pages.data;
  params.num_slots = k_pages.shape[0] * k_pages.shape[1];
  params.v_stride_token = v.strides[0];
  params.v_stride_head = v.strides[1];
  launch_on(device, params, LUMOS_LAUNCHERS(qk_norm_mm_rope_paged_write));
}

lumos_qk_norm_backward_heads grads(const Tensor& x, const Tensor& grad_out, const Tensor& weight, const Tensor& grad_x,
                                   const Tensor& grad_weight, const Tensor& grad_bias) {
  expect(grad_out, "grad_out", x.dtype, x.shape, true);
  expect(grad_x, "grad_x", x.dtype, x.shape);
  expect(grad_weight, "grad_weight", LUMOS_FLOAT32, weight.shape);
  expect(grad_bias, "grad_bias", LUMOS_FLOAT32, weight.shape);
  return {grad_out.data,         grad_x.data,         grad_weight.as<float>(),
          grad_bias.as<float>(), grad_out.strides[0], grad_out.strides[1]};
}

int64_t workspace_bytes([[maybe_unused]] const lumos_qk_norm_params& params) {
  int64_t num_bytes = 0;
#ifdef LUMOS_WITH_CUDA
  if (params.device >= 0) raise_unless_ok(lumos_cuda_qk_norm_mm_rope_backward_workspace_bytes(&params, &num_bytes));
#endif
  return num_bytes;
}

void qk_norm_mm_rope_backward(const Tensor& grad_q_out, const Tensor& grad_k_out, const Tensor& q, const Tensor& k,
                              const Tensor& q_weight, const Tensor& k_weight, const Tensor& positions,
                              const Tensor& inv_freq, const Tensor& grad_q, const Tensor& grad_k,
                              const Tensor& grad_q_weight, const Tensor& grad_q_bias, const Tensor& grad_k_weight,
                              const Tensor& grad_k_bias, const Tensor& workspace, double eps, bool parity,
                              const Device& device) {
  lumos_qk_norm_backward_params params{};
  params.forward = inputs(q, k, q_weight, k_weight, positions, inv_freq, eps, parity, device);
  params.q = grads(q, grad_q_out, q_weight, grad_q, grad_q_weight, grad_q_bias);
  params.k = grads(k, grad_k_out, k_weight, grad_k, grad_k_weight, grad_k_bias);
  expect(workspace, "workspace", LUMOS_UINT8, {workspace_bytes(params.forward)});
  params.workspace = workspace.as<float>();
  launch_on(device, params, LUMOS_LAUNCHERS(qk_norm_mm_rope_backward));
}

// What qk_norm_mm_rope_backward wants for these tensors.
int64_t backward_workspace_bytes(const Tensor& q, const Tensor& k, const Tensor& q_weight, const Tensor& k_weight,
                                 const Device& device) {
  lumos_qk_norm_params params{};
  params.q = heads("q", q, q_weight);
  params.k = heads("k", k, k_weight);
  params.dtype = q.dtype;
  params.num_tokens = q.shape[0];
  params.head_dim = q.shape[2];
  set_device(params, device);
  return workspace_bytes(params);
}

}  // namespace

void register_qk_norm(pybind11::module_& module) {
  module.def("qk_norm_mm_rope", &qk_norm_mm_rope);
  module.def("qk_norm_mm_rope_paged_write", &qk_norm_mm_rope_paged_write);
  module.def("qk_norm_mm_rope_backward", &qk_norm_mm_rope_backward);
  module.def("qk_norm_mm_rope_backward_workspace_bytes", &backward_workspace_bytes);
}

}  // namespace lumos
