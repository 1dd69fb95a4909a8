// Products of 32 x 32 x 32 by tile registers: each load of an operand serves two products. For *_amx.cpp only.
#pragma once

#include "cpu/amx.h"

namespace lumos::LUMOS_ISA {

constexpr int kQuad = 2 * kTileRows;  // rows, columns and summands

// The quad of sums lies in registers 0, 1 (upper rows), 2, 3; operands in 4 to 7.
LUMOS_INLINE void zero_quad() {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
}

LUMOS_INLINE void load_quad(const float* sums, int64_t columns) {
  tile_load<0>(sums, 4 * columns);
  tile_load<1>(sums + kTileRows, 4 * columns);
  tile_load<2>(sums + kTileRows * columns, 4 * columns);
  tile_load<3>(sums + kTileRows * columns + kTileRows, 4 * columns);
}

LUMOS_INLINE void store_quad(float* sums, int64_t columns) {
  tile_store<0>(sums, 4 * columns);
  tile_store<1>(sums + kTileRows, 4 * columns);
  tile_store<2>(sums + kTileRows * columns, 4 * columns);
  tile_store<3>(sums + kTileRows * columns + kTileRows, 4 * columns);
}

// += left right over 32 products: rows of `columns` elements, and two neighbouring tiles of pairs.
LUMOS_INLINE void multiply_quad(const bfloat16* left, int64_t columns, const bfloat16* right) {
  tile_load<4>(left, 2 * columns);
  tile_load<6>(right, 64);
  tile_multiply<0, 4, 6>();
  tile_load<7>(right + kTileElements, 64);
  tile_multiply<1, 4, 7>();
  tile_load<5>(left + kTileRows * columns, 2 * columns);
  tile_multiply<2, 5, 6>();
  tile_multiply<3, 5, 7>();
}

}  // namespace lumos::LUMOS_ISA
