#include "cpu/simd_math.h"
#include "cpu/simd_part.h"
#include "ops/swiglu/swiglu_kernel.h"

namespace lumos::LUMOS_ISA {
namespace {

LUMOS_INLINE vec sigmoid(vec x) {
  constexpr float kLog2E = 1.44269502f, kLog2ERest = 1.92596303e-8f, kLn2 = 0.693147181f;
  const vec power = x * -kLog2E;
  // power is rounded at its own size, which for large ones is many ulp of e^-x: what it lost, NaN for an infinite x, is
  // put back. Without fused fma (portable) the loss is not seen.
  const vec lost = fma(x, broadcast(-kLog2E), -power) - x * kLog2ERest;
  const vec exponential = exp2(power);
  const vec value = 1.0f / (1.0f + fma(exponential, (lost == lost ? lost : vec{}) * kLn2, exponential));
  return power > 127.0f ? vec{} : value;  // where exp2 stops growing
}

struct Gradients {
  vec gate, up, out;
};

LUMOS_INLINE Gradients gradients(vec gate, vec up, vec grad) {
  const vec gated = sigmoid(gate), silu = gate * gated;
  const vec slope = fma(silu, 1.0f - gated, gated);
  return {grad * up * slope, grad * silu, silu * up};
}

// Whole vectors of a row by `body(column)`, then what is left of it by `last(column, count)`.
template <class Body, class Last>
LUMOS_INLINE void along_row(int64_t width, Body&& body, Last&& last) {
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t c = 0; c < whole; c += kLanes) body(c);
  if (whole < width) last(whole, width - whole);
}

template <class T>
void activate(const lumos_swiglu_params& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = static_cast<const T*>(p.gate) + row * p.gate_stride_row;
    const T* up = static_cast<const T*>(p.up) + row * p.up_stride_row;
    T* out = static_cast<T*>(p.out) + row * p.width;
    const auto product = [](vec g, vec u) { return g * sigmoid(g) * u; };
    along_row(
        p.width, [&](int64_t c) { store(out + c, product(load(gate + c), load(up + c))); },
        [&](int64_t c, int64_t n) { store_part(out + c, product(load_part(gate + c, n), load_part(up + c, n)), n); });
  }
}

template <class T>
void activate_backward(const lumos_swiglu_backward_params& b, int64_t begin, int64_t end) {
  const auto& p = b.forward;
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = static_cast<const T*>(p.gate) + row * p.gate_stride_row;
    const T* up = static_cast<const T*>(p.up) + row * p.up_stride_row;
    const T* grad = static_cast<const T*>(b.grad_out) + row * p.width;
    T* out = static_cast<T*>(p.out) + row * p.width;
    T* grad_gate = static_cast<T*>(b.grad_gate) + row * p.width;
    T* grad_up = static_cast<T*>(b.grad_up) + row * p.width;
    along_row(
        p.width,
        [&](int64_t c) {
          const Gradients g = gradients(load(gate + c), load(up + c), load(grad + c));
          store(grad_gate + c, g.gate);
          store(grad_up + c, g.up);
          store(out + c, g.out);
        },
        [&](int64_t c, int64_t n) {
          const Gradients g = gradients(load_part(gate + c, n), load_part(up + c, n), load_part(grad + c, n));
          store_part(grad_gate + c, g.gate, n);
          store_part(grad_up + c, g.up, n);
          store_part(out + c, g.out, n);
        });
  }
}

}  // namespace

void swiglu_rows(const lumos_swiglu_params& params, int64_t begin, int64_t end) {
  if (params.dtype == LUMOS_BFLOAT16) {
    activate<bfloat16>(params, begin, end);
  } else {
    activate<float>(params, begin, end);
  }
}

void swiglu_backward_rows(const lumos_swiglu_backward_params& params, int64_t begin, int64_t end) {
  if (params.forward.dtype == LUMOS_BFLOAT16) {
    activate_backward<bfloat16>(params, begin, end);
  } else {
    activate_backward<float>(params, begin, end);
  }
}

}  // namespace lumos::LUMOS_ISA
