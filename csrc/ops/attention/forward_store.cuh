// Results of a warp's 32 rows, to global memory.
#pragma once

#include "cuda/kept.cuh"
#include "cuda/vector.cuh"
#include "ops/attention/forward_rows.cuh"
#include "ops/attention/partials.cuh"

namespace lumos {

// place: of the row in [tokens, heads]. unit: of `top`, ln(2) where scores are in base 2. The lse is the natural
// logarithm of the sum of the exponentials of the row's scores.
__device__ inline void store_row_state(const lumos_attention_params& p, int64_t place, float top, float sum,
                                       double unit) {
  const double log_sum = static_cast<double>(log2f(sum)) * 0.6931471805599453;
  p.lse[place] = sum == 0.0f ? -INFINITY : static_cast<float>(top * unit + log_sum);
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
  if (own_row < num_rows)
    store_row_state(p, (slot_begin + own_row) * p.num_heads + head, own_top, own_sum, 0.6931471805599453);
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

// The same for a key split, to the workspace. first_row: in the query tile
template <class T, int kHeadDim>
__device__ void store_partial(const lumos_attention_params& p, const ForwardRows<T, kHeadDim>& rows, int partial,
                              int head, int first_row, int num_rows) {
  const Partials partials(p);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = 16 * m + 8 * r + lane / 4;
      const float sum = rows.total(m, r);
      if (row >= num_rows) continue;
      const int64_t place = partials.place(partial, head, first_row + row);
      if (lane % 4 == 0) partials.states[place] = {rows.top(m, r), sum};
      if (sum == 0.0f) continue;
      // The four lanes of a row write whole sectors.
      float* const values = partials.values + place * kHeadDim + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        *reinterpret_cast<float2*>(values + 8 * n) = {rows.value(m, n, 2 * r), rows.value(m, n, 2 * r + 1)};
      }
    }
  }
}

}  // namespace lumos
