// Gradients of qk_norm_mm_rope: see docs/kernels/qk_norm_mm_rope.md.
//
//   grad = inverse rotation of grad_out;  d weight = sum of grad * normal;  d bias = sum of grad
//   d x = (g - mean(g) - normal * mean(g * normal)) / sqrt(variance + eps),  g = grad * weight
#pragma once

#include "ops/qk_norm/row_block.cuh"

namespace lumos {

constexpr int kBlockWarps = kBlockThreads / 32;

// What the warps of a block have summed: [kBlockWarps][4][kSize] rows of one float for each lane of a head. Rows are
// apart so that neither neighbours in a row nor neighbours among the channels meet in a bank.
template <class T>
struct WarpSums {
  static constexpr int kSize = kVectorSize<T>, kRows = 4 * kSize;
  __host__ __device__ static int row_floats(int num_lanes) {
    return num_lanes + (num_lanes > 32 / kSize ? 32 / kSize : 0);
  }
  __host__ __device__ static int num_floats(int num_lanes) { return kBlockWarps * kRows * row_floats(num_lanes); }
};

// Blocks of qk_tiles(). Each leaves the sums of its tokens and heads in workspace[block][2][head_dim]: of the weight,
// of the bias. Dynamic shared memory: WarpSums.
template <class T>
__global__ void __launch_bounds__(kBlockThreads, 2)
    qk_norm_backward_kernel(const lumos_qk_norm_backward_params b, const QkTiles tiles) {
  using Sums = WarpSums<T>;
  constexpr int kSize = kVectorSize<T>;
  __shared__ RotationTable<T> table;
  __shared__ WeightTable<T> weights[2];
  extern __shared__ float warp_sums[];

  const lumos_qk_norm_params& p = b.forward;
  const RowBlock block(tiles);
  const ThreadPlace& place = block.place;
  const lumos_qk_norm_heads heads = block.is_k ? p.k : p.q;
  const lumos_qk_norm_backward_heads grads = block.is_k ? b.k : b.q;
  const int half = static_cast<int>(p.head_dim) / 2;
  const int channel = place.vector * kSize;
  const bool has_channels = channel < half, works = has_channels && block.token < p.num_tokens;

  // On their way while the angles are computed.
  const T* x = static_cast<const T*>(heads.x) + block.token * heads.x_stride_token +
               block.first_head * heads.x_stride_head + channel;
  const T* grad_out = static_cast<const T*>(grads.grad_out) + block.token * grads.grad_out_stride_token +
                      block.first_head * grads.grad_out_stride_head + channel;
  uint4 first{}, second{};
  if (works && block.own_heads > 0) {
    first = load_vector(x);
    second = load_vector(x + half);
  }

  table.fetch(place, p.positions + 3 * block.first_token, p.num_tokens - block.first_token, p.inv_freq, half);
  for (int i = 0; i < 2; ++i) weights[i].fetch(place, heads.weight + block.row * p.head_dim + i * half, half);
  __syncthreads();
  if (works) table.fill(place, channel, true, p.parity);
  __syncthreads();

  float cosine[kSize]{}, sine[kSize]{};
  if (works) table.read(place, cosine, sine);
  T* grad_x = static_cast<T*>(grads.grad_x) + (block.token * heads.num_heads + block.first_head) * p.head_dim + channel;
  const float inverse_size = 1.0f / static_cast<float>(p.head_dim);
  float sums[4][kSize]{};  // of the weight's halves, of the bias'

#pragma unroll 1
  for (int i = 0; i < block.thread_heads; ++i) {
    float a[kSize], c[kSize], grad_a[kSize], grad_c[kSize];  // a: of the first half, c: of the second
    to_floats<T>(first, a);
    to_floats<T>(second, c);
    if (works && i + 1 < block.own_heads) {
      x += place.num_heads * heads.x_stride_head;
      first = load_vector(x);
      second = load_vector(x + half);
    }
    const bool counts = works && i < block.own_heads;
    uint4 grad_first{}, grad_second{};  // on their way during the statistics: with x they would take too many registers
    if (counts) {
      grad_first = load_vector(grad_out);
      grad_second = load_vector(grad_out + half);
      grad_out += place.num_heads * grads.grad_out_stride_head;
    }
    const float scale = centre(a, c, has_channels, place.num_vectors, inverse_size, p.eps);
    to_floats<T>(grad_first, grad_a);
    to_floats<T>(grad_second, grad_c);
    rotate(grad_a, grad_c, cosine, sine);
    float weight[2][kSize]{}, total = 0.0f, dot = 0.0f;
    if (has_channels) {
      weights[0].read(place.vector, weight[0]);
      weights[1].read(place.vector, weight[1]);
    }
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      a[j] *= scale;
      c[j] *= scale;
      if (counts) {
        sums[0][j] = fmaf(grad_a[j], a[j], sums[0][j]);
        sums[1][j] = fmaf(grad_c[j], c[j], sums[1][j]);
        sums[2][j] += grad_a[j];
        sums[3][j] += grad_c[j];
      }
      grad_a[j] *= weight[0][j];
      grad_c[j] *= weight[1][j];
      total += grad_a[j] + grad_c[j];
      dot = fmaf(grad_a[j], a[j], fmaf(grad_c[j], c[j], dot));
    }
    // What moves all channels alike, or along the normalised head, does not reach x.
    const float mean = lane_sum(total, place.num_vectors) * inverse_size;
    const float slope = lane_sum(dot, place.num_vectors) * inverse_size;
    if (!counts) continue;
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      grad_a[j] = (grad_a[j] - mean - a[j] * slope) * scale;
      grad_c[j] = (grad_c[j] - mean - c[j] * slope) * scale;
    }
    store_vector(grad_x, from_floats<T>(grad_a));
    store_vector(grad_x + half, from_floats<T>(grad_c));
    grad_x += place.num_heads * p.head_dim;
  }

  // Lanes of a warp with the same channels, then warps, in their order.
  const int warp = threadIdx.x / 32, row_floats = Sums::row_floats(place.num_vectors);
  for (int apart = place.num_vectors; apart < 32; apart *= 2) {
#pragma unroll
    for (int i = 0; i < Sums::kRows; ++i) {
      sums[i / kSize][i % kSize] += __shfl_xor_sync(0xffffffffu, sums[i / kSize][i % kSize], apart);
    }
  }
  if (threadIdx.x % 32 < place.num_vectors) {
#pragma unroll
    for (int i = 0; i < Sums::kRows; ++i) {
      warp_sums[(warp * Sums::kRows + i) * row_floats + place.vector] = sums[i / kSize][i % kSize];
    }
  }
  __syncthreads();
  float* partial = b.workspace + blockIdx.x * 2 * p.head_dim;
  const int padded_half = place.num_vectors * kSize;
  for (int i = threadIdx.x; i < 4 * padded_half; i += kBlockThreads) {
    const int part = i / padded_half, at = i % padded_half;
    if (at >= half) continue;
    const float* from = warp_sums + (part * kSize + at % kSize) * row_floats + at / kSize;
    float sum = 0.0f;
    for (int w = 0; w < kBlockWarps; ++w) sum += from[w * Sums::kRows * row_floats];
    partial[part * half + at] = sum;
  }
}

constexpr int kSumColumns = 32, kSumSlices = 16;

// Adds the sums of the blocks of each row of weights. Block: kSumColumns of the 2 * head_dim columns of one row of q or
// k; slice s adds blocks s, s + kSumSlices, ..., and the slices are added in their order.
__global__ void __launch_bounds__(kSumColumns* kSumSlices)
    qk_norm_sum_kernel(const lumos_qk_norm_backward_params b, const QkTiles tiles) {
  __shared__ float slices[kSumSlices][kSumColumns];
  const int head_dim = static_cast<int>(b.forward.head_dim), parts = 2 * head_dim / kSumColumns;
  const int64_t any_row = blockIdx.x / parts, q_rows = b.forward.q.num_rows;
  const bool is_k = any_row >= q_rows;
  const int64_t row = is_k ? any_row - q_rows : any_row;
  const int column = (blockIdx.x - any_row * parts) * kSumColumns + threadIdx.x;
  const int64_t token_blocks = is_k ? tiles.k.token_blocks : tiles.q.token_blocks;
  const int64_t first_block = (is_k ? tiles.q.num_blocks : 0) + row * token_blocks;

  const float* partial = b.workspace + first_block * 2 * head_dim + column;
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t i = threadIdx.y; i < token_blocks; i += kSumSlices) sum += partial[i * 2 * head_dim];
  slices[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0) return;
  for (int i = 1; i < kSumSlices; ++i) sum += slices[i][threadIdx.x];
  const bool is_bias = column >= head_dim;
  float* weight = is_k ? b.k.grad_weight : b.q.grad_weight;
  float* bias = is_k ? b.k.grad_bias : b.q.grad_bias;
  (is_bias ? bias : weight)[row * head_dim + column - (is_bias ? head_dim : 0)] = sum;
}

}  // namespace lumos
