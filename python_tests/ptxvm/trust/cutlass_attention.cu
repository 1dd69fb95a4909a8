// The fused attention of CUTLASS's example 41 with plain parameters. The kernel is theirs; only its Params are filled
// here.
#include "kernel_forward.h"

namespace {

// q, k, v, out [length, heads, head_dim]; lse [heads, length rounded up to 32]. The grid is blocks of 64 queries,
// heads.
template <class Element, int kMaxHeadDim>
__device__ void run(Element* q, Element* k, Element* v, Element* out, float* out_sums, float* lse, int length,
                    int heads, int head_dim, float scale, int causal) {
  using Kernel = AttentionKernel<Element, cutlass::arch::Sm80, true, 64, 64, kMaxHeadDim, false, false>;
  typename Kernel::Params params;
  params.query_ptr = q, params.key_ptr = k, params.value_ptr = v;
  params.output_ptr = out, params.output_accum_ptr = out_sums, params.logsumexp_ptr = lse;
  params.scale = scale;
  params.head_dim = params.head_dim_value = head_dim;
  params.num_queries = params.num_keys = length;
  params.custom_mask_type = causal ? Kernel::CausalFromTopLeft : Kernel::NoCustomMask;
  params.q_strideM = params.k_strideM = params.v_strideM = params.o_strideM = heads * head_dim;
  params.q_strideH = params.k_strideH = params.v_strideH = head_dim;
  params.num_batches = 1, params.num_heads = heads;
  if (params.advance_to_block()) Kernel::attention_kernel(params);
}

}  // namespace

#define ATTENTION(name, Element, max_head_dim)                                                                   \
  extern "C" __global__ void __launch_bounds__(128)                                                              \
      name(Element* q, Element* k, Element* v, Element* out, float* out_sums, float* lse, int length, int heads, \
           int head_dim, float scale, int causal) {                                                              \
    run<Element, max_head_dim>(q, k, v, out, out_sums, lse, length, heads, head_dim, scale, causal);             \
  }                                                                                                              \
  extern "C" __device__ const int name##_shared_bytes =                                                          \
      sizeof(typename AttentionKernel<Element, cutlass::arch::Sm80, true, 64, 64, max_head_dim, false,           \
                                      false>::SharedStorage);

ATTENTION(attention_bf16_64, cutlass::bfloat16_t, 64)
ATTENTION(attention_fp16_128, cutlass::half_t, 128)
