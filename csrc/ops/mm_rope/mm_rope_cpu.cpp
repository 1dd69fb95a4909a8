#include "cpu/rows_ahead.h"
#include "cpu/simd.h"
#include "ops/mm_rope/mm_rope_kernel.h"
#include "ops/mm_rope/rotation_table.h"

namespace lumos::LUMOS_ISA {
namespace {

struct Pair {
  vec first, second;
};

// Frequencies f .. f + kLanes - 1 of a row. `table`: cosines, then sines.
template <class T>
LUMOS_INLINE Pair rotated(const T* x, const float* table, int64_t half, int64_t f) {
  const vec cosine = load(table + f), sine = load(table + half + f);
  const vec first = load(x + f), second = load(x + half + f);
  return {fma(first, cosine, -(second * sine)), fma(second, cosine, first * sine)};
}

template <class T>
LUMOS_INLINE void rotate_row(const T* x, const float* table, int64_t half, T* out) {
  int64_t f = 0;
  for (; f + 2 * kLanes <= half; f += 2 * kLanes) {
    const Pair a = rotated(x, table, half, f), b = rotated(x, table, half, f + kLanes);
    store(out + f, a.first, b.first);
    store(out + half + f, a.second, b.second);
  }
  for (; f < half; f += kLanes) {
    const Pair a = rotated(x, table, half, f);
    store(out + f, a.first);
    store(out + half + f, a.second);
  }
}

template <class T>
void rotate_tokens(const lumos_mm_rope_params& p, int64_t begin, int64_t end, float* table) {
  const T* first_x = static_cast<const T*>(p.x) + begin * p.x_stride_token;
  T* first_out = static_cast<T*>(p.out) + begin * p.out_stride_token;
  RowsAhead x_ahead(first_x, p.x_stride_token, p.x_stride_head, p.num_heads, p.head_dim);
  RowsAhead out_ahead(first_out, p.out_stride_token, p.out_stride_head, p.num_heads, p.head_dim);
  for (int64_t token = begin; token < end; ++token) {
    fill_rotation_table<T>(p.positions + 3 * token, p.inv_freq, p.head_dim, p.inverse, p.parity, table);
    const T* x = first_x + (token - begin) * p.x_stride_token;
    T* out = first_out + (token - begin) * p.out_stride_token;
    for (int64_t head = 0; head < p.num_heads; ++head, x += p.x_stride_head, out += p.out_stride_head) {
      x_ahead.next();
      out_ahead.next();
      rotate_row(x, table, p.head_dim / 2, out);
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
