// Which position rotates a frequency: written once for the host and the device.
#pragma once

#include <stdint.h>

// Axis (0 = t, 1 = h, 2 = w) of frequency index f, by f mod 16: t t t t h h w w h h w w h h w w.
static const int8_t kLumosRopeAxis[16] = {0, 0, 0, 0, 1, 1, 2, 2, 1, 1, 2, 2, 1, 1, 2, 2};
