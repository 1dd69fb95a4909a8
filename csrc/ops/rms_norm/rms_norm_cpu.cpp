#include "cpu/simd_math.h"
#include "cpu/simd_part.h"
#include "ops/rms_norm/rms_norm_kernel.h"

namespace lumos::LUMOS_ISA {
namespace {

// Where whole vectors end.
LUMOS_INLINE int64_t whole_lanes(int64_t width) { return width / kLanes * kLanes; }

LUMOS_INLINE float scale_of(vec squares, int64_t width, float eps) {
  return 1.0f / __builtin_sqrtf(horizontal_sum(squares) / static_cast<float>(width) + eps);
}

template <class T>
void norm(const lumos_rms_norm_params& p, int64_t begin, int64_t end) {
  const int64_t whole = whole_lanes(p.width), rest = p.width - whole;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride_row;
    T* out = static_cast<T*>(p.out) + row * p.width;
    vec squares{};
    for (int64_t c = 0; c < whole; c += kLanes) squares = fma(load(x + c), load(x + c), squares);
    if (rest) squares = fma(load_part(x + whole, rest), load_part(x + whole, rest), squares);
    const vec scale = broadcast(scale_of(squares, p.width, p.eps));
    for (int64_t c = 0; c < whole; c += kLanes) store(out + c, load(x + c) * scale * load(p.weight + c));
    if (rest) store_part(out + whole, load_part(x + whole, rest) * scale * load_part(p.weight + whole, rest), rest);
  }
}

template <class T>
void norm_backward(const lumos_rms_norm_backward_params& b, int64_t begin, int64_t end, float* sums) {
  const auto& p = b.forward;
  const int64_t whole = whole_lanes(p.width), rest = p.width - whole;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride_row;
    const T* grad_out = static_cast<const T*>(b.grad_out) + row * b.grad_out_stride_row;
    T* grad_x = static_cast<T*>(b.grad_x) + row * p.width;
    vec squares{}, dot{};  // dot: of x and the gradient of the normalised row
    const auto gather = [&](vec value, vec grad, vec weight) {
      squares = fma(value, value, squares);
      dot = fma(grad * weight, value, dot);
    };
    for (int64_t c = 0; c < whole; c += kLanes) gather(load(x + c), load(grad_out + c), load(p.weight + c));
    if (rest) {
      gather(load_part(x + whole, rest), load_part(grad_out + whole, rest), load_part(p.weight + whole, rest));
    }
    const float one_scale = scale_of(squares, p.width, p.eps);
    const vec scale = broadcast(one_scale);
    const vec slope = broadcast(horizontal_sum(dot) * one_scale / static_cast<float>(p.width));
    // What moves along the row does not reach x.
    const auto through = [&](vec normal, vec grad, vec weight) { return (grad * weight - normal * slope) * scale; };
    for (int64_t c = 0; c < whole; c += kLanes) {
      const vec normal = load(x + c) * scale, grad = load(grad_out + c);
      store(sums + c, fma(grad, normal, load(sums + c)));
      store(grad_x + c, through(normal, grad, load(p.weight + c)));
    }
    if (rest) {
      const vec normal = load_part(x + whole, rest) * scale, grad = load_part(grad_out + whole, rest);
      store_part(sums + whole, fma(grad, normal, load_part(sums + whole, rest)), rest);
      store_part(grad_x + whole, through(normal, grad, load_part(p.weight + whole, rest)), rest);
    }
  }
}

}  // namespace

void rms_norm_rows(const lumos_rms_norm_params& params, int64_t begin, int64_t end) {
  if (params.dtype == LUMOS_BFLOAT16) {
    norm<bfloat16>(params, begin, end);
  } else {
    norm<float>(params, begin, end);
  }
}

void rms_norm_backward_rows(const lumos_rms_norm_backward_params& params, int64_t begin, int64_t end, float* sums) {
  if (params.forward.dtype == LUMOS_BFLOAT16) {
    norm_backward<bfloat16>(params, begin, end, sums);
  } else {
    norm_backward<float>(params, begin, end, sums);
  }
}

}  // namespace lumos::LUMOS_ISA
