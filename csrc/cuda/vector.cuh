// 16 bytes of float, bfloat16 or half, the widest access of a thread, and the floats that they hold.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace lumos {

template <class T>
constexpr int kVectorSize = 16 / sizeof(T);

// Of T in 32 bits.
template <class T>
struct Word;

template <>
struct Word<float> {
  static constexpr int kSize = 1;
  __device__ static void get(uint32_t bits, float* x) { *x = __uint_as_float(bits); }
  __device__ static uint32_t set(const float* x) { return __float_as_uint(*x); }
};

template <>
struct Word<__nv_bfloat16> {
  static constexpr int kSize = 2;
  __device__ static void get(uint32_t bits, float* x) {
    x[0] = __uint_as_float(bits << 16);
    x[1] = __uint_as_float(bits & 0xffff0000u);
  }
  __device__ static uint32_t set(const float* x) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[0], x[1]);
    return reinterpret_cast<const uint32_t&>(pair);
  }
};

template <>
struct Word<__half> {
  static constexpr int kSize = 2;
  __device__ static void get(uint32_t bits, float* x) {
    const float2 pair = __half22float2(reinterpret_cast<const __half2&>(bits));
    x[0] = pair.x;
    x[1] = pair.y;
  }
  __device__ static uint32_t set(const float* x) {
    const __half2 pair = __floats2half2_rn(x[0], x[1]);
    return reinterpret_cast<const uint32_t&>(pair);
  }
};

// p: in global memory, aligned to 16 bytes.
template <class T>
__device__ inline uint4 load_vector(const T* p) {
  return *reinterpret_cast<const uint4*>(p);
}
template <class T>
__device__ inline void store_vector(T* p, uint4 bits) {
  // In words of PTX: nvcc may take an assignment apart into four stores.
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(p)), "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w)
               : "memory");
}

template <class T>
__device__ inline void to_floats(uint4 bits, float (&x)[kVectorSize<T>]) {
  constexpr int kSize = Word<T>::kSize;
  Word<T>::get(bits.x, x);
  Word<T>::get(bits.y, x + kSize);
  Word<T>::get(bits.z, x + 2 * kSize);
  Word<T>::get(bits.w, x + 3 * kSize);
}
template <class T>
__device__ inline uint4 from_floats(const float (&x)[kVectorSize<T>]) {
  constexpr int kSize = Word<T>::kSize;
  return {Word<T>::set(x), Word<T>::set(x + kSize), Word<T>::set(x + 2 * kSize), Word<T>::set(x + 3 * kSize)};
}

template <class T>
__device__ inline float rounded_to(float x) {
  return static_cast<float>(static_cast<T>(x));
}

}  // namespace lumos
