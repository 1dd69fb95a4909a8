// Matrices that a warp holds in registers.
//
// A fragment of mma, ldmatrix and movmatrix is a block of 8 rows; lane l holds the part l % 4 of row l / 4. So the row
// of one register, read from its first byte to its last, is the block in row-major order: 8 x 8 elements of 16 bits,
// 8 x 4 of 32 or 64 bits, 8 x 16 of 8 bits.
#pragma once

#include <cstdint>

#include "ptxvm/decode.h"
#include "ptxvm/instruction.h"

namespace lumos::ptxvm {

// The perfect shuffle: element i of the first half goes to 2 i, that of the second to 2 i + 1. It makes the top bit of
// an index its lowest bit.
template <class T, int kCount>
inline void shuffle(const T* __restrict from, T (&__restrict to)[kCount]) {
  for (int i = 0; i < kCount / 2; ++i) {
    to[2 * i] = from[i];
    to[2 * i + 1] = from[kCount / 2 + i];
  }
}

// A block of 8 rows, so that its columns follow one another: three shuffles move the three bits of the row's index
// from the top to the bottom.
template <class T, int kCount>
inline void transpose(const T* from, T (&to)[kCount]) {
  alignas(64) T once[kCount], twice[kCount];
  shuffle(from, once);
  shuffle(once, twice);
  shuffle(twice, to);
}

inline void need_whole_warp(uint32_t mask) {
  if (mask == kAllLanes) return;
  throw Fault("barrier divergence", format("it needs all 32 lanes of the warp; lanes %08x execute it", mask));
}

// Rows of the `count` registers of a vector operand, of 64 bits each if `wide`.
void decode_registers(const Decoding& d, int operand, int count, bool wide, uint32_t* rows);

void decode_mma(const Decoding& d);

}  // namespace lumos::ptxvm
