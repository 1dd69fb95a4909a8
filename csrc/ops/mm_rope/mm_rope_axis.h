// Which position rotates a frequency: written once for the host and the device.
#pragma once

#include <stdint.h>

#include "lumos/visibility.h"

// Axis (0 = t, 1 = h, 2 = w) of frequency index f, by f mod 16: t t t t h h w w h h w w h h w w, two bits each.
LUMOS_HOST_DEVICE static inline int lumos_rope_axis(int f) { return (UINT32_C(0xa5a5a500) >> (2 * (f & 15))) & 3; }
