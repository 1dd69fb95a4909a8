// The logits of one row, guided and divided by the temperature: what the classes are chosen by.
#pragma once

#include "cuda/vector.cuh"

namespace lumos {

// 1 / temperature = upper + lower, upper rounded towards zero. x * upper + x * lower then is x / temperature, rounded
// once but for about one x in 2^24, and infinite where x is: lower is never 0.
struct Reciprocal {
  float upper, lower;
};

template <class T, bool kGuided>
struct RowLogits {
  static constexpr int kSize = kVectorSize<T>;
  struct Vector {
    uint4 cond, uncond;
  };

  const T* cond;    // [classes], aligned to 16 bytes
  const T* uncond;  // the same; not read unless kGuided
  int num_classes;
  float guidance_scale;
  Reciprocal temperature;

  // Classes [vector * kSize, (vector + 1) * kSize), all of which exist.
  __device__ Vector fetch(int vector) const {
    Vector bits;
    bits.cond = load_vector(cond + int64_t(vector) * kSize);
    if constexpr (kGuided) bits.uncond = load_vector(uncond + int64_t(vector) * kSize);
    return bits;
  }
  __device__ void get(const Vector& bits, float* x) const {
    float c[kSize], u[kSize];
    to_floats<T>(bits.cond, c);
    if constexpr (kGuided) to_floats<T>(bits.uncond, u);
#pragma unroll
    for (int i = 0; i < kSize; ++i) x[i] = scaled(c[i], kGuided ? u[i] : 0.0f);
  }

  // The same of any vector, -inf behind the last class.
  __device__ void get(int vector, float* x) const {
    const int first = vector * kSize;
    if (first + kSize <= num_classes) return get(fetch(vector), x);
#pragma unroll
    for (int i = 0; i < kSize; ++i) x[i] = first + i < num_classes ? of_class(first + i) : -INFINITY;
  }

  __device__ float of_class(int c) const {
    return scaled(static_cast<float>(cond[c]), kGuided ? static_cast<float>(uncond[c]) : 0.0f);
  }

 private:
  __device__ float scaled(float c, float u) const {
    // No contraction: the contract rounds after each operation.
    const float guided = kGuided ? __fadd_rn(__fmul_rn(guidance_scale, __fsub_rn(c, u)), u) : c;
    return fmaf(guided, temperature.upper, guided * temperature.lower);
  }
};

}  // namespace lumos
