// Results of a warp's 32 rows, to global memory.
#pragma once

#include "cuda/kept.cuh"
#include "cuda/vector.cuh"
#include "ops/attention/forward_rows.cuh"

namespace lumos {

// Natural logarithm of the sum of the exponentials of a row's scores.
__device__ inline float natural_lse(float top, float sum) {
  return sum == 0.0f ? -INFINITY : static_cast<float>((top + static_cast<double>(log2f(sum))) * 0.6931471805599453);
}

// place: of the row in [tokens, heads]
__device__ inline void store_row_state(const lumos_attention_params& p, int64_t place, float top, float sum) {
  p.lse[place] = natural_lse(top, sum);
  if (p.row_state) *reinterpret_cast<float2*>(p.row_state + 2 * place) = make_float2(top, sum);
}

// slot_begin: of the first row. own: [32, head_dim] in shared memory, the warp's alone; out goes through it so that
// global memory sees whole rows.
template <class T, int kHeadDim>
__device__ void store_rows(const lumos_attention_params& p, const ForwardRows<T, kHeadDim>& rows, int64_t slot_begin,
                           int head, int num_rows, unsigned char* own) {
  using Order = Swizzle<kHeadDim * 2>;
  constexpr int kRowBytes = kHeadDim * 2, kGroup = Order::kGroup;
  const int lane = threadIdx.x % 32, row_of_8 = lane / 4;
  // Of chunk 0; the group's others lie at an xor, other groups and rows 8 apart at constant distances.
  const uint32_t first = Order::offset(row_of_8, 0) + lane % 4 * 4;
  float own_top, own_sum;  // of row 8 (lane % 4) + row_of_8: a lane has the state of one row
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = rows.total(m, r), top = rows.top(m, r);
      const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
      if (2 * m + r == 0 || lane % 4 == 2 * m + r) {
        own_top = top;
        own_sum = sum;
      }
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        // + 0: never -0, whatever tiles without a visible key have added.
        const uint32_t pair = pack_pair<T>(fmaf(rows.value(m, n, 2 * r), inverse, 0.0f),
                                           fmaf(rows.value(m, n, 2 * r + 1), inverse, 0.0f));
        const uint32_t chunk = (first ^ n % kGroup * 16) + (n / kGroup * kGroup * 16 + (16 * m + 8 * r) * kRowBytes);
        *reinterpret_cast<uint32_t*>(own + chunk) = pair;
      }
    }
  }
  const int own_row = 8 * (lane % 4) + row_of_8;
  if (own_row < num_rows) store_row_state(p, (slot_begin + own_row) * p.num_heads + head, own_top, own_sum);
  __syncwarp();

  // kGroup neighbouring lanes copy a row, kRows rows at once.
  constexpr int kRows = 32 / kGroup;
  const int row = lane / kGroup, chunk = lane % kGroup;
  // Rows 4 apart turn by 4 where kGroup is 8; rows 8 apart have equal turns.
  const unsigned char* const from[] = {own + Order::offset(row, chunk), own + Order::offset(row, chunk ^ 4)};
  const int64_t stride = p.num_heads * kHeadDim;
  T* to = static_cast<T*>(p.out) + (slot_begin + row) * stride + head * kHeadDim + chunk * 8;
#pragma unroll
  for (int i = 0; i < ForwardRows<T, kHeadDim>::kRows; i += kRows) {
    if (row + i < num_rows) {
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; j += kGroup) {
        store_vector(to + j * 8, *reinterpret_cast<const uint4*>(from[i % 8 / 4] + (i * kRowBytes + j * 16)));
      }
    }
    to = kept(to + kRows * stride);
  }
}

}  // namespace lumos
