// The element types of CUDA kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <string>

#include "cpu/error.h"
#include "lumos/dtype.h"

namespace lumos {

// body(T()) with T the type of `dtype`.
template <class Body>
void with_float_type(const char* op, lumos_dtype dtype, Body&& body) {
  switch (dtype) {
    case LUMOS_FLOAT32: return body(float());
    case LUMOS_BFLOAT16: return body(__nv_bfloat16());
    case LUMOS_FLOAT16: return body(__half());
    default: throw Error(LUMOS_UNSUPPORTED_TYPE, std::string(op) + " takes float32, bfloat16 and float16");
  }
}

}  // namespace lumos
