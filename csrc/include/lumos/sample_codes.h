// sample_codes: the part of unmask_step that reads the logits. For every unknown row
//
//   l = guidance_scale * (cond - uncond) + uncond, rounded to float32 after each operation; cond alone without uncond
//   p = softmax(l / temperature); softmax(l) for temperature 0
//   code: the given one, or the first class whose cumulative p exceeds the uniform, or the first largest l
//   confidence = p[code]
//
// Cumulative sums are taken in blocks of fixed size, on the CPU in double, on CUDA in float and across blocks in
// double: a row's result depends on that row alone.
#pragma once

#include <stdint.h>

#include "lumos/dtype.h"
#include "lumos/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lumos_sample_codes_params {
  const void* cond;       // [samples, rows, classes], dtype; the last dimension is contiguous
  const void* uncond;     // the same, or NULL: no guidance
  lumos_dtype dtype;      // LUMOS_FLOAT32 or LUMOS_BFLOAT16; CUDA: LUMOS_FLOAT16 too
  const uint8_t* known;   // [samples, rows]: rows that are not looked at, whatever they hold
  const int64_t* given;   // [samples, rows]: codes in [0, classes), not read where known; or NULL
  const float* uniforms;  // [samples, rows] in [0, 1), or NULL; not read where codes are given or temperature is 0
  int64_t* codes;         // [samples, rows]; 0 where known
  float* confidence;      // [samples, rows]; the largest finite number where known
  int64_t num_samples, num_rows, num_classes;
  int64_t cond_stride_sample, cond_stride_row, uncond_stride_sample, uncond_stride_row;  // in elements
  float guidance_scale, temperature;
  int num_threads;  // of the CPU
  int device;       // CUDA: index of the GPU that holds the tensors
  void* stream;     // CUDA: cudaStream_t of that device
} lumos_sample_codes_params;

// Fails before anything is written if a given code is outside the classes.
LUMOS_API lumos_status lumos_cpu_sample_codes(const lumos_sample_codes_params* params);

// Base, sample and row strides of cond and uncond in bytes are multiples of 16. A given code outside the classes
// becomes code 0 with confidence NaN; a uniform outside [0, 1) means the nearest one inside.
LUMOS_API lumos_status lumos_cuda_sample_codes(const lumos_sample_codes_params* params);

#ifdef __cplusplus
}
#endif
