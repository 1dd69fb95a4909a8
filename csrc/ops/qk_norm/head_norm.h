// Statistics of the heads of one token.
#pragma once

#include "cpu/simd_math.h"
#include "lumos/qk_norm.h"

namespace lumos::LUMOS_ISA {

// row = x - mean in float32; returns 1 / sqrt(variance + eps). The variance is that of the centred row, which lies in
// the first-level cache: no cancellation of large means.
template <class T>
LUMOS_INLINE float centre(const T* x, int64_t head_dim, float eps, float* row) {
  const float scale = 1.0f / static_cast<float>(head_dim);
  vec sum{};
  for (int64_t c = 0; c < head_dim; c += kLanes) {
    const vec value = load(x + c);
    store(row + c, value);
    sum += value;
  }
  const vec mean = broadcast(horizontal_sum(sum) * scale);
  vec squares{};
  for (int64_t c = 0; c < head_dim; c += kLanes) {
    const vec value = load(row + c) - mean;
    store(row + c, value);
    squares = fma(value, value, squares);
  }
  return 1.0f / __builtin_sqrtf(horizontal_sum(squares) * scale + eps);
}

// rows[heads, head_dim] and scales[heads]: what `centre` gives for each head of `token`.
template <class T>
void centre_heads(const lumos_qk_norm_heads& heads, int64_t head_dim, float eps, int64_t token, float* rows,
                  float* scales) {
  const T* x = static_cast<const T*>(heads.x) + token * heads.x_stride_token;
  for (int64_t head = 0; head < heads.num_heads; ++head) {
    scales[head] = centre(x + head * heads.x_stride_head, head_dim, eps, rows + head * head_dim);
  }
}

}  // namespace lumos::LUMOS_ISA
