// swiglu: out = silu(gate) up, element by element, and its gradients, each in one pass over memory.
//
//   silu(x) = x / (1 + exp(-x))
//
// Everything in between is float32; results are rounded once.
#pragma once

#include <stdint.h>

#include "lumos/dtype.h"
#include "lumos/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lumos_swiglu_params {
  const void* gate;   // [rows, width], dtype
  const void* up;     // [rows, width], dtype
  void* out;          // [rows, width], contiguous, dtype
  lumos_dtype dtype;  // LUMOS_FLOAT32 or LUMOS_BFLOAT16
  int64_t num_rows, width;
  int64_t gate_stride_row, up_stride_row;  // in elements; the last dimension is contiguous
  int num_threads;
} lumos_swiglu_params;

LUMOS_API lumos_status lumos_cpu_swiglu(const lumos_swiglu_params* params);

typedef struct lumos_swiglu_backward_params {
  lumos_swiglu_params forward;  // out is written too, so that nobody need keep it
  const void* grad_out;         // [rows, width], contiguous, dtype
  void* grad_gate;              // [rows, width], contiguous, dtype
  void* grad_up;                // [rows, width], contiguous, dtype; may be grad_out
} lumos_swiglu_backward_params;

LUMOS_API lumos_status lumos_cpu_swiglu_backward(const lumos_swiglu_backward_params* params);

#ifdef __cplusplus
}
#endif
