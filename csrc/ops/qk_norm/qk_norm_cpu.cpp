#include "cpu/simd.h"
#include "ops/mm_rope/rotation_table.h"
#include "ops/qk_norm/head_norm.h"
#include "ops/qk_norm/qk_norm_kernel.h"

namespace lumos::LUMOS_ISA {
namespace {

// The heads of one token; `out_token` is its place in heads.out. `rows` [heads, head_dim] and `scales` [heads] are
// scratch. Two loops over the heads: in one, each head would wait for the statistics of its own row.
template <class T>
void norm_rotate(const lumos_qk_norm_heads& heads, int64_t head_dim, float eps, int64_t token, int64_t out_token,
                 const float* table, float* rows, float* scales) {
  centre_heads<T>(heads, head_dim, eps, token, rows, scales);
  const int64_t half = head_dim / 2;
  const int64_t row_heads = heads.num_heads / heads.num_rows;
  T* out = static_cast<T*>(heads.out) + out_token * heads.num_heads * head_dim;
  for (int64_t head = 0; head < heads.num_heads; ++head, rows += head_dim, out += head_dim) {
    const float* weight = heads.weight + head / row_heads * head_dim;
    const float* bias = heads.bias + head / row_heads * head_dim;
    const vec scale = broadcast(scales[head]);
    for (int64_t f = 0; f < half; f += kLanes) {
      const int64_t g = half + f;
      const vec cosine = load(table + f), sine = load(table + g);
      const vec first = fma(load(rows + f) * scale, load(weight + f), load(bias + f));
      const vec second = fma(load(rows + g) * scale, load(weight + g), load(bias + g));
      store(out + f, fma(first, cosine, -(second * sine)));
      store(out + g, fma(second, cosine, first * sine));
    }
  }
}

template <class T>
void norm_rotate_tokens(const lumos_qk_norm_params& p, int64_t begin, int64_t end, float* scratch) {
  float* table = scratch;
  float* rows = table + p.head_dim;
  float* scales = rows + scratch_heads(p) * p.head_dim;
  for (int64_t token = begin; token < end; ++token) {
    fill_rotation_table<T>(p.positions + 3 * token, p.inv_freq, p.head_dim, false, p.parity, table);
    norm_rotate<T>(p.q, p.head_dim, p.eps, token, token, table, rows, scales);
    norm_rotate<T>(p.k, p.head_dim, p.eps, token, p.slots ? p.slots[token] : token, table, rows, scales);
  }
}

}  // namespace

void qk_norm_tokens(const lumos_qk_norm_params& params, int64_t begin, int64_t end, float* scratch) {
  if (params.dtype == LUMOS_BFLOAT16) {
    norm_rotate_tokens<bfloat16>(params, begin, end, scratch);
  } else {
    norm_rotate_tokens<float>(params, begin, end, scratch);
  }
}

}  // namespace lumos::LUMOS_ISA
