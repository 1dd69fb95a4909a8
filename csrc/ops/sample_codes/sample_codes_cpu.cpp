#include <cmath>

#include "cpu/simd_math.h"
#include "ops/sample_codes/sample_codes_kernel.h"

namespace lumos::LUMOS_ISA {
namespace {

typedef double dvec __attribute__((vector_size(8 * kLanes)));

constexpr float kLog2E = 1.44269504088896340736f;

template <class T>
struct Logits {
  const T* cond;
  const T* uncond;  // or null
  float guidance_scale;

  LUMOS_INLINE vec at(int64_t c) const {
    if (!uncond) return load(cond + c);
    const vec u = load(uncond + c);
    return broadcast(guidance_scale) * (load(cond + c) - u) + u;
  }

  LUMOS_INLINE float one(int64_t c) const {
    if (!uncond) return to_float(cond[c]);
    const float u = to_float(uncond[c]);
    return guidance_scale * (to_float(cond[c]) - u) + u;
  }
};

// scaled = l / temperature, -inf behind the last class up to a whole vector. Returns its maximum.
template <class T>
float scale_logits(const Logits<T>& logits, int64_t num_classes, float temperature, float* scaled) {
  const int64_t whole = num_classes / kLanes * kLanes;
  vec largest = broadcast(-INFINITY);
  for (int64_t c = 0; c < whole; c += kLanes) {
    const vec x = logits.at(c) / temperature;
    store(scaled + c, x);
    largest = max(x, largest);
  }
  float result = horizontal_max(largest);
  for (int64_t c = whole; c < num_classes; ++c) {
    scaled[c] = logits.one(c) / temperature;
    result = scaled[c] > result ? scaled[c] : result;
  }
  for (int64_t c = num_classes; c % kLanes; ++c) scaled[c] = -INFINITY;
  return result;
}

// weights[c] = exp(weights[c] - largest), up to a whole block.
void exponentials(float largest, int64_t num_classes, float* weights) {
  for (int64_t c = 0; c < num_classes; c += kLanes) {
    store(weights + c, exp2((load(weights + c) - largest) * kLog2E));
  }
  for (int64_t c = (num_classes + kLanes - 1) / kLanes * kLanes; c % kBlockClasses; ++c) weights[c] = 0.0f;
}

double block_sum(const float* weights) {
  dvec sum{};
  for (int64_t c = 0; c < kBlockClasses; c += kLanes) sum += __builtin_convertvector(load(weights + c), dvec);
  double total = 0.0;
  for (int i = 0; i < kLanes; ++i) total += sum[i];
  return total;
}

// First class whose cumulative weight exceeds `threshold`. Blocks are passed over by their sums, in the order in which
// the total was added up; should rounding leave the last step short, the last class that has a weight is meant.
int64_t class_at(double threshold, const float* weights, int64_t num_classes) {
  double before = 0.0;
  int64_t chosen = 0;
  for (int64_t begin = 0; begin < num_classes; begin += kBlockClasses) {
    const double sum = block_sum(weights + begin);
    if (sum > 0.0 && before + sum > threshold) {
      double cumulative = before;
      for (int64_t c = begin; c < begin + kBlockClasses; ++c) {
        if (weights[c] > 0.0f) {
          cumulative += weights[c];
          chosen = c;
          if (cumulative > threshold) return c;
        }
      }
      return chosen;
    }
    before += sum;
  }
  for (int64_t c = 0; c < num_classes; ++c) chosen = weights[c] > 0.0f ? c : chosen;
  return chosen;
}

template <class T>
int64_t largest_class(const Logits<T>& logits, int64_t num_classes) {
  int64_t best = 0;
  for (int64_t c = 1; c < num_classes; ++c) best = logits.one(c) > logits.one(best) ? c : best;
  return best;
}

template <class T>
void sample_row(const lumos_sample_codes_params& p, int64_t row, float* weights) {
  const int64_t sample = row / p.num_rows, in_sample = row % p.num_rows;
  Logits<T> logits;
  logits.cond = static_cast<const T*>(p.cond) + sample * p.cond_stride_sample + in_sample * p.cond_stride_row;
  logits.uncond = nullptr;
  if (p.uncond) {
    logits.uncond = static_cast<const T*>(p.uncond) + sample * p.uncond_stride_sample + in_sample * p.uncond_stride_row;
  }
  logits.guidance_scale = p.guidance_scale;
  const float largest = scale_logits(logits, p.num_classes, p.temperature > 0.0f ? p.temperature : 1.0f, weights);
  exponentials(largest, p.num_classes, weights);
  double total = 0.0;
  for (int64_t begin = 0; begin < p.num_classes; begin += kBlockClasses) total += block_sum(weights + begin);
  int64_t code;
  if (p.given) {
    code = p.given[row];
  } else if (p.temperature > 0.0f) {
    code = class_at(p.uniforms[row] * total, weights, p.num_classes);
  } else {
    code = largest_class(logits, p.num_classes);
  }
  p.codes[row] = code;
  p.confidence[row] = static_cast<float>(weights[code] / total);
}

}  // namespace

void sample_codes_row(const lumos_sample_codes_params& params, int64_t row, float* scratch) {
  if (params.dtype == LUMOS_BFLOAT16) {
    sample_row<bfloat16>(params, row, scratch);
  } else {
    sample_row<float>(params, row, scratch);
  }
}

}  // namespace lumos::LUMOS_ISA
