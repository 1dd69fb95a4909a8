// Thread blocks over rows of logits, and how the logits must lie for them.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <climits>
#include <cstdint>

#include "cpu/error.h"
#include "cuda/alignment.h"
#include "lumos/linear_cross_entropy.h"

namespace lumos {

constexpr int kGroupTiles = 4;   // of a warp, whose loads travel at the same time
constexpr int kMaxRowWarps = 8;  // of a block

struct RowBlocks {
  dim3 grid, block;
};

// Block (i, j) has row i; warp y of it group j * block.y + y of kGroupTiles tiles, one warp a group up to kMaxRowWarps.
inline RowBlocks row_blocks(const lumos_logits_block& logits) {
  constexpr int64_t kGroupColumns = int64_t{kGroupTiles} * LUMOS_LOSS_TILE_COLUMNS;
  const int64_t groups = std::max<int64_t>(1, (logits.num_columns + kGroupColumns - 1) / kGroupColumns);
  const int64_t warps = std::min<int64_t>(groups, kMaxRowWarps), parts = (groups + warps - 1) / warps;
  require(logits.num_rows <= INT_MAX && parts <= 65535,
          "masked_linear_cross_entropy: %lld rows of %lld columns are more than a grid holds",
          static_cast<long long>(logits.num_rows), static_cast<long long>(logits.num_columns));
  return {dim3(logits.num_rows, parts), dim3(32, warps)};
}

// Throws unless the logits, or their gradient, begin at `data` and lie as the kernels read them.
inline void require_logits(const lumos_logits_block& logits, const char* name, const void* data,
                           int64_t element_bytes) {
  require(logits.column_begin >= 0 && logits.column_begin % LUMOS_LOSS_TILE_COLUMNS == 0,
          "column_begin is %lld; it must be a multiple of %d", static_cast<long long>(logits.column_begin),
          LUMOS_LOSS_TILE_COLUMNS);
  const auto address = reinterpret_cast<uintptr_t>(data);
  const int64_t row_bytes = logits.row_stride * element_bytes;
  require(address % kAccessBytes == 0 && row_bytes % kAccessBytes == 0,
          "masked_linear_cross_entropy: %s begins at %lld and has a stride of %lld bytes; both must be multiples of 16",
          name, static_cast<long long>(address), static_cast<long long>(row_bytes));
}

}  // namespace lumos
