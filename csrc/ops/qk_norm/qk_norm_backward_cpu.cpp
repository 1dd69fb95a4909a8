#include "cpu/simd.h"
#include "ops/mm_rope/rotation_table.h"
#include "ops/qk_norm/head_norm.h"
#include "ops/qk_norm/qk_norm_kernel.h"

namespace lumos::LUMOS_ISA {
namespace {

// Adds what one channel gives to the gradients of weight and bias; returns the gradient of its normalised value.
LUMOS_INLINE vec through_affine(vec grad, vec normal, const float* weight, float* weight_sum, float* bias_sum) {
  store(weight_sum, fma(grad, normal, load(weight_sum)));
  store(bias_sum, load(bias_sum) + grad);
  return grad * load(weight);
}

// The heads of one token. `sums`: [rows, head_dim] of the weight, then of the bias. `table` is that of the inverse
// rotation; `row` and `grads` hold head_dim floats.
template <class T>
void norm_rotate_backward(const lumos_qk_norm_heads& heads, const lumos_qk_norm_backward_heads& b, int64_t head_dim,
                          float eps, int64_t token, const float* table, float* sums, float* row, float* grads) {
  const int64_t half = head_dim / 2;
  const int64_t row_heads = heads.num_heads / heads.num_rows;
  const float scale = 1.0f / static_cast<float>(head_dim);
  const T* x = static_cast<const T*>(heads.x) + token * heads.x_stride_token;
  const T* grad_out = static_cast<const T*>(b.grad_out) + token * b.grad_out_stride_token;
  T* grad_x = static_cast<T*>(b.grad_x) + token * heads.num_heads * head_dim;
  for (int64_t head = 0; head < heads.num_heads; ++head) {
    const float* weight = heads.weight + head / row_heads * head_dim;
    float* weight_sum = sums + head / row_heads * head_dim;
    float* bias_sum = weight_sum + heads.num_rows * head_dim;
    const vec inverse_deviation = broadcast(centre(x, head_dim, eps, row));
    vec sum{}, dot{};
    for (int64_t f = 0; f < half; f += kLanes) {
      const int64_t g = half + f;
      const vec cosine = load(table + f), sine = load(table + g);
      const vec first = load(grad_out + f), second = load(grad_out + g);
      const vec normal_f = load(row + f) * inverse_deviation, normal_g = load(row + g) * inverse_deviation;
      const vec grad_f =
          through_affine(fma(first, cosine, -(second * sine)), normal_f, weight + f, weight_sum + f, bias_sum + f);
      const vec grad_g =
          through_affine(fma(second, cosine, first * sine), normal_g, weight + g, weight_sum + g, bias_sum + g);
      store(row + f, normal_f);
      store(row + g, normal_g);
      store(grads + f, grad_f);
      store(grads + g, grad_g);
      sum += grad_f + grad_g;
      dot = fma(grad_f, normal_f, fma(grad_g, normal_g, dot));
    }
    // Of what moves all channels alike, or along the normalised row, nothing reaches x.
    const vec mean = broadcast(horizontal_sum(sum) * scale), along = broadcast(horizontal_sum(dot) * scale);
    for (int64_t c = 0; c < head_dim; c += kLanes) {
      store(grad_x + c, (load(grads + c) - mean - load(row + c) * along) * inverse_deviation);
    }
    x += heads.x_stride_head;
    grad_out += b.grad_out_stride_head;
    grad_x += head_dim;
  }
}

template <class T>
void backward_tokens(const lumos_qk_norm_backward_params& b, int64_t begin, int64_t end, float* sums, float* scratch) {
  const auto& p = b.forward;
  float* table = scratch;
  float* row = table + p.head_dim;
  float* grads = row + p.head_dim;
  float* k_sums = sums + 2 * p.q.num_rows * p.head_dim;
  for (int64_t token = begin; token < end; ++token) {
    fill_rotation_table<T>(p.positions + 3 * token, p.inv_freq, p.head_dim, true, p.parity, table);
    norm_rotate_backward<T>(p.q, b.q, p.head_dim, p.eps, token, table, sums, row, grads);
    norm_rotate_backward<T>(p.k, b.k, p.head_dim, p.eps, token, table, k_sums, row, grads);
  }
}

}  // namespace

void qk_norm_backward_tokens(const lumos_qk_norm_backward_params& params, int64_t begin, int64_t end, float* sums,
                             float* scratch) {
  if (params.forward.dtype == LUMOS_BFLOAT16) {
    backward_tokens<bfloat16>(params, begin, end, sums, scratch);
  } else {
    backward_tokens<float>(params, begin, end, sums, scratch);
  }
}

}  // namespace lumos::LUMOS_ISA
