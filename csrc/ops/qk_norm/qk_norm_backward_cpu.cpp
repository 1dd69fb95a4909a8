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

// What one token needs for its heads, between the loops over them.
struct Scratch {
  float* table;   // [head_dim]: of the inverse rotation
  float* rows;    // [heads, head_dim]: x - mean, then normalised
  float* grads;   // [heads, head_dim]: gradient of the normalised row
  float* scales;  // [heads]: 1 / deviation
  float* means;   // [heads]: of grads
  float* slopes;  // [heads]: mean of grads * normalised row
};

// The heads of one token. `sums`: [rows, head_dim] of the weight, then of the bias.
template <class T>
void norm_rotate_backward(const lumos_qk_norm_heads& heads, const lumos_qk_norm_backward_heads& b, int64_t head_dim,
                          float eps, int64_t token, float* sums, const Scratch& s) {
  centre_heads<T>(heads, head_dim, eps, token, s.rows, s.scales);
  const int64_t half = head_dim / 2;
  const int64_t row_heads = heads.num_heads / heads.num_rows;
  const float inverse_size = 1.0f / static_cast<float>(head_dim);
  const T* grad_out = static_cast<const T*>(b.grad_out) + token * b.grad_out_stride_token;
  for (int64_t head = 0; head < heads.num_heads; ++head, grad_out += b.grad_out_stride_head) {
    const float* weight = heads.weight + head / row_heads * head_dim;
    float* weight_sum = sums + head / row_heads * head_dim;
    float* bias_sum = weight_sum + heads.num_rows * head_dim;
    float* normal = s.rows + head * head_dim;
    float* grad = s.grads + head * head_dim;
    const vec scale = broadcast(s.scales[head]);
    vec sum{}, dot{};
    for (int64_t f = 0; f < half; f += kLanes) {
      const int64_t g = half + f;
      const vec cosine = load(s.table + f), sine = load(s.table + g);
      const vec first = load(grad_out + f), second = load(grad_out + g);
      const vec normal_f = load(normal + f) * scale, normal_g = load(normal + g) * scale;
      const vec grad_f =
          through_affine(fma(first, cosine, -(second * sine)), normal_f, weight + f, weight_sum + f, bias_sum + f);
      const vec grad_g =
          through_affine(fma(second, cosine, first * sine), normal_g, weight + g, weight_sum + g, bias_sum + g);
      store(normal + f, normal_f);
      store(normal + g, normal_g);
      store(grad + f, grad_f);
      store(grad + g, grad_g);
      sum += grad_f + grad_g;
      dot = fma(grad_f, normal_f, fma(grad_g, normal_g, dot));
    }
    s.means[head] = horizontal_sum(sum) * inverse_size;
    s.slopes[head] = horizontal_sum(dot) * inverse_size;
  }
  // What moves all channels alike, or along the normalised row, does not reach x.
  T* grad_x = static_cast<T*>(b.grad_x) + token * heads.num_heads * head_dim;
  for (int64_t head = 0; head < heads.num_heads; ++head) {
    const vec scale = broadcast(s.scales[head]), mean = broadcast(s.means[head]), slope = broadcast(s.slopes[head]);
    for (int64_t c = head * head_dim; c < (head + 1) * head_dim; c += kLanes) {
      store(grad_x + c, (load(s.grads + c) - mean - load(s.rows + c) * slope) * scale);
    }
  }
}

template <class T>
void backward_tokens(const lumos_qk_norm_backward_params& b, int64_t begin, int64_t end, float* sums, float* scratch) {
  const auto& p = b.forward;
  const int64_t heads = scratch_heads(p);
  Scratch s;
  s.table = scratch;
  s.rows = s.table + p.head_dim;
  s.grads = s.rows + heads * p.head_dim;
  s.scales = s.grads + heads * p.head_dim;
  s.means = s.scales + heads;
  s.slopes = s.means + heads;
  float* k_sums = sums + 2 * p.q.num_rows * p.head_dim;
  for (int64_t token = begin; token < end; ++token) {
    fill_rotation_table<T>(p.positions + 3 * token, p.inv_freq, p.head_dim, true, p.parity, s.table);
    norm_rotate_backward<T>(p.q, b.q, p.head_dim, p.eps, token, sums, s);
    norm_rotate_backward<T>(p.k, b.k, p.head_dim, p.eps, token, k_sums, s);
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
