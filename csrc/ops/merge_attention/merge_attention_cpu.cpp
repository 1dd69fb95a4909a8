#include <cmath>

#include "cpu/simd.h"
#include "ops/merge_attention/merge_attention_kernel.h"

namespace lumos::LUMOS_ISA {
namespace {

// weight_a a + weight_b b, where a weight of zero means that the side saw nothing and may hold anything.
template <class T>
void merge_row(const T* a, const T* b, float weight_a, float weight_b, T* out, int64_t head_dim) {
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    const vec from_a = weight_a == 0.0f ? vec{} : load(a + d) * broadcast(weight_a);
    const vec from_b = weight_b == 0.0f ? vec{} : load(b + d) * broadcast(weight_b);
    store(out + d, from_a + from_b);
  }
}

template <class T>
void merge_tokens(const lumos_merge_attention_params& p, int64_t begin, int64_t end) {
  const T* out_a = static_cast<const T*>(p.out_a);
  const T* out_b = static_cast<const T*>(p.out_b);
  T* out = static_cast<T*>(p.out);
  for (int64_t token = begin; token < end; ++token) {
    for (int64_t head = 0; head < p.num_heads; ++head) {
      const int64_t row = token * p.num_heads + head;
      const double lse_a = p.lse_a[row], lse_b = p.lse_b[row];
      const double top = lse_a > lse_b || lse_a != lse_a ? lse_a : lse_b;
      double lse = top, weight_a = 0.0, weight_b = 0.0;
      if (top != -INFINITY) {
        weight_a = exp(lse_a - top);
        weight_b = exp(lse_b - top);
        const double sum = weight_a + weight_b;
        lse = top + log(sum);
        weight_a /= sum;
        weight_b /= sum;
      }
      p.lse[row] = static_cast<float>(lse);
      merge_row(out_a + token * p.out_a_stride_token + head * p.out_a_stride_head,
                out_b + token * p.out_b_stride_token + head * p.out_b_stride_head, static_cast<float>(weight_a),
                static_cast<float>(weight_b), out + row * p.head_dim, p.head_dim);
    }
  }
}

}  // namespace

void merge_attention_tokens(const lumos_merge_attention_params& params, int64_t begin, int64_t end) {
  if (params.dtype == LUMOS_BFLOAT16) {
    merge_tokens<bfloat16>(params, begin, end);
  } else {
    merge_tokens<float>(params, begin, end);
  }
}

}  // namespace lumos::LUMOS_ISA
