#include "cpu/simd.h"
#include "cpu/sincos.h"
#include "ops/mm_rope/mm_rope_axis.h"
#include "ops/mm_rope/mm_rope_kernel.h"

namespace lumos::LUMOS_ISA {
namespace {

template <class T>
vec rounded_to(vec x) {
  T half[kLanes];
  store(half, x);
  return load(half);
}

// Cosines and sines of one token, shared by its heads.
template <class T>
void fill_table(const lumos_mm_rope_params& p, const int32_t* position, float* cosines, float* sines) {
  const float place[3] = {static_cast<float>(position[0]), static_cast<float>(position[1]),
                          static_cast<float>(position[2])};
  float by_slot[16];
  for (int slot = 0; slot < 16; ++slot) by_slot[slot] = place[kLumosRopeAxis[slot]];
  for (int64_t f = 0; f < p.head_dim / 2; f += kLanes) {
    vec sine, cosine;
    sincos(load(by_slot + f % 16) * load(p.inv_freq + f), &sine, &cosine);
    if (p.parity) {
      sine = rounded_to<T>(sine);
      cosine = rounded_to<T>(cosine);
    }
    store(cosines + f, cosine);
    store(sines + f, p.inverse ? -sine : sine);
  }
}

template <class T>
void rotate_tokens(const lumos_mm_rope_params& p, int64_t begin, int64_t end, float* table) {
  const int64_t half = p.head_dim / 2;
  float* cosines = table;
  float* sines = table + half;
  for (int64_t token = begin; token < end; ++token) {
    fill_table<T>(p, p.positions + 3 * token, cosines, sines);
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
