#include "lumos/paged_write.h"

#include "bindings/tensor.h"

namespace lumos {

void register_paged_write(pybind11::module_& module) {
  module.def("paged_write", [](const Tensor& k, const Tensor& v, const Tensor& k_pages, const Tensor& v_pages,
                               const Tensor& slots, const Device& device) {
    expect(k, "k", k.dtype, {-1, -1, -1}, true);
    expect(v, "v", k.dtype, k.shape, true);
    expect(k_pages, "k_pages", k.dtype, {-1, -1, k.shape[1], k.shape[2]});
    expect(v_pages, "v_pages", k.dtype, k_pages.shape);
    expect(slots, "slots", LUMOS_INT64, {k.shape[0]});
    lumos_paged_write_params params{};
    params.k = k.data;
    params.v = v.data;
    params.k_pages = k_pages.data;
    params.v_pages = v_pages.data;
    params.slots = slots.as<int64_t>();
    params.dtype = k.dtype;
    params.num_tokens = k.shape[0];
    params.num_kv_heads = k.shape[1];
    params.head_dim = k.shape[2];
    params.num_slots = k_pages.shape[0] * k_pages.shape[1];
    params.k_stride_token = k.strides[0];
    params.k_stride_head = k.strides[1];
    params.v_stride_token = v.strides[0];
    params.v_stride_head = v.strides[1];
    call_on(device, params, LUMOS_LAUNCHERS(paged_write));
  });
}

}  // namespace lumos
