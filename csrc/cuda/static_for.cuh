// Loops whose index is a constant of the body: for immediate operands.
#pragma once

#include <utility>

namespace lumos {

template <int kValue>
struct Constant {
  __host__ __device__ constexpr operator int() const { return kValue; }
};

template <int... kIndices, class Body>
__device__ __forceinline__ void static_for(std::integer_sequence<int, kIndices...>, const Body& body) {
  (body(Constant<kIndices>()), ...);
}

// body(Constant<i>()) for i = 0 .. kEnd - 1
template <int kEnd, class Body>
__device__ __forceinline__ void static_for(const Body& body) {
  static_for(std::make_integer_sequence<int, kEnd>(), body);
}

}  // namespace lumos
