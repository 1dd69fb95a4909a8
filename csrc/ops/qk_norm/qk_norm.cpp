// Launchers of qk_norm_mm_rope, forward and backward, and of the forward fused with paged_write.
#include "lumos/qk_norm.h"

#include <algorithm>
#include <string>
#include <vector>

#include "cpu/error.h"
#include "cpu/grouped_sums.h"
#include "cpu/thread_pool.h"
#include "ops/paged_write/slots.h"
#include "ops/qk_norm/qk_norm_check.h"
#include "ops/qk_norm/qk_norm_kernel.h"

namespace lumos {
namespace {

void check(const char* op, const lumos_qk_norm_params& p) {
  if (p.dtype != LUMOS_FLOAT32 && p.dtype != LUMOS_BFLOAT16) {
    throw Error(LUMOS_UNSUPPORTED_TYPE, std::string(op) + " takes float32 and bfloat16");
  }
  require_shapes(op, p);
}

float* scratch_floats(int64_t count) { return static_cast<float*>(thread_scratch(count * sizeof(float))); }

void copy_values(const lumos_qk_norm_params& p, int64_t begin, int64_t end) {
  const int64_t size = p.dtype == LUMOS_BFLOAT16 ? 2 : 4;
  const int64_t head_bytes = p.head_dim * size;
  for (int64_t token = begin; token < end; ++token) {
    copy_token(static_cast<const char*>(p.v) + token * p.v_stride_token * size, p.v_stride_head * size,
               static_cast<char*>(p.v_pages) + p.slots[token] * p.k.num_heads * head_bytes, p.k.num_heads, head_bytes);
  }
}

// Writes k and v to their slots where there are any.
void run_forward(const lumos_qk_norm_params& p) {
  // Chunks of about 64 Ki elements, as in mm_rope.
  const int64_t token_size = (p.q.num_heads + p.k.num_heads) * p.head_dim;
  const int64_t chunk_tokens = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, token_size));
  auto* kernel = LUMOS_SELECT_KERNEL(qk_norm_tokens);
  parallel_for((p.num_tokens + chunk_tokens - 1) / chunk_tokens, p.num_threads, [&](int64_t chunk) {
    const int64_t begin = chunk * chunk_tokens, end = std::min(begin + chunk_tokens, p.num_tokens);
    kernel(p, begin, end, scratch_floats(forward_scratch_floats(p)));
    if (p.slots) copy_values(p, begin, end);
  });
}

// Tokens that share a partial sum of the weights' gradients: fixed, so that the sums do not depend on the threads.
constexpr int64_t kBlockTokens = 64;
constexpr int64_t kGroupHeads = 8;  // that share a partial sum in fp32, unless a token has more

// Column by column the sum of `sums` [blocks, width], in the order of the blocks.
void add_blocks(const std::vector<double>& sums, int64_t width, int64_t offset, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    double total = 0.0;
    for (size_t at = offset + i; at < sums.size(); at += width) total += sums[at];
    out[i] = static_cast<float>(total);
  }
}

}  // namespace
}  // namespace lumos

extern "C" lumos_status lumos_cpu_qk_norm_mm_rope(const lumos_qk_norm_params* params) {
  return lumos::guarded([&] {
    lumos_qk_norm_params p = *params;
    p.slots = nullptr;
    lumos::check("qk_norm_mm_rope", p);
    lumos::run_forward(p);
  });
}

extern "C" lumos_status lumos_cpu_qk_norm_mm_rope_paged_write(const lumos_qk_norm_params* params) {
  return lumos::guarded([&] {
    constexpr const char* kOp = "qk_norm_mm_rope_paged_write";
    lumos::check(kOp, *params);
    lumos::require_slots(kOp, params->slots, params->num_tokens, params->num_slots);
    lumos::run_forward(*params);
  });
}

extern "C" lumos_status lumos_cpu_qk_norm_mm_rope_backward(const lumos_qk_norm_backward_params* params) {
  return lumos::guarded([&] {
    const auto& p = params->forward;
    lumos::check("qk_norm_mm_rope_backward", p);
    const int64_t q_size = p.q.num_rows * p.head_dim, k_size = p.k.num_rows * p.head_dim;
    const int64_t width = 2 * (q_size + k_size);
    const int64_t num_blocks = (p.num_tokens + lumos::kBlockTokens - 1) / lumos::kBlockTokens;
    std::vector<double> sums(num_blocks * width);
    const int64_t row_heads = std::max(p.q.num_heads / p.q.num_rows, p.k.num_heads / p.k.num_rows);
    const int64_t group_tokens = std::max<int64_t>(1, lumos::kGroupHeads / std::max<int64_t>(1, row_heads));
    auto* kernel = LUMOS_SELECT_KERNEL(qk_norm_backward_tokens);
    lumos::parallel_for(num_blocks, p.num_threads, [&](int64_t block) {
      const int64_t begin = block * lumos::kBlockTokens, end = std::min(begin + lumos::kBlockTokens, p.num_tokens);
      float* scratch = lumos::scratch_floats(lumos::backward_scratch_floats(p) + width);
      const auto add = [&](int64_t first, int64_t last, float* to) {
        kernel(*params, first, last, to, scratch + width);
      };
      lumos::add_in_groups(begin, end, group_tokens, width, sums.data() + block * width, scratch, add);
    });
    lumos::add_blocks(sums, width, 0, q_size, params->q.grad_weight);
    lumos::add_blocks(sums, width, q_size, q_size, params->q.grad_bias);
    lumos::add_blocks(sums, width, 2 * q_size, k_size, params->k.grad_weight);
    lumos::add_blocks(sums, width, 2 * q_size + k_size, k_size, params->k.grad_bias);
  });
}
