// Loops whose index is a compile-time number, as operands of instructions must be.
#pragma once

#include <utility>

namespace lumos {

template <int kValue>
struct Index {
  static constexpr int value = kValue;
};

template <class Body, int... kValues>
__device__ inline void unrolled(const Body& body, std::integer_sequence<int, kValues...>) {
  (body(Index<kValues>()), ...);
}

// body(Index<i>()) for i = 0 .. kCount - 1; use i.value
template <int kCount, class Body>
__device__ inline void unrolled(const Body& body) {
  unrolled(body, std::make_integer_sequence<int, kCount>());
}

}  // namespace lumos
