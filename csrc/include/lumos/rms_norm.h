// rms_norm: root-mean-square normalisation of rows, in one pass over memory.
//
//   scale = 1 / sqrt(mean(x^2) + eps);   out = x scale weight
//
// Everything between x and out is float32; out is rounded once.
#pragma once

#include <stdint.h>

#include "lumos/dtype.h"
#include "lumos/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lumos_rms_norm_params {
  const void* x;        // [rows, width], dtype
  const float* weight;  // [width]
  void* out;            // [rows, width], contiguous, dtype
  lumos_dtype dtype;    // LUMOS_FLOAT32 or LUMOS_BFLOAT16
  int64_t num_rows, width;
  int64_t x_stride_row;  // in elements; the last dimension is contiguous
  float eps;
  int num_threads;
} lumos_rms_norm_params;

LUMOS_API lumos_status lumos_cpu_rms_norm(const lumos_rms_norm_params* params);

typedef struct lumos_rms_norm_backward_params {
  lumos_rms_norm_params forward;  // out is not read
  const void* grad_out;           // [rows, width], dtype
  void* grad_x;                   // [rows, width], contiguous, dtype
  float* grad_weight;             // [width]
  int64_t grad_out_stride_row;
} lumos_rms_norm_backward_params;

// The scale is computed again from x. The gradient of the weight is a sum over blocks of 64 rows, added in their order:
// equal for any number of threads.
LUMOS_API lumos_status lumos_cpu_rms_norm_backward(const lumos_rms_norm_backward_params* params);

#ifdef __cplusplus
}
#endif
