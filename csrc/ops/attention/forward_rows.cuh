// What a warp of the forward holds of its 32 query rows, and what it does with one key tile of 64 keys.
//
// Weights are 2^(score - top), scores in base 2. `top` is the greatest score of the first tile in which the row sees a
// key, and stays while the weights stay in range: then no maximum is taken and no sum rescaled. Where those of a row
// sum to more than kLimit in one lane, the row takes the tile's greatest score as its new top, and the weights are
// computed once more. A lane's columns are the same in every tile, so that depends on the row's own scores and on
// nothing else.
//
// Lane 4 g + t holds rows 16 m + 8 r + g (m, r = 0, 1) and, of keys and channels, columns 8 n + 2 t + c (c = 0, 1), at
// [m][n][2 r + c].
#pragma once

#include "cuda/at_offset.cuh"
#include "cuda/ldmatrix.cuh"
#include "cuda/mma.cuh"
#include "cuda/mma_first.cuh"
#include "cuda/not_finite.cuh"
#include "cuda/swizzle.cuh"
#include "cuda/unrolled.cuh"
#include "ops/attention/forward_mask.cuh"

namespace lumos {

__device__ inline float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <class T, int kHeadDim>
class ForwardRows {
  static constexpr int kRowBytes = kHeadDim * 2, kDepth = kHeadDim / 16;
  static constexpr int kKeys = LUMOS_TILE_TOKENS;
  static constexpr float kLimit = 256.0f;
  using Order = Swizzle<kRowBytes>;
  using Scores = float[2][kKeys / 8][4];

 public:
  static constexpr int kRows = 32;
  static constexpr bool kKeepsQueries = kHeadDim <= 64;  // in registers

  // What the calling lane needs of a tile of keys or values in shared memory: its chunks 2 d, which turn and repeat.
  static constexpr int kTurns = kDepth < Order::kGroup / 2 ? kDepth : Order::kGroup / 2;
  using Chunks = uint32_t[kTurns];
  __device__ static uint32_t first_chunk() {
    const int lane = threadIdx.x % 32;
    return Order::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }
  __device__ static void turn(uint32_t first, Chunks& chunks) {
#pragma unroll
    for (int d = 0; d < kTurns; ++d) chunks[d] = first ^ turned(d);
  }

  // q: [32, head_dim] in shared memory, num_rows of them queries, the others zeros. factor: scale log2(e)
  __device__ ForwardRows(uint32_t q, int num_rows, float factor) : factor_(factor) {
    const int lane = threadIdx.x % 32;
    q_ = q + Order::offset(lane % 16, lane / 16);
    rising_ = topless_ = (1u << (num_rows + 7 - lane / 4) / 8) - 1;  // rows 8 i + lane / 4 < num_rows
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        minus_top_[m][r] = sum_[m][r] = 0.0f;
      }
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc_[m][n][i] = 0.0f;
      }
    }
  }

  __device__ void load_queries() {
    if constexpr (kKeepsQueries) {
      unrolled<kDepth>([&](auto depth) {
        constexpr int d = depth.value;
        ldmatrix_at<added(d)>(queries_[d][0], q_ ^ turned(d));
        ldmatrix_at<added(d) + 16 * kRowBytes>(queries_[d][1], q_ ^ turned(d));
      });
    }
  }

  // Whether weigh_usual does the work.
  __device__ bool is_usual(uint32_t work) const { return work == usual_; }

  // Weights of a tile's keys where every row sees them all and has its top, and their sums, to be added. False where a
  // row must take a new one: nothing is done then. k: [64, head_dim] in shared memory. The whole warp calls it.
  __device__ bool weigh_usual(const Chunks& k, float (&total)[2][2]) {
    Scores s;
    scores(k, s);
    unrolled<kKeys / 16>([&](auto keys) { weights<keys.value, kEvery>(s, {}, total); });
    return !any_above(total, kLimit);
  }
  __device__ void add(const float (&total)[2][2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum_[i / 2][i % 2] += total[i / 2][i % 2];
  }

  // The same in general. work: not 0; whole: the value of it where every row sees all 64 keys, else set_mask(TileMask&)
  // tells which.
  template <class SetMask>
  __device__ void weigh(const Chunks& k, uint32_t work, uint32_t whole, const SetMask& set_mask) {
    float total[2][2], limit = kLimit;
    while (true) {
      Scores s;
      scores(k, s);
      if (!kKeepsQueries && work == usual_) {
        unrolled<kKeys / 16>([&](auto keys) { weights<keys.value, kEvery>(s, {}, total); });
      } else {
        TileMask mask;
        mask.set_whole();
        if (work != whole) set_mask(mask);
        if (usual_ == kNoWork) {
          work == whole ? raise<false>(s, mask) : raise<true>(s, mask);
          rising_ = topless_;
          usual_ = __any_sync(~0u, topless_) ? kNoWork : whole;
        }
        unrolled<kKeys / 16>([&](auto keys) {
          constexpr int j = keys.value;
          if (mask.every_row_sees_all_of(j)) {
            weights<j, kEvery>(s, mask, total);
          } else if (kKeepsQueries && mask.equal) {
            weights<j, kByColumn>(s, mask, total);
          } else {
            weights<j, kByRow>(s, mask, total);
          }
        });
      }
      if (!any_above(total, limit)) break;
      limit = INFINITY;  // once more at most: the greatest score itself is rounded
      take_new_tops(total);
    }
    add(total);
  }

  // Adds the weighted values. v: [64, head_dim] in shared memory, kOffset bytes further
  template <int kOffset>
  __device__ void accumulate(const Chunks& v) {
    for_values<kOffset>(v, [&](int j, int d, uint32_t (&b)[4]) { multiply(j, b, acc_, 2 * d); });
  }

  // The same where some values are not finite, and reach only the rows whose weight of them is above 0.
  template <int kOffset>
  __device__ void accumulate_checked(const Chunks& v) {
    for_values<kOffset>(v, [&](int j, int d, uint32_t (&b)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) b[i] = finite_part<T>(b[i]);
      multiply(j, b, acc_, 2 * d);
    });
#pragma unroll 1
    for (uint32_t sign = 0; sign < 0x10000; sign += 0x8000) add_infinities<kOffset>(v, sign);
  }

  // Of the row in which this lane has columns. The whole warp calls it.
  __device__ float total(int m, int r) const {
    float x = sum_[m][r];
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
  }
  // -inf: the row sees nothing.
  __device__ float top(int m, int r) const { return topless_ >> (2 * m + r) & 1 ? -INFINITY : -minus_top_[m][r]; }
  __device__ float value(int m, int n, int i) const { return acc_[m][n][i]; }

 private:
  // Offset of two chunks 2 d, 2 d + 1 from the first two in a row of the swizzle: by xor, and by addition.
  __host__ __device__ static constexpr int turned(int d) { return 2 * d % Order::kGroup * 16; }
  __host__ __device__ static constexpr int added(int d) { return 2 * d / Order::kGroup * Order::kGroup * 16; }

  __device__ void scores(const Chunks& k, Scores& s) const {
    unrolled<kDepth>([&](auto depth) {
      constexpr int d = depth.value;
      uint32_t a[2][4];
      unrolled<2>([&](auto half) {
        constexpr int m = half.value;
        if constexpr (kKeepsQueries) {
#pragma unroll
          for (int i = 0; i < 4; ++i) a[m][i] = queries_[d][m][i];
        } else {
          ldmatrix_at<added(d) + m * 16 * kRowBytes>(a[m], q_ ^ turned(d));
        }
      });
      unrolled<kKeys / 16>([&](auto keys) {
        constexpr int j = keys.value;
        uint32_t b[4];
        ldmatrix_at<added(d) + j * 16 * kRowBytes>(b, k[d % kTurns]);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          if constexpr (d == 0) {
            mma_first<T>(s[m][2 * j], a[m], b[0], b[1]);
            mma_first<T>(s[m][2 * j + 1], a[m], b[2], b[3]);
          } else {
            mma<T>(s[m][2 * j], a[m], b[0], b[1]);
            mma<T>(s[m][2 * j + 1], a[m], b[2], b[3]);
          }
        }
      });
    });
  }

  // acc[:, n and n + 1] += weights of keys 16 j to 16 j + 15 times b
  template <int kTiles>
  __device__ void multiply(int j, const uint32_t (&b)[4], float (&acc)[2][kTiles][4], int n) const {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      mma<T>(acc[m][n], weights_[m][j], b[0], b[2]);
      mma<T>(acc[m][n + 1], weights_[m][j], b[1], b[3]);
    }
  }

  // body(j, d, b) with the matrices b of 8 keys x 8 channels from keys 16 j, 16 j, 16 j + 8, 16 j + 8 and channels 16
  // d, 16 d + 8, 16 d, 16 d + 8: from the addresses of scores().
  template <int kOffset, class Body>
  __device__ void for_values(const Chunks& v, const Body& body) const {
    unrolled<kDepth>([&](auto depth) {
      unrolled<kKeys / 16>([&](auto keys) {
        constexpr int d = depth.value, j = keys.value;
        uint32_t b[4];
        ldmatrix_transposed_at<kOffset + added(d) + j * 16 * kRowBytes>(b, v[d % kTurns]);
        body(j, d, b);
      });
    });
  }

  // sign: 0x8000 for -inf. NaN counts for both signs.
  template <int kOffset>
  __device__ void add_infinities(const Chunks& v, uint32_t sign) {
    float weight[2][2][4];  // of the infinities in 16 channels
    for_values<kOffset>(v, [&](int j, int d, uint32_t (&b)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) b[i] = infinities<T>(b[i], sign);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        if (j == 0) weight[i / 8][i / 4 % 2][i % 4] = 0.0f;
      }
      multiply(j, b, weight, 0);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        if (j == kKeys / 16 - 1 && weight[i / 8][i / 4 % 2][i % 4] > 0.0f) {
          acc_[i / 8][2 * d + i / 4 % 2][i % 4] += sign ? -INFINITY : INFINITY;
        }
      }
    });
  }

  // Which keys of a group have weights: all, some but the same for every row, or those that the row sees.
  enum Seen { kEvery, kByColumn, kByRow };

  // Weights of keys 16 kGroup to 16 kGroup + 15, and their sums on top of those of the groups before.
  template <int kGroup, Seen kSeen>
  __device__ void weights(const Scores& s, const TileMask& mask, float (&total)[2][2]) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int n = 2 * kGroup; n < 2 * kGroup + 2; ++n) {
          float w[2];
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const float x = fmaf(s[m][n][2 * r + c], factor_, minus_top_[m][r]);
            const bool seen = kSeen == kEvery || (kSeen == kByRow ? mask.sees(m, r, n, c) : mask.sees(0, 0, n, c));
            w[c] = exp2_approximate(seen ? x : -INFINITY);
            total[m][r] = n + c == 0 ? w[c] : total[m][r] + w[c];
          }
          weights_[m][n / 2][n % 2 * 2 + r] = pack_pair<T>(w[0], w[1]);
        }
      }
    }
  }

  __device__ static bool any_above(const float (&total)[2][2], float limit) {
    const float greatest = fmaxf(fmaxf(total[0][0], total[0][1]), fmaxf(total[1][0], total[1][1]));
    return __any_sync(~0u, greatest > limit);
  }

  // The rows whose weights are above the limit take a new top when the tile is weighed again: bits 2 m + r of the
  // lane's.
  __device__ void take_new_tops(const float (&total)[2][2]) {
    const uint32_t quad = 15u << threadIdx.x % 32 / 4 * 4;
    rising_ = 0;
    usual_ = kNoWork;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t lanes = __ballot_sync(~0u, total[i / 2][i % 2] > kLimit);
      rising_ |= uint32_t((lanes & quad) != 0) << i;
    }
  }

  // Gives the rows of rising_ the tile's greatest score as their top, where it is greater. The whole warp calls it.
  template <bool kMasked>
  __device__ void raise(const Scores& s, const TileMask& mask) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float greatest = -INFINITY;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const bool seen = !kMasked || mask.sees(m, r, n, c);
            greatest = fmaxf(greatest, seen ? s[m][n][2 * r + c] * factor_ : -INFINITY);
          }
        }
        greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 1));
        greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 2));
        const float before = top(m, r);
        if (rising_ >> (2 * m + r) & 1 && greatest > before) {
          minus_top_[m][r] = -greatest;
          topless_ &= ~(1u << (2 * m + r));
          if (kKeepsQueries && before == -INFINITY) continue;  // all sums are 0
          const float shrink = exp2_approximate(before - greatest);
          sum_[m][r] *= shrink;
#pragma unroll
          for (int n = 0; n < kHeadDim / 8; ++n) {
            acc_[m][n][2 * r] *= shrink;
            acc_[m][n][2 * r + 1] *= shrink;
          }
        }
      }
    }
  }

  float factor_;
  uint32_t q_;
  static constexpr uint32_t kNoWork = ~0u;
  uint32_t usual_ =
      kNoWork;        // the work that needs neither a mask nor a new top; kNoWork: some row of the warp takes one
  uint32_t topless_;  // rows of the lane that have none yet
  uint32_t rising_;   // those that take a new one: the topless or, when a tile is computed again, those above it
  uint32_t queries_[kKeepsQueries ? kDepth : 1][2][4];
  float acc_[2][kHeadDim / 8][4], minus_top_[2][2], sum_[2][2];
  uint32_t weights_[2][kKeys / 16][4];
};

}  // namespace lumos
