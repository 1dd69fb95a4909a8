// Vectors at the end of a row, where fewer than kLanes elements are left.
#pragma once

#include "cpu/simd.h"

namespace lumos::LUMOS_ISA {

// The first `count` lanes from memory, the others 0.
template <class T>
LUMOS_INLINE vec load_part(const T* p, int64_t count) {
  T lanes[kLanes] = {};
  std::memcpy(lanes, p, count * sizeof(T));
  return load(lanes);
}

template <class T>
LUMOS_INLINE void store_part(T* p, vec x, int64_t count) {
  T lanes[kLanes];
  store(lanes, x);
  std::memcpy(p, lanes, count * sizeof(T));
}

}  // namespace lumos::LUMOS_ISA
