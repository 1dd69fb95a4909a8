#include <algorithm>

#include "cpu/simd.h"
#include "ops/transpose/transpose_kernel.h"

namespace lumos::LUMOS_ISA {
namespace {

constexpr int64_t kLine = 32;  // elements of a cache line: a tile reads and writes whole ones

typedef uint16_t eight __attribute__((vector_size(16)));

LUMOS_INLINE eight low_halves(eight a, eight b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
LUMOS_INLINE eight high_halves(eight a, eight b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

// 8 rows of 8 elements become 8 columns, by interleaving row i with row i + 4 three times.
LUMOS_INLINE void transpose_8x8(const uint16_t* x, int64_t x_stride, uint16_t* out, int64_t out_stride) {
  eight rows[8], mixed[8];
  for (int i = 0; i < 8; ++i) std::memcpy(&rows[i], x + i * x_stride, sizeof(eight));
  for (int pass = 0; pass < 3; ++pass) {
    for (int i = 0; i < 4; ++i) {
      mixed[2 * i] = low_halves(rows[i], rows[i + 4]);
      mixed[2 * i + 1] = high_halves(rows[i], rows[i + 4]);
    }
    std::memcpy(rows, mixed, sizeof rows);
  }
  for (int i = 0; i < 8; ++i) std::memcpy(out + i * out_stride, &rows[i], sizeof(eight));
}

// By way of a tile in the first-level cache: with strides of a power of two the lines of x would evict each other
// there.
void transpose_tile(const uint16_t* x, int64_t x_stride, uint16_t* out, int64_t out_stride) {
  alignas(64) uint16_t tile[kLine][kLine];
  for (int64_t r = 0; r < kLine; r += 8) {
    for (int64_t c = 0; c < kLine; c += 8) transpose_8x8(x + r * x_stride + c, x_stride, &tile[c][r], kLine);
  }
  for (int64_t c = 0; c < kLine; ++c) std::memcpy(out + c * out_stride, tile[c], sizeof tile[c]);
}

}  // namespace

void transpose_block(const lumos_transpose_params& p, int64_t row, int64_t column) {
  const int64_t row_end = std::min(row + kTransposeBlock, p.num_rows);
  const int64_t column_end = std::min(column + kTransposeBlock, p.num_columns);
  for (int64_t c = column; c < column_end; c += kLine) {
    for (int64_t r = row; r < row_end; r += kLine) {
      const uint16_t* x = static_cast<const uint16_t*>(p.x) + r * p.x_stride_row + c;
      uint16_t* out = static_cast<uint16_t*>(p.out) + c * p.num_rows + r;
      const int64_t rows = std::min(kLine, row_end - r), columns = std::min(kLine, column_end - c);
      if (rows == kLine && columns == kLine) {
        transpose_tile(x, p.x_stride_row, out, p.num_rows);
        continue;
      }
      for (int64_t j = 0; j < columns; ++j) {
        for (int64_t i = 0; i < rows; ++i) out[j * p.num_rows + i] = x[i * p.x_stride_row + j];
      }
    }
  }
}

}  // namespace lumos::LUMOS_ISA
