#include "cpu/simd.h"
#include "ops/mm_rope/mm_rope_kernel.h"
#include "ops/mm_rope/rotation_table.h"

namespace lumos::LUMOS_ISA {
namespace {

template <class T>
void rotate_tokens(const lumos_mm_rope_params& p, int64_t begin, int64_t end, float* table) {
  const int64_t half = p.head_dim / 2;
  const float* cosines = table;
  const float* sines = table + half;
  for (int64_t token = begin; token < end; ++token) {
    fill_rotation_table<T>(p.positions + 3 * token, p.inv_freq, p.head_dim, p.inverse, p.parity, table);
    const T* x = static_cast<const T*>(p.x) + token * p.x_stride_token;
    T* out = static_cast<T*>(p.out) + token * p.out_stride_token;
    for (int64_t head = 0; head < p.num_heads; ++head, x += p.x_stride_head, out += p.out_stride_head) {
      for (int64_t f = 0; f < half; f += kLanes) {
        const vec cosine = load(cosines + f), sine = load(sines + f);
        const vec first = load(x + f), second = load(x + half + f);
        store(out + f, fma(first, cosine, -(second * sine)));
        store(out + half + f, fma(second, cosine, first * sine));
      }
    }
  }
}

}  // namespace

void mm_rope_tokens(const lumos_mm_rope_params& params, int64_t begin, int64_t end, float* table) {
  if (params.dtype == LUMOS_BFLOAT16) {
    rotate_tokens<bfloat16>(params, begin, end, table);
  } else {
    rotate_tokens<float>(params, begin, end, table);
  }
}

}  // namespace lumos::LUMOS_ISA
