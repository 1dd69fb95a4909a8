// Floats as integers of the same order, for ranks and selections that do not go by rounding.
#pragma once

#include <cstdint>

namespace lumos {

constexpr uint32_t kKeyOfNaN = 0xfffffffe, kKeyOfNothing = 0xffffffff;

// a < b as floats exactly if order_key(a) < order_key(b), with NaN above infinity, as torch sorts; 0 and -0 are equal.
__device__ inline uint32_t order_key(float x) {
  if (isnan(x)) return kKeyOfNaN;
  const uint32_t bits = __float_as_uint(x + 0.0f);  // no -0
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

}  // namespace lumos
