// Tile registers (AMX) for bf16 products, and the layouts that their operands want. For *_amx.cpp only.
//
// A tile has 16 rows of 64 bytes. tile_multiply<C, A, B> adds to C [16, 16] of float the product of A [16, 32] and
// B [32, 16] of bf16. A is loaded from rows in memory as they are. B holds pairs along the sum: dword (k, n) of its
// memory is (B[2k, n], B[2k + 1, n]). Within a product even and odd k are two chains of fma from zero, whose sum is
// added to C; subnormal operands and results count as zero. So a product depends on its operands alone, and a k where
// one of them is zero and the other finite has no influence.
#pragma once

#include "cpu/simd.h"

namespace lumos::LUMOS_ISA {

constexpr int kTileRows = 16;                        // of each tile; columns of B and C
constexpr int kTileSum = 32;                         // products in each sum: columns of A, rows of B
constexpr int kTileBytes = 1024;                     // of each tile
constexpr int kTileElements = kTileRows * kTileSum;  // of a tile of bf16

// The tile registers of this thread while the object lives.
class TileRegisters {
 public:
  TileRegisters() {
    alignas(64) uint8_t config[64] = {1};  // palette 1: 8 tiles of up to 16 rows of 64 bytes
    for (int i = 0; i < 8; ++i) {
      config[16 + 2 * i] = 64;  // bytes of a row, 16 bits
      config[48 + i] = kTileRows;
    }
    asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  ~TileRegisters() { asm volatile("tilerelease"); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// Written out because the intrinsics of gcc 12 tell the compiler neither that a load reads memory (it may move stores
// behind it) nor which registers they use.
template <int T>
LUMOS_INLINE void tile_load(const void* memory, int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(memory), "r"(stride_bytes), "i"(T) : "memory");
}

template <int T>
LUMOS_INLINE void tile_store(void* memory, int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(memory), "r"(stride_bytes), "i"(T) : "memory");
}

template <int T>
LUMOS_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}

template <int C, int A, int B>
LUMOS_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

LUMOS_INLINE ivec load_dwords(const void* p) {
  ivec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

LUMOS_INLINE void store_dwords(void* p, ivec x) { std::memcpy(p, &x, sizeof x); }

// One B tile for sums over dimensions: dword (k, n) = (x[n][2k], x[n][2k + 1]), for 16 rows of 32.
LUMOS_INLINE void pack_dimension_pairs(const bfloat16* const* rows, int64_t d, bfloat16* tile) {
  for (int chunk = 0; chunk < 4; ++chunk) {  // 4 dwords of each row
    __m512i x[4];                            // lane l of x[i]: row 4l + i
    for (int i = 0; i < 4; ++i) {
      x[i] = __m512i{};
      for (int lane = 0; lane < 4; ++lane) {
        const __m128i dwords = _mm_loadu_si128((const __m128i*)(rows[4 * lane + i] + d + 8 * chunk));
        x[i] = _mm512_mask_broadcast_i32x4(x[i], static_cast<__mmask16>(0xf << (4 * lane)), dwords);
      }
    }
    typedef int64_t quads __attribute__((vector_size(64)));
    ivec low[2], high[2];  // rows i, i + 1 interleaved
    for (int i = 0; i < 2; ++i) {
      const ivec a = (ivec)x[2 * i], b = (ivec)x[2 * i + 1];
      low[i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
      high[i] = __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    bfloat16* out = tile + 4 * chunk * kTileSum;
    const quads a = (quads)low[0], b = (quads)low[1], c = (quads)high[0], e = (quads)high[1];
    store_dwords(out, (ivec)__builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14));
    store_dwords(out + kTileSum, (ivec)__builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15));
    store_dwords(out + 2 * kTileSum, (ivec)__builtin_shufflevector(c, e, 0, 8, 2, 10, 4, 12, 6, 14));
    store_dwords(out + 3 * kTileSum, (ivec)__builtin_shufflevector(c, e, 1, 9, 3, 11, 5, 13, 7, 15));
  }
}

// Two B tiles for sums over rows, of dimensions d .. d + 15 and d + 16 .. d + 31: dword (k, n) = (x[2k][d + n],
// x[2k + 1][d + n]), for 32 rows.
LUMOS_INLINE void pack_row_pairs(const bfloat16* const* rows, int64_t d, bfloat16* tiles) {
  typedef int64_t quads __attribute__((vector_size(64)));
  for (int k = 0; k < kTileRows; ++k) {
    const __m512i a = (__m512i)load_dwords(rows[2 * k] + d), b = (__m512i)load_dwords(rows[2 * k + 1] + d);
    // Each 128-bit lane by itself, then the lanes in order.
    const quads low = (quads)_mm512_unpacklo_epi16(a, b), high = (quads)_mm512_unpackhi_epi16(a, b);
    store_dwords(tiles + k * kTileSum, (ivec)__builtin_shufflevector(low, high, 0, 1, 8, 9, 2, 3, 10, 11));
    store_dwords(tiles + kTileElements + k * kTileSum,
                 (ivec)__builtin_shufflevector(low, high, 4, 5, 12, 13, 6, 7, 14, 15));
  }
}

}  // namespace lumos::LUMOS_ISA
