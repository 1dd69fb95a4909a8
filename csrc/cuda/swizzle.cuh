// Order of the chunks of 16 bytes in the rows of a tile in shared memory, such that the 8 rows of an 8 x 8 matrix of
// ldmatrix lie in different banks, and so do neighbouring chunks of a row.
//
// Rows are multiples of 64 bytes and packed; the tile begins at a multiple of 128 bytes. Chunk c of row r lies where
// chunk c ^ turn(r) of the row would lie. turn repeats every 8 rows: rows 8 apart have equal offsets within the row.
#pragma once

#include <cstdint>

namespace lumos {

template <int kRowBytes>
struct Swizzle {
  static_assert(kRowBytes % 64 == 0);
  static constexpr int kGroup = kRowBytes % 128 == 0 ? 8 : 4;  // chunks that change places with each other

  __device__ static int turn(int row) { return kGroup == 8 ? row % 8 : row / 2 % 4; }
  // In bytes. For chunks in one group: offset(row, c + d) == offset(row, c) ^ 16 d where c ^ d == c + d.
  __device__ static int offset(int row, int chunk) { return row * kRowBytes + (chunk ^ turn(row)) * 16; }
};

}  // namespace lumos
