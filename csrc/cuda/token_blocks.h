// Thread blocks over [tokens, heads, vectors of a head].
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <climits>
#include <cstdint>

#include "cpu/error.h"

namespace lumos {

constexpr int kBlockThreads = 256;
constexpr int kBlockVectors = 32;  // of one head in a block, at most

struct TokenBlocks {
  dim3 grid, block;
};

// Thread (x, y, z) of block (i, j) has vector j * block.x + x of token i * block.y + y, in heads z, z + block.z, ...:
// what all heads of a token share is fetched or computed once in its block. About four heads a thread pay for that and
// leave enough blocks where tokens are few.
inline TokenBlocks token_blocks(const char* op, int64_t num_tokens, int64_t num_heads, int64_t vectors_per_head) {
  const int64_t x = std::min<int64_t>(vectors_per_head, kBlockVectors), rows = kBlockThreads / x;
  int64_t z = 1;
  while (4 * z < num_heads && 2 * z <= std::min<int64_t>(rows, 64)) z *= 2;
  const int64_t y = rows / z;
  const int64_t blocks = (num_tokens + y - 1) / y, parts = (vectors_per_head + x - 1) / x;
  require(blocks <= INT_MAX && parts <= 65535, "%s: %lld tokens of %lld vectors are more than a grid holds", op,
          static_cast<long long>(num_tokens), static_cast<long long>(vectors_per_head));
  return {dim3(blocks, parts), dim3(x, y, z)};
}

}  // namespace lumos
