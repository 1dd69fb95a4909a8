// transpose: out[column][row] = x[row][column] for elements of 2 bytes.
#pragma once

#include <stdint.h>

#include "lumos/dtype.h"
#include "lumos/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lumos_transpose_params {
  const void* x;      // [rows, columns], dtype
  void* out;          // [columns, rows], contiguous, dtype
  lumos_dtype dtype;  // LUMOS_BFLOAT16 or LUMOS_FLOAT16
  int64_t num_rows, num_columns;
  int64_t x_stride_row;  // in elements; the last dimension is contiguous
  int num_threads;
} lumos_transpose_params;

LUMOS_API lumos_status lumos_cpu_transpose(const lumos_transpose_params* params);

#ifdef __cplusplus
}
#endif
