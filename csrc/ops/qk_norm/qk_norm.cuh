// LayerNorm and rotation of the heads of q and k, on the way into pages too: see docs/kernels/qk_norm_mm_rope.md.
#pragma once

#include "cuda/alignment.h"
#include "cuda/device_guard.h"
#include "cuda/dtype.h"
#include "ops/qk_norm/row_block.cuh"

namespace lumos {

template <class T, int kSize>
__device__ inline void scale_and_shift(float (&x)[kSize], float scale, const WeightTable<T>& weights,
                                       const WeightTable<T>& biases, int vector) {
  float weight[kSize], bias[kSize];  // read for each head: in registers they would cost a third block a multiprocessor
  weights.read(vector, weight);
  biases.read(vector, bias);
#pragma unroll
  for (int i = 0; i < kSize; ++i) x[i] = fmaf(x[i] * scale, weight[i], bias[i]);
}

// Blocks of qk_tiles(). kWrites: k and v go to the slots of their tokens.
template <class T, bool kWrites>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 4 ? 4 : 3)
    qk_norm_kernel(const lumos_qk_norm_params p, const QkTiles tiles) {
  constexpr int kSize = kVectorSize<T>;
  __shared__ RotationTable<T> table;
  __shared__ WeightTable<T> affine[4];  // weight of either half, bias of either half
  __shared__ int64_t slots[kWrites ? kBlockThreads : 1];

  const RowBlock block(tiles);
  const ThreadPlace& place = block.place;
  const lumos_qk_norm_heads heads = block.is_k ? p.k : p.q;
  const int half = static_cast<int>(p.head_dim) / 2;
  const int channel = place.vector * kSize;
  const bool has_channels = channel < half, works = has_channels && block.token < p.num_tokens;
  const bool moves_v = kWrites && block.is_k;

  // On their way while the angles are computed.
  const T* x = static_cast<const T*>(heads.x) + block.token * heads.x_stride_token +
               block.first_head * heads.x_stride_head + channel;
  uint4 first{}, second{};
  if (works && block.own_heads > 0) {
    first = load_vector(x);
    second = load_vector(x + half);
  }

  table.fetch(place, p.positions + 3 * block.first_token, p.num_tokens - block.first_token, p.inv_freq, half);
  for (int i = 0; i < 4; ++i) {
    affine[i].fetch(place, (i < 2 ? heads.weight : heads.bias) + block.row * p.head_dim + (i & 1) * half, half);
  }
  if (moves_v && place.vector == 0 && place.head == 0 && block.token < p.num_tokens) {
    slots[place.token] = p.slots[block.token];
  }
  __syncthreads();
  if (works) table.fill(place, channel, false, p.parity);
  __syncthreads();

  int64_t target = block.token;
  bool writes = works;
  if (moves_v && works) {
    target = slots[place.token];
    writes = 0 <= target && target < p.num_slots;
  }
  const int64_t out_at = (target * heads.num_heads + block.first_head) * p.head_dim + channel;
  if (moves_v && writes && block.own_heads > 0) {  // on its own: beside k it would not fit into the registers
    const T* v =
        static_cast<const T*>(p.v) + block.token * p.v_stride_token + block.first_head * p.v_stride_head + channel;
    T* page = static_cast<T*>(p.v_pages) + out_at;
    uint4 v_first = load_vector(v), v_second = load_vector(v + half);
#pragma unroll 1
    for (int i = 0; i < block.own_heads; ++i) {
      const uint4 left = v_first, right = v_second;
      if (i + 1 < block.own_heads) {
        v += place.num_heads * p.v_stride_head;
        v_first = load_vector(v);
        v_second = load_vector(v + half);
      }
      store_vector(page, left);
      store_vector(page + half, right);
      page += place.num_heads * p.head_dim;
    }
  }

  float cosine[kSize], sine[kSize];
  if (works) table.read(place, cosine, sine);
  T* out = static_cast<T*>(heads.out) + out_at;
  const float inverse_size = 1.0f / static_cast<float>(p.head_dim);

#pragma unroll 1
  for (int i = 0; i < block.thread_heads; ++i) {
    float a[kSize], b[kSize];
    to_floats<T>(first, a);
    to_floats<T>(second, b);
    if (works && i + 1 < block.own_heads) {
      x += place.num_heads * heads.x_stride_head;
      first = load_vector(x);
      second = load_vector(x + half);
    }
    const float scale = centre(a, b, has_channels, place.num_vectors, inverse_size, p.eps);
    if (!writes || i >= block.own_heads) continue;
    scale_and_shift(a, scale, affine[0], affine[2], place.vector);
    scale_and_shift(b, scale, affine[1], affine[3], place.vector);
    rotate(a, b, cosine, sine);
    store_vector(out, from_floats<T>(a));
    store_vector(out + half, from_floats<T>(b));
    out += place.num_heads * p.head_dim;
  }
}

template <bool kWrites>
void launch_qk_norm(const char* op, const lumos_qk_norm_params& p) {
  with_float_type(op, p.dtype, [&](auto zero) {
    using T = decltype(zero);
    const QkTiles tiles = qk_tiles(op, p);
    const int64_t num_blocks = tiles.q.num_blocks + tiles.k.num_blocks;
    if (num_blocks == 0) return;
    constexpr int64_t kBytes = sizeof(T);
    require_aligned(op, "q", p.q.x, p.q.x_stride_token * kBytes, p.q.x_stride_head * kBytes);
    require_aligned(op, "k", p.k.x, p.k.x_stride_token * kBytes, p.k.x_stride_head * kBytes);
    const int64_t head_bytes = p.head_dim * kBytes;
    require_aligned(op, "q_out", p.q.out, p.q.num_heads * head_bytes, head_bytes);
    require_aligned(op, kWrites ? "k_pages" : "k_out", p.k.out, p.k.num_heads * head_bytes, head_bytes);
    if (kWrites) {
      require_aligned(op, "v", p.v, p.v_stride_token * kBytes, p.v_stride_head * kBytes);
      require_aligned(op, "v_pages", p.v_pages, p.k.num_heads * head_bytes, head_bytes);
    }
    const DeviceGuard guard(p.device);
    qk_norm_kernel<T, kWrites>
        <<<static_cast<unsigned>(num_blocks), kBlockThreads, 0, static_cast<cudaStream_t>(p.stream)>>>(p, tiles);
    check_launch(op);
  });
}

}  // namespace lumos
