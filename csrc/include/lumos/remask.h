// remask: which of the unknown tokens of each sample stay masked for another step (MaskGIT's rule).
//
//   score = log(max(confidence, 1e-20)) + temperature * gumbel, rounded after each operation; infinite where known
//   m = max(1, min(num_masked, unknown - 1))
//   masked: unknown, and the score lies below score number m, from 0 in ascending order; infinity behind the last
//
// NaN sorts above infinity and is never masked.
#pragma once

#include <stdint.h>

#include "lumos/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lumos_remask_params {
  const float* confidence;    // [samples, rows]; anything where known
  const uint8_t* known;       // [samples, rows]
  const int64_t* num_masked;  // [samples]; or NULL: num_masked_of_all
  const float* gumbel;        // [samples, rows], anything where known; or NULL for temperature 0
  uint8_t* masked;            // [samples, rows]
  int64_t num_samples, num_rows;
  int64_t num_masked_of_all;
  float temperature;
  int num_threads;  // of the CPU
  int device;       // CUDA: index of the GPU that holds the tensors
  void* stream;     // CUDA: cudaStream_t of that device
} lumos_remask_params;

LUMOS_API lumos_status lumos_cpu_remask(const lumos_remask_params* params);
LUMOS_API lumos_status lumos_cuda_remask(const lumos_remask_params* params);

#ifdef __cplusplus
}
#endif
