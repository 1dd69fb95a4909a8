// Cosines and sines of one token, shared by its heads.
#pragma once

#include "cpu/simd.h"
#include "cpu/sincos.h"
#include "ops/mm_rope/mm_rope_axis.h"

namespace lumos::LUMOS_ISA {

template <class T>
vec rounded_to(vec x) {
  T half[kLanes];
  store(half, x);
  return load(half);
}

// table[head_dim]: cosines, then sines, negative if `inverse`; with `parity` both rounded to T.
template <class T>
void fill_rotation_table(const int32_t* position, const float* inv_freq, int64_t head_dim, bool inverse, bool parity,
                         float* table) {
  const float place[3] = {static_cast<float>(position[0]), static_cast<float>(position[1]),
                          static_cast<float>(position[2])};
  float by_slot[16];
  for (int slot = 0; slot < 16; ++slot) by_slot[slot] = place[lumos_rope_axis(slot)];
  const int64_t half = head_dim / 2;
  for (int64_t f = 0; f < half; f += kLanes) {
    vec sine, cosine;
    sincos(load(by_slot + f % 16) * load(inv_freq + f), &sine, &cosine);
    if (parity) {
      sine = rounded_to<T>(sine);
      cosine = rounded_to<T>(cosine);
    }
    store(table + f, cosine);
    store(table + half + f, inverse ? -sine : sine);
  }
}

}  // namespace lumos::LUMOS_ISA
