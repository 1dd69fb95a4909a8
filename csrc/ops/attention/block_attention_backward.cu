// Launcher of the backward of block_attention.
#include <climits>
#include <utility>

#include "cuda/alignment.h"
#include "cuda/device_guard.h"
#include "cuda/dtype.h"
#include "ops/attention/backward_launch.h"
#include "ops/attention/backward_rows.cuh"

namespace lumos {
namespace {

using Launch = void (*)(const lumos_attention_backward_params&, const RowTerms*, cudaStream_t);

Launch launch_of(lumos_dtype dtype, int64_t head_dim) {
  if (dtype == LUMOS_FLOAT32) return launch_backward_fp32;
  if (dtype == LUMOS_FLOAT16) {
    require(head_dim == 64 || head_dim == 128,
            "block_attention_backward: head_dim is %lld; CUDA has 64 and 128 in float16: use bfloat16 or float32, or "
            "pass backend='reference'",
            static_cast<long long>(head_dim));
    return head_dim == 64 ? launch_backward<__half, 64> : launch_backward<__half, 128>;
  }
  switch (head_dim) {
    case 32: return launch_backward<__nv_bfloat16, 32>;
    case 64: return launch_backward<__nv_bfloat16, 64>;
    case 96: return launch_backward<__nv_bfloat16, 96>;
    default: return launch_backward<__nv_bfloat16, 128>;
  }
}

void require_tokens(const char* name, const lumos_tokens& tokens, int64_t element_bytes) {
  require_aligned("block_attention_backward", name, tokens.data, tokens.stride_token * element_bytes,
                  tokens.stride_head * element_bytes);
}

template <class T>
void launch_row_terms(const lumos_attention_backward_params& b, RowTerms* terms, cudaStream_t stream) {
  const auto& p = b.forward;
  const dim3 grid(static_cast<unsigned>((p.num_query_tokens + kRowTermsTokens<T> - 1) / kRowTermsTokens<T>),
                  static_cast<unsigned>(p.num_heads));
  attention_row_terms_kernel<T><<<grid, kRowTermsThreads, 0, stream>>>(b, terms);
  check_launch("block_attention_backward");
}

void run(const lumos_attention_backward_params& b) {
  const auto& p = b.forward;
  with_float_type("block_attention_backward", p.dtype, [&](auto zero) {
    using T = decltype(zero);
    require(p.head_dim > 0 && p.head_dim % 32 == 0 && p.head_dim <= 128,
            "block_attention_backward: head_dim is %lld; CUDA has 32, 64, 96 and 128: pad the heads or pass "
            "backend='reference'",
            static_cast<long long>(p.head_dim));
    require(
        p.num_kv_heads > 0 && p.num_heads > 0 && p.num_heads % p.num_kv_heads == 0 && p.num_heads <= 65535,
        "block_attention_backward: %lld query heads; they must be at most 65535 and a multiple of the %lld key heads",
        static_cast<long long>(p.num_heads), static_cast<long long>(p.num_kv_heads));
    require(!p.page_table && p.num_query_tokens == p.num_key_tokens && p.key_tiles.rows == p.query_tiles.rows,
            "block_attention_backward takes as many keys as queries, in the same tiles");
    require(p.num_query_tokens < INT_MAX, "block_attention_backward: %lld tokens are more than 32 bits count",
            static_cast<long long>(p.num_query_tokens));
    const int64_t needed = lumos_block_attention_backward_workspace(p.num_query_tokens, p.num_heads);
    require(p.workspace_bytes >= needed, "block_attention_backward: workspace has %lld bytes; it must have %lld",
            static_cast<long long>(p.workspace_bytes), static_cast<long long>(needed));
    const Launch launch = launch_of(p.dtype, p.head_dim);
    if (p.num_query_tokens == 0) return;
    require_tokens("q", p.q, sizeof(T));
    require_tokens("k", p.k, sizeof(T));
    require_tokens("v", p.v, sizeof(T));
    require_tokens("grad_out", b.grad_out, sizeof(T));
    const std::pair<const char*, const void*> contiguous[] = {
        {"out", p.out},       {"grad_q", b.grad_q},       {"grad_k", b.grad_k},
        {"grad_v", b.grad_v}, {"workspace", p.workspace}, {"tiles", p.query_tiles.rows}};
    for (const auto& [name, data] : contiguous) require_aligned("block_attention_backward", name, data, 0, 0);
    const DeviceGuard guard(p.device);
    const auto stream = static_cast<cudaStream_t>(p.stream);
    auto* const terms = static_cast<RowTerms*>(p.workspace);
    launch_row_terms<T>(b, terms, stream);
    launch(b, terms, stream);
  });
}

}  // namespace
}  // namespace lumos

static_assert(sizeof(lumos::RowTerms) == LUMOS_ROW_TERMS_BYTES);

extern "C" lumos_status lumos_cuda_block_attention_backward(const lumos_attention_backward_params* params) {
  return lumos::guarded([&] { lumos::run(*params); });
}
