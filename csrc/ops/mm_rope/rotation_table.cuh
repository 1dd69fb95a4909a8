// Cosines and sines of the tokens of a block, in shared memory and from there in the registers of its threads.
//
// 1. fetch: positions and frequencies, each once. 2. Barrier. 3. fill: threads that differ in `head` alone share the
// angles of their token. 4. Barrier. 5. read. Rows are those of one element of the vectors of 16 bytes, so that writes
// and reads of neighbouring threads lie in neighbouring banks.
#pragma once

#include "cuda/sincos.cuh"
#include "cuda/token_blocks.h"
#include "cuda/vector.cuh"
#include "ops/mm_rope/mm_rope_axis.h"

namespace lumos {

// A thread among those of its block: its vector of half a head, its token, and which of the heads side by side.
struct ThreadPlace {
  int vector, token, head;
  int num_vectors, num_tokens, num_heads;

  __device__ int column() const { return token * num_vectors + vector; }
  __device__ int index() const { return head * num_vectors * num_tokens + column(); }
  __device__ int count() const { return num_vectors * num_tokens * num_heads; }
};

// One float for each channel of kBlockVectors vectors: rows apart by more than their length, so that neighbours in a
// row and in a column lie in different banks.
template <class T>
struct ChannelTable {
  float at[kVectorSize<T>][kBlockVectors + 32 / kVectorSize<T>];

  // from[num_channels]: in global memory.
  __device__ void fetch(const ThreadPlace& place, const float* from, int64_t num_channels) {
    for (int i = place.index(); i < place.num_vectors * kVectorSize<T>; i += place.count()) {
      if (i < num_channels) at[i % kVectorSize<T>][i / kVectorSize<T>] = from[i];
    }
  }
  __device__ void read(int vector, float (&x)[kVectorSize<T>]) const {
#pragma unroll
    for (int i = 0; i < kVectorSize<T>; ++i) x[i] = at[i][vector];
  }
};

template <class T>
struct RotationTable {
  static constexpr int kSize = kVectorSize<T>;
  float places[3 * kBlockThreads];
  ChannelTable<T> frequencies;
  float cosines[kSize][kBlockThreads], sines[kSize][kBlockThreads];

  // positions[num_tokens, 3] of the block's tokens and those behind them; inv_freq[num_channels] of its channels
  // likewise.
  __device__ void fetch(const ThreadPlace& place, const int32_t* positions, int64_t num_tokens, const float* inv_freq,
                        int64_t num_channels) {
    for (int i = place.index(); i < 3 * place.num_tokens; i += place.count()) {
      if (i < 3 * num_tokens) places[i] = static_cast<float>(positions[i]);
    }
    frequencies.fetch(place, inv_freq, num_channels);
  }
  // channel: of the first element of the thread's vector.
  __device__ void fill(const ThreadPlace& place, int channel, bool inverse, bool parity) {
    const float direction = inverse ? -1.0f : 1.0f;
    for (int i = place.head; i < kSize; i += place.num_heads) {
      const int axis = lumos_rope_axis(channel + i);
      float sine, cosine;
      sine_and_cosine(places[3 * place.token + axis] * frequencies.at[i][place.vector] * direction, &sine, &cosine);
      cosines[i][place.column()] = parity ? rounded_to<T>(cosine) : cosine;
      sines[i][place.column()] = parity ? rounded_to<T>(sine) : sine;
    }
  }
  __device__ void read(const ThreadPlace& place, float (&cosine)[kSize], float (&sine)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      cosine[i] = cosines[i][place.column()];
      sine[i] = sines[i][place.column()];
    }
  }
};

// Turns each pair (first[i], second[i]).
template <int kSize>
__device__ inline void rotate(float (&first)[kSize], float (&second)[kSize], const float (&cosine)[kSize],
                              const float (&sine)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const float turned = fmaf(first[i], cosine[i], -(second[i] * sine[i]));
    second[i] = fmaf(second[i], cosine[i], first[i] * sine[i]);
    first[i] = turned;
  }
}

}  // namespace lumos
