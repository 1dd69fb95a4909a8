// Errors of the CUDA runtime, as those of the library.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "cpu/error.h"

namespace lumos {

inline void check_cuda(const char* what, cudaError_t status) {
  if (status == cudaSuccess) return;
  const lumos_code code = status == cudaErrorMemoryAllocation ? LUMOS_OUT_OF_MEMORY : LUMOS_INTERNAL_ERROR;
  throw Error(code, std::string(what) + ": CUDA reports: " + cudaGetErrorString(status));
}

// After a launch. Says nothing about what the kernel does: nobody waits for it.
inline void check_launch(const char* op) { check_cuda(op, cudaGetLastError()); }

}  // namespace lumos
