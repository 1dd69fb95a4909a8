// mm_rope: rotary embedding of (t, h, w) positions (arXiv 2507.08801, section 3.2).
//
// Channels c and c + head_dim / 2 are a pair, turned by the fp32 product position[axis(c)] * inv_freq[c].
#pragma once

#include <stdint.h>

#include "lumos/dtype.h"
#include "lumos/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lumos_mm_rope_params {
  const void* x;             // [tokens, heads, head_dim], dtype
  const int32_t* positions;  // [tokens, 3], contiguous: t, h, w
  const float* inv_freq;     // [head_dim / 2]
  void* out;                 // [tokens, heads, head_dim], dtype; may be x with the strides of x
  lumos_dtype dtype;         // LUMOS_FLOAT32 or LUMOS_BFLOAT16; CUDA: LUMOS_FLOAT16 too
  int64_t num_tokens, num_heads, head_dim;
  int64_t x_stride_token, x_stride_head;  // in elements; the last dimension is contiguous
  int64_t out_stride_token, out_stride_head;
  int inverse;      // rotate by the negative angle
  int parity;       // round cosine and sine to dtype
  int num_threads;  // of the CPU
  int device;       // CUDA: index of the GPU that holds the tensors
  void* stream;     // CUDA: cudaStream_t of that device
} lumos_mm_rope_params;

LUMOS_API lumos_status lumos_cpu_mm_rope(const lumos_mm_rope_params* params);

// Base, token and head strides of x and out in bytes are multiples of 16.
LUMOS_API lumos_status lumos_cuda_mm_rope(const lumos_mm_rope_params* params);

#ifdef __cplusplus
}
#endif
