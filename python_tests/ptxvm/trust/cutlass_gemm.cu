// CUTLASS's own kernels in a form that a test can call: a threadblock of its device::Gemm for sm_80 with plain parameters
// instead of a struct that host code fills, and the kernel of CuTe's tutorial as its main() instantiates it.
#define main tutorial_main
#include "sgemm_sm80.cu"
#undef main

#include "cutlass/gemm/device/gemm.h"
#include "cutlass/gemm/kernel/default_gemm.h"

namespace {

template <class Element, class LayoutB, int kStages, bool kSplitK>
using Gemm = typename cutlass::gemm::device::Gemm<
    Element, cutlass::layout::RowMajor, Element, LayoutB, Element, cutlass::layout::RowMajor, float,
    cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, cutlass::gemm::GemmShape<128, 64, 32>,
    cutlass::gemm::GemmShape<64, 32, 32>, cutlass::gemm::GemmShape<16, 8, 16>,
    cutlass::epilogue::thread::LinearCombination<Element, 8, float, float>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, kStages, 8, 8, kSplitK>;

// d[m, n] = alpha * a[m, k] @ b[k, n] + beta * c[m, n]. The grid is tiles of rows, of columns, slices of k.
template <class Operation, class Element>
__device__ void run(const Element* a, const Element* b, const Element* c, Element* d, int m, int n, int k, float alpha,
                    float beta, int* semaphore) {
  using Kernel = typename Operation::GemmKernel;
  extern __shared__ __align__(16) char dynamic_shared[];
  const int ldb = cutlass::platform::is_same<typename Operation::LayoutB, cutlass::layout::RowMajor>::value ? n : k;
  const typename Kernel::Params params({m, n, k}, {int(gridDim.x), int(gridDim.y), int(gridDim.z)},
                                       {const_cast<Element*>(a), k}, {const_cast<Element*>(b), ldb},
                                       {const_cast<Element*>(c), n}, {d, n}, {alpha, beta}, semaphore);
  Kernel()(params, *reinterpret_cast<typename Kernel::SharedStorage*>(dynamic_shared));
}

}  // namespace

#define GEMM(name, Element, LayoutB, stages, split_k)                                                               \
  extern "C" __global__ void __launch_bounds__(Gemm<Element, LayoutB, stages, split_k>::GemmKernel::kThreadCount)   \
      name(const Element* a, const Element* b, const Element* c, Element* d, int m, int n, int k, float alpha,      \
           float beta, int* semaphore) {                                                                            \
    run<Gemm<Element, LayoutB, stages, split_k>>(a, b, c, d, m, n, k, alpha, beta, semaphore);                      \
  }                                                                                                                 \
  extern "C" __device__ const int name##_shared_bytes =                                                             \
      sizeof(typename Gemm<Element, LayoutB, stages, split_k>::GemmKernel::SharedStorage);

GEMM(gemm_bf16_tn, cutlass::bfloat16_t, cutlass::layout::ColumnMajor, 3, false)
GEMM(gemm_bf16_nn, cutlass::bfloat16_t, cutlass::layout::RowMajor, 4, false)
GEMM(gemm_fp16_tn, cutlass::half_t, cutlass::layout::ColumnMajor, 2, false)
GEMM(gemm_fp16_nn_split_k, cutlass::half_t, cutlass::layout::RowMajor, 3, true)
