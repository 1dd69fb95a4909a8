// Cross-entropy over logits that exist for one block of columns at a time, and the gradient of such a block.
//
//   row_max = max over columns of x;   row_sum = sum over columns of exp(x - row_max)
//   loss = log(row_sum) - (x[target] - row_max)
//   grad_logits = grad (exp(x - row_max) / row_sum - [column = target])
//
// The matrix products that make the logits and use their gradient are the caller's. Results of a row depend on its
// logits alone: not on other rows, the number of threads, or how the columns were cut into blocks.
#pragma once

#include <stdint.h>

#include "lumos/dtype.h"
#include "lumos/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// Blocks begin at multiples of this many columns.
enum { LUMOS_LOSS_TILE_COLUMNS = 256 };

typedef struct lumos_logits_block {
  const void* data;   // [rows, columns], dtype
  lumos_dtype dtype;  // LUMOS_FLOAT32 or LUMOS_BFLOAT16; CUDA: LUMOS_FLOAT16 too
  int64_t num_rows;
  int64_t num_columns;     // of the block
  int64_t row_stride;      // in elements; the last dimension is contiguous
  int64_t column_begin;    // the block's first column; a multiple of LUMOS_LOSS_TILE_COLUMNS
  const int64_t* targets;  // [rows], columns of the whole
} lumos_logits_block;

// Takes one block into the state of each row. Blocks come in increasing order, without a gap; that of column 0 sets the
// state up.
typedef struct lumos_linear_cross_entropy_params {
  lumos_logits_block logits;
  float* row_max;  // [rows], state
  float* row_sum;  // [rows], state
  float* loss;     // [rows]; x[target] from the block that holds the target, the loss after the last block
  int is_last;
  int num_threads;  // of the CPU
  int device;       // CUDA: index of the GPU that holds the tensors
  void* stream;     // CUDA: cudaStream_t of that device
} lumos_linear_cross_entropy_params;

typedef struct lumos_linear_cross_entropy_backward_params {
  lumos_logits_block logits;
  const float* row_max;  // [rows]
  const float* row_sum;  // [rows]
  const float* grad;     // [rows], of the loss
  void* grad_logits;     // [rows, columns] with the strides of the logits, dtype; may be the logits
  int num_threads;       // of the CPU
  int device;            // CUDA: index of the GPU that holds the tensors
  void* stream;          // CUDA: cudaStream_t of that device
} lumos_linear_cross_entropy_backward_params;

LUMOS_API lumos_status lumos_cpu_linear_cross_entropy(const lumos_linear_cross_entropy_params* params);
LUMOS_API lumos_status
lumos_cpu_linear_cross_entropy_backward(const lumos_linear_cross_entropy_backward_params* params);

// Logits and their gradient begin at multiples of 16 bytes, as do all their rows. Nobody waits to look at the targets:
// one outside the columns makes row_sum, the loss and the gradient of its row NaN.
LUMOS_API lumos_status lumos_cuda_linear_cross_entropy(const lumos_linear_cross_entropy_params* params);
LUMOS_API lumos_status
lumos_cuda_linear_cross_entropy_backward(const lumos_linear_cross_entropy_backward_params* params);

#ifdef __cplusplus
}
#endif
