// tube_mask: mask the content tokens of frames by the ranks of uniform numbers (arXiv 2507.08801, section 3.3).
#pragma once

#include <stdint.h>

#include "lumos/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lumos_tube_mask_params {
  const int64_t* tokens;       // [tokens]
  const float* rank_uniforms;  // [ranks]; draws side by side, none NaN
  const int64_t* starts;       // [draws + 1]: where each draw begins in rank_uniforms, from 0 to ranks
  const int64_t* spans;        // [frames, 3]: first content token, number of content tokens, first of their ranks;
                               // in ascending order of tokens, none twice
  const int64_t* num_masked;   // [frames]: a token is masked where its rank is below this
  int64_t* out;                // [tokens]: tokens, masked ones replaced by mask_id
  uint8_t* mask;               // [tokens]: 1 where masked
  int32_t* order;              // [ranks]: scratch
  int64_t num_tokens, num_ranks, num_draws, num_frames;
  int64_t longest_draw;  // CUDA: ranks of the longest draw
  int64_t mask_id;
  int num_threads;  // of the CPU
  int device;       // CUDA: index of the GPU that holds the tensors
  void* stream;     // CUDA: cudaStream_t of that device
} lumos_tube_mask_params;

// Position i of a draw has rank argsort(uniforms of the draw)[i], equal numbers in order of position.
LUMOS_API lumos_status lumos_cpu_tube_mask(const lumos_tube_mask_params* params);

// Nothing outside the tokens and ranks is touched; what is masked if starts or spans reach outside is not specified.
LUMOS_API lumos_status lumos_cuda_tube_mask(const lumos_tube_mask_params* params);

#ifdef __cplusplus
}
#endif
