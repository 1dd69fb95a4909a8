// What kernels with accesses of 16 bytes ask of a tensor [tokens, heads, head_dim].
#pragma once

#include <cstdint>

#include "cpu/error.h"

namespace lumos {

constexpr int64_t kAccessBytes = 16;

// strides_bytes: of tokens and heads; the last dimension is contiguous.
inline void require_aligned(const char* op, const char* name, const void* data, int64_t stride_token_bytes,
                            int64_t stride_head_bytes) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  require(
      address % kAccessBytes == 0 && stride_token_bytes % kAccessBytes == 0 && stride_head_bytes % kAccessBytes == 0,
      "%s: %s begins at %lld and has strides of %lld and %lld bytes; all must be multiples of 16", op, name,
      static_cast<long long>(address), static_cast<long long>(stride_token_bytes),
      static_cast<long long>(stride_head_bytes));
}

}  // namespace lumos
