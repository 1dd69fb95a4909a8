// merge_attention: combine two attention results over disjoint sets of keys by their log-sum-exp.
//
//   lse = log(exp(lse_a) + exp(lse_b));   out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b
//
// A side whose lse is -inf saw nothing and contributes exactly nothing. If neither saw anything, out is 0 and lse -inf.
#pragma once

#include <stdint.h>

#include "lumos/dtype.h"
#include "lumos/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lumos_merge_attention_params {
  const void* out_a;   // [tokens, heads, head_dim], dtype
  const void* out_b;   // [tokens, heads, head_dim], dtype
  const float* lse_a;  // [tokens, heads], contiguous, natural logarithm
  const float* lse_b;  // [tokens, heads], contiguous
  void* out;           // [tokens, heads, head_dim], contiguous, dtype
  float* lse;          // [tokens, heads], contiguous
  lumos_dtype dtype;   // LUMOS_FLOAT32 or LUMOS_BFLOAT16; CUDA: LUMOS_FLOAT16 too
  int64_t num_tokens, num_heads, head_dim;
  int64_t out_a_stride_token, out_a_stride_head;  // in elements; the last dimension is contiguous
  int64_t out_b_stride_token, out_b_stride_head;
  int num_threads;  // of the CPU
  int device;       // CUDA: index of the GPU that holds the tensors
  void* stream;     // CUDA: cudaStream_t of that device
} lumos_merge_attention_params;

LUMOS_API lumos_status lumos_cpu_merge_attention(const lumos_merge_attention_params* params);

// out_a, out_b and out begin at multiples of 16 bytes, and the token and head strides are multiples of 16 bytes.
LUMOS_API lumos_status lumos_cuda_merge_attention(const lumos_merge_attention_params* params);

#ifdef __cplusplus
}
#endif
