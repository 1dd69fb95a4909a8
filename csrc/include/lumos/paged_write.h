// paged_write: copy keys and values of tokens to slots of a paged cache.
#pragma once

#include <stdint.h>

#include "lumos/dtype.h"
#include "lumos/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lumos_paged_write_params {
  const void* k;         // [tokens, kv_heads, head_dim], dtype
  const void* v;         // [tokens, kv_heads, head_dim], dtype
  void* k_pages;         // [num_slots, kv_heads, head_dim], contiguous, dtype
  void* v_pages;         // [num_slots, kv_heads, head_dim], contiguous, dtype
  const int64_t* slots;  // [tokens], page * page_size + offset, none twice
  lumos_dtype dtype;     // LUMOS_FLOAT32 or LUMOS_BFLOAT16; CUDA: LUMOS_FLOAT16 too
  int64_t num_tokens, num_kv_heads, head_dim, num_slots;
  int64_t k_stride_token, k_stride_head;  // in elements; the last dimension is contiguous
  int64_t v_stride_token, v_stride_head;
  int num_threads;  // of the CPU
  int device;       // CUDA: index of the GPU that holds the tensors
  void* stream;     // CUDA: cudaStream_t of that device
} lumos_paged_write_params;

// Fails before anything is written if a slot is outside the pages.
LUMOS_API lumos_status lumos_cpu_paged_write(const lumos_paged_write_params* params);

// Nobody waits for the GPU to look at the slots: a token whose slot is outside the pages is left out. Base, token and
// head strides of all tensors, and the heads of the pages, in bytes are multiples of 16.
LUMOS_API lumos_status lumos_cuda_paged_write(const lumos_paged_write_params* params);

#ifdef __cplusplus
}
#endif
