#include <algorithm>
#include <cmath>

#include "cpu/simd_math.h"
#include "ops/linear_cross_entropy/linear_cross_entropy_kernel.h"

namespace lumos::LUMOS_ISA {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr int64_t kTile = LUMOS_LOSS_TILE_COLUMNS;
static_assert(kTile % (4 * kLanes) == 0, "a full tile is whole groups of four vectors");

LUMOS_INLINE vec exp_minus(vec x, vec shift) { return exp2((x - shift) * broadcast(kLog2E)); }

// exp(x - shift) of one number, in the bits that exp_minus has for it.
LUMOS_INLINE float exp_minus(float x, float shift) { return exp_minus(broadcast(x), broadcast(shift))[0]; }

// The running maximum and sum of one row.
struct RowState {
  float max, sum;

  // Takes in kTile columns. Always as many, from multiples of kTile: so sums do not depend on the blocks.
  template <class T>
  LUMOS_INLINE void add_tile(const T* x) {
    vec top[4];
    for (int i = 0; i < 4; ++i) top[i] = load(x + i * kLanes);
    for (int64_t c = 4 * kLanes; c < kTile; c += 4 * kLanes) {
      for (int i = 0; i < 4; ++i) top[i] = lumos::LUMOS_ISA::max(load(x + c + i * kLanes), top[i]);
    }
    const float tile_max = horizontal_max(
        lumos::LUMOS_ISA::max(lumos::LUMOS_ISA::max(top[0], top[1]), lumos::LUMOS_ISA::max(top[2], top[3])));
    if (tile_max > max) {
      sum *= exp_minus(max, tile_max);
      max = tile_max;
    }
    const vec shift = broadcast(max == -INFINITY ? 0.0f : max);
    vec parts[2] = {vec{}, vec{}};
    for (int64_t c = 0; c < kTile; c += 2 * kLanes) {
      for (int i = 0; i < 2; ++i) parts[i] += exp_minus(load(x + c + i * kLanes), shift);
    }
    sum += horizontal_sum(parts[0] + parts[1]);
  }
};

template <class T>
void add_block(const lumos_linear_cross_entropy_params& p, int64_t begin, int64_t end) {
  const auto& logits = p.logits;
  const int64_t whole = logits.num_columns / kTile * kTile;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(logits.data) + row * logits.row_stride;
    RowState state = {-INFINITY, 0.0f};
    if (logits.column_begin > 0) state = {p.row_max[row], p.row_sum[row]};
    for (int64_t c = 0; c < whole; c += kTile) state.add_tile(x + c);
    if (whole < logits.num_columns) {
      float last[kTile];
      std::fill(last, last + kTile, -INFINITY);
      for (int64_t c = whole; c < logits.num_columns; ++c) last[c - whole] = to_float(x[c]);
      state.add_tile(last);
    }
    p.row_max[row] = state.max;
    p.row_sum[row] = state.sum;
    const int64_t target = logits.targets[row] - logits.column_begin;
    if (target >= 0 && target < logits.num_columns) p.loss[row] = to_float(x[target]);
    // Not as lse - x[target]: lse would be rounded at the size of the logits.
    if (p.is_last) p.loss[row] = static_cast<float>(std::log(double{state.sum}) - (double{p.loss[row]} - state.max));
  }
}

template <class T>
void grad_block(const lumos_linear_cross_entropy_backward_params& p, int64_t begin, int64_t end) {
  const auto& logits = p.logits;
  const int64_t num_columns = logits.num_columns, whole = num_columns / kLanes * kLanes;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(logits.data) + row * logits.row_stride;
    T* out = static_cast<T*>(p.grad_logits) + row * logits.row_stride;
    const float row_max = p.row_max[row], grad = p.grad[row], factor = grad / p.row_sum[row];
    const int64_t target = logits.targets[row] - logits.column_begin;
    const bool has_target = target >= 0 && target < num_columns;
    const float at_target = has_target ? to_float(x[target]) : 0.0f;  // read before it may be overwritten
    const vec shift = broadcast(row_max), factors = broadcast(factor);
    for (int64_t c = 0; c < whole; c += kLanes) store(out + c, exp_minus(load(x + c), shift) * factors);
    for (int64_t c = whole; c < num_columns; ++c) from_float(out + c, exp_minus(to_float(x[c]), row_max) * factor);
    if (has_target) from_float(out + target, exp_minus(at_target, row_max) * factor - grad);
  }
}

}  // namespace

void linear_cross_entropy_rows(const lumos_linear_cross_entropy_params& params, int64_t begin, int64_t end) {
  if (params.logits.dtype == LUMOS_BFLOAT16) {
    add_block<bfloat16>(params, begin, end);
  } else {
    add_block<float>(params, begin, end);
  }
}

void linear_cross_entropy_backward_rows(const lumos_linear_cross_entropy_backward_params& params, int64_t begin,
                                        int64_t end) {
  if (params.logits.dtype == LUMOS_BFLOAT16) {
    grad_block<bfloat16>(params, begin, end);
  } else {
    grad_block<float>(params, begin, end);
  }
}

}  // namespace lumos::LUMOS_ISA
