// qk_norm_mm_rope: LayerNorm over head_dim of each head of q and k, then mm_rope, in one pass over memory.
//
//   normal = (x - mean) / sqrt(variance + eps)
//   out = rotation of (normal * weight + bias)
//
// Everything between x and out is float32; out is rounded once. Head j reads row j / (num_heads / num_rows) of weight
// and bias.
#pragma once

#include <stdint.h>

#include "lumos/dtype.h"
#include "lumos/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// Queries or keys. Strides are in elements; the last dimension is contiguous.
typedef struct lumos_qk_norm_heads {
  const void* x;        // [tokens, heads, head_dim], dtype
  const float* weight;  // [rows, head_dim]
  const float* bias;    // [rows, head_dim]
  void* out;            // [tokens, heads, head_dim], contiguous, dtype; k with slots: [num_slots, heads, head_dim]
  int64_t num_heads, num_rows;
  int64_t x_stride_token, x_stride_head;
} lumos_qk_norm_heads;

typedef struct lumos_qk_norm_params {
  lumos_qk_norm_heads q, k;
  const int32_t* positions;  // [tokens, 3], contiguous: t, h, w
  const float* inv_freq;     // [head_dim / 2]
  lumos_dtype dtype;         // LUMOS_FLOAT32 or LUMOS_BFLOAT16; CUDA: LUMOS_FLOAT16 too
  int64_t num_tokens, head_dim;
  float eps;
  int parity;  // round cosine and sine to dtype

  // Of qk_norm_mm_rope_paged_write only: keys and values into the pages of a cache.
  const int64_t* slots;  // [tokens]: token i of k and v goes to slot slots[i]; none twice
  const void* v;         // [tokens, kv_heads, head_dim], dtype; as many heads as k
  void* v_pages;         // [num_slots, kv_heads, head_dim], contiguous, dtype
  int64_t num_slots;
  int64_t v_stride_token, v_stride_head;

  int num_threads;  // of the CPU
  int device;       // CUDA: index of the GPU that holds the tensors
  void* stream;     // CUDA: cudaStream_t of that device
} lumos_qk_norm_params;

LUMOS_API lumos_status lumos_cpu_qk_norm_mm_rope(const lumos_qk_norm_params* params);

// Fails before anything is written if a slot is outside the pages.
LUMOS_API lumos_status lumos_cpu_qk_norm_mm_rope_paged_write(const lumos_qk_norm_params* params);

// CUDA: head_dim is at most 256; base, token and head strides of all tensors of dtype in bytes are multiples of 16.
LUMOS_API lumos_status lumos_cuda_qk_norm_mm_rope(const lumos_qk_norm_params* params);

// Nobody waits for the GPU to look at the slots: k and v of a token whose slot is outside the pages are left out.
LUMOS_API lumos_status lumos_cuda_qk_norm_mm_rope_paged_write(const lumos_qk_norm_params* params);

typedef struct lumos_qk_norm_backward_heads {
  const void* grad_out;  // [tokens, heads, head_dim], dtype: gradient of the rotated heads
  void* grad_x;          // [tokens, heads, head_dim], contiguous, dtype
  float* grad_weight;    // [rows, head_dim]
  float* grad_bias;      // [rows, head_dim]
  int64_t grad_out_stride_token, grad_out_stride_head;
} lumos_qk_norm_backward_heads;

typedef struct lumos_qk_norm_backward_params {
  lumos_qk_norm_params forward;  // bias and out are not read
  lumos_qk_norm_backward_heads q, k;
  float* workspace;  // CUDA: as many bytes as asked for below, contents free
} lumos_qk_norm_backward_params;

// Mean and variance are computed again from x. Gradients of weights are sums over blocks of 64 tokens, added in their
// order: equal for any number of threads.
LUMOS_API lumos_status lumos_cpu_qk_norm_mm_rope_backward(const lumos_qk_norm_backward_params* params);

// The same with blocks of as many tokens as fit into a thread block. Their sums lie in the workspace, whose size
// follows from dtype, the numbers of tokens, heads and rows, and head_dim.
LUMOS_API lumos_status lumos_cuda_qk_norm_mm_rope_backward(const lumos_qk_norm_backward_params* params);
LUMOS_API lumos_status lumos_cuda_qk_norm_mm_rope_backward_workspace_bytes(const lumos_qk_norm_params* forward,
                                                                           int64_t* num_bytes);

#ifdef __cplusplus
}
#endif
