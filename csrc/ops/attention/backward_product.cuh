// Products of one warp, which has 16 rows of its block's tile, with a tile of 64 tokens in shared memory.
//
// All loads of fragments take lane l to row l % 16 and chunk l / 16 of a square of 16 x 16 elements, the only address
// of a lane in a tile: other squares lie at constant distances from it, or from it with bits of the chunk flipped.
#pragma once

#include "cuda/at_offset.cuh"
#include "cuda/ldmatrix.cuh"
#include "cuda/mma.cuh"
#include "cuda/mma_first.cuh"
#include "cuda/unrolled.cuh"
#include "ops/attention/backward_tile.cuh"

namespace lumos {

constexpr int kTileSquares = LUMOS_TILE_TOKENS / 16;

template <class T, int kHeadDim>
struct Product {
  using Tile = BackwardTile<T, kHeadDim>;
  static constexpr int kSquares = kHeadDim / 16;  // in a row

  // Of a lane in the rows from `first_row` on, a multiple of 16.
  __device__ static uint32_t lane_address(uint32_t tile, int first_row) {
    const int lane = threadIdx.x % 32;
    return tile + Tile::Order::offset(first_row + lane % 16, lane / 16);
  }
  // Of the lanes in square kSquare of the rows, but for kDistance.
  template <int kSquare>
  __device__ static uint32_t turned(uint32_t lane_address) {
    return lane_address ^ (2 * kSquare % Tile::Order::kGroup * 16);
  }
  template <int kRowSquare, int kSquare>
  static constexpr int kDistance =
      kRowSquare * 16 * Tile::kRowBytes + 2 * kSquare / Tile::Order::kGroup * Tile::Order::kGroup * 16;
  // Square kSquare of the lanes' own rows.
  template <int kSquare>
  __device__ static void load(uint32_t (&a)[4], uint32_t lane_address) {
    ldmatrix_at<kDistance<0, kSquare>>(a, turned<kSquare>(lane_address));
  }

  // d [16, 64] = rows [16, head_dim] times the transpose of tile [64, head_dim]. load(i, a): square i of the rows
  template <class Load>
  __device__ static void scores(const Load& load, uint32_t tile, float (&d)[2 * kTileSquares][4]) {
    unrolled<kSquares>([&](auto square) {
      uint32_t a[4];
      load(square, a);
      unrolled<kTileSquares>([&](auto row_square) {
        constexpr int j = row_square.value;
        uint32_t b[4];
        ldmatrix_at<kDistance<j, square.value>>(b, turned<square.value>(tile));
        if constexpr (square.value == 0) {
          mma_first<T>(d[2 * j], a, b[0], b[2]);
          mma_first<T>(d[2 * j + 1], a, b[1], b[3]);
        } else {
          mma<T>(d[2 * j], a, b[0], b[2]);
          mma<T>(d[2 * j + 1], a, b[1], b[3]);
        }
      });
    });
  }

  // d [16, head_dim] += weights [16, 64] times tile [64, head_dim]
  __device__ static void accumulate(const uint32_t (&weights)[kTileSquares][4], uint32_t tile,
                                    float (&d)[2 * kSquares][4]) {
    unrolled<kTileSquares>([&](auto row_square) {
      unrolled<kSquares>([&](auto square) {
        uint32_t b[4];
        constexpr int j = row_square.value, i = square.value;
        ldmatrix_transposed_at<kDistance<j, i>>(b, turned<i>(tile));
        mma<T>(d[2 * i], weights[j], b[0], b[1]);
        mma<T>(d[2 * i + 1], weights[j], b[2], b[3]);
      });
    });
  }

  // out [tokens, head_dim] = factor d, by way of the warp's own rows of `tile`. out: token 0 of the warp
  __device__ static void store(const float (&d)[2 * kSquares][4], float factor, unsigned char* tile, int first_row,
                               T* out, int64_t stride_token, int num_tokens) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2 * kSquares; ++i) {
      unsigned char* pair = tile + Tile::Order::offset(first_row + lane / 4, i) + lane % 4 * 4;
      *reinterpret_cast<uint32_t*>(pair) = pack_pair<T>(factor * d[i][0], factor * d[i][1]);
      *reinterpret_cast<uint32_t*>(pair + 8 * Tile::kRowBytes) = pack_pair<T>(factor * d[i][2], factor * d[i][3]);
    }
    __syncwarp();
    constexpr int kLanes = Tile::kLanes, kStep = 32 / kLanes;
#pragma unroll
    for (int i = 0; i < 16 / kStep; ++i) {
      const int row = lane / kLanes + i * kStep;
#pragma unroll
      for (int j = 0; j < Tile::kVectors; ++j) {
        const int chunk = lane % kLanes + j * kLanes;
        if (row < num_tokens) {
          store_vector(out + row * stride_token + chunk * kVectorSize<T>,
                       *reinterpret_cast<const uint4*>(tile + Tile::Order::offset(first_row + row, chunk)));
        }
      }
    }
  }
};

}  // namespace lumos
