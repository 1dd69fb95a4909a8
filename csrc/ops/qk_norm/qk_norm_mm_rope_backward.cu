#include "cuda/alignment.h"
#include "cuda/device_guard.h"
#include "cuda/dtype.h"
#include "ops/qk_norm/qk_norm_backward.cuh"

namespace lumos {
namespace {

constexpr const char* kOp = "qk_norm_mm_rope_backward";

void require_aligned_tensors(const char* name_x, const char* name_grad, const lumos_qk_norm_heads& heads,
                             const lumos_qk_norm_backward_heads& grads, int64_t head_dim, int64_t bytes) {
  require_aligned(kOp, name_x, heads.x, heads.x_stride_token * bytes, heads.x_stride_head * bytes);
  require_aligned(kOp, name_grad, grads.grad_out, grads.grad_out_stride_token * bytes,
                  grads.grad_out_stride_head * bytes);
  require_aligned(kOp, "the gradient of its input", grads.grad_x, heads.num_heads * head_dim * bytes, head_dim * bytes);
}

template <class T>
void launch(const lumos_qk_norm_backward_params& b) {
  const lumos_qk_norm_params& p = b.forward;
  const QkTiles tiles = qk_tiles(kOp, p);
  require_aligned_tensors("q", "grad_q_out", p.q, b.q, p.head_dim, sizeof(T));
  require_aligned_tensors("k", "grad_k_out", p.k, b.k, p.head_dim, sizeof(T));
  const DeviceGuard guard(p.device);
  const auto stream = static_cast<cudaStream_t>(p.stream);
  const int64_t num_blocks = tiles.q.num_blocks + tiles.k.num_blocks;
  if (num_blocks > 0) {
    const int shared_bytes = WarpSums<T>::num_floats(1 << tiles.lanes_log2) * static_cast<int>(sizeof(float));
    qk_norm_backward_kernel<T><<<static_cast<unsigned>(num_blocks), kBlockThreads, shared_bytes, stream>>>(b, tiles);
    check_launch(kOp);
  }
  const int64_t rows = p.q.num_rows + p.k.num_rows, sum_blocks = rows * (2 * p.head_dim / kSumColumns);
  require(sum_blocks <= INT_MAX, "%s: %lld rows of weights are more than a grid holds", kOp,
          static_cast<long long>(rows));
  qk_norm_sum_kernel<<<static_cast<unsigned>(sum_blocks), dim3(kSumColumns, kSumSlices), 0, stream>>>(b, tiles);
  check_launch(kOp);
}

}  // namespace
}  // namespace lumos

extern "C" lumos_status lumos_cuda_qk_norm_mm_rope_backward_workspace_bytes(const lumos_qk_norm_params* forward,
                                                                            int64_t* num_bytes) {
  return lumos::guarded([&] {
    const lumos::QkTiles tiles = lumos::qk_tiles(lumos::kOp, *forward);
    *num_bytes = (tiles.q.num_blocks + tiles.k.num_blocks) * 2 * forward->head_dim * int64_t{sizeof(float)};
  });
}

extern "C" lumos_status lumos_cuda_qk_norm_mm_rope_backward(const lumos_qk_norm_backward_params* params) {
  return lumos::guarded([&] {
    lumos::with_float_type(lumos::kOp, params->forward.dtype,
                           [&](auto zero) { lumos::launch<decltype(zero)>(*params); });
  });
}
