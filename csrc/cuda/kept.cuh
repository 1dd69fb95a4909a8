// Values that stay in registers.
#pragma once

namespace lumos {

// x, of which the compiler no longer knows how it was made: it cannot make it anew in each turn of a loop.
template <class T>
__device__ inline T kept(T x) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if constexpr (sizeof(T) == 4) {
    asm volatile("" : "+r"(x));
  } else {
    asm volatile("" : "+l"(x));
  }
  return x;
}

}  // namespace lumos
