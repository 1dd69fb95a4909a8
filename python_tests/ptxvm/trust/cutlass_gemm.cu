// CUTLASS's own kernels in a form that a test can call: its tensor-core GEMM for sm_80 with plain parameters instead of
// a struct that host code fills, and the kernel of CuTe's tutorial as its main() instantiates it.
#define main tutorial_main
#include "sgemm_sm80.cu"
#undef main

#include "cutlass/gemm/kernel/default_gemm.h"

namespace {

using cutlass::gemm::SharedMemoryClearOption;

template <class Element>
constexpr int kVector = 16 / sizeof(Element);  // elements of an access

// What device::Gemm makes of its defaults, which are kNone: rows behind the end of a matrix are left unwritten in
// shared memory, read, and their results thrown away. kZfill writes zeros there.
template <class Element, class LayoutB, int kStages, bool kSplitK, SharedMemoryClearOption kClear>
using Gemm = typename cutlass::gemm::kernel::DefaultGemm<
    Element, cutlass::layout::RowMajor, kVector<Element>, Element, LayoutB, kVector<Element>, Element,
    cutlass::layout::RowMajor, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80,
    cutlass::gemm::GemmShape<128, 64, 32>, cutlass::gemm::GemmShape<64, 32, 32>,
    cutlass::gemm::GemmShape<16, 8, sizeof(Element) == 4 ? 8 : 16>,
    cutlass::epilogue::thread::LinearCombination<Element, kVector<Element>, float, float>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, kStages, kSplitK, cutlass::arch::OpMultiplyAdd,
    kClear>::GemmKernel;

// d[m, n] = alpha * a[m, k] @ b[k, n] + beta * c[m, n]. The grid is tiles of rows, of columns, slices of k.
template <class Kernel, class Element>
__device__ void run(const Element* a, const Element* b, const Element* c, Element* d, int m, int n, int k, float alpha,
                    float beta, int* semaphore) {
  extern __shared__ __align__(16) char dynamic_shared[];
  using LayoutB = typename Kernel::Mma::IteratorB::Layout;
  const int ldb = cutlass::platform::is_same<LayoutB, cutlass::layout::RowMajor>::value ? n : k;
  const typename Kernel::Params params({m, n, k}, {int(gridDim.x), int(gridDim.y), int(gridDim.z)},
                                       {const_cast<Element*>(a), k}, {const_cast<Element*>(b), ldb},
                                       {const_cast<Element*>(c), n}, {d, n}, {alpha, beta}, semaphore);
  Kernel()(params, *reinterpret_cast<typename Kernel::SharedStorage*>(dynamic_shared));
}

}  // namespace

#define GEMM(name, Element, layout_b, stages, split_k, clear)                                                      \
  using name##_kernel = Gemm<Element, cutlass::layout::layout_b, stages, split_k, SharedMemoryClearOption::clear>; \
  extern "C" __global__ void __launch_bounds__(name##_kernel::kThreadCount)                                        \
      name(const Element* a, const Element* b, const Element* c, Element* d, int m, int n, int k, float alpha,     \
           float beta, int* semaphore) {                                                                           \
    run<name##_kernel>(a, b, c, d, m, n, k, alpha, beta, semaphore);                                               \
  }                                                                                                                \
  extern "C" __device__ const int name##_shared_bytes = sizeof(typename name##_kernel::SharedStorage);

GEMM(gemm_bf16_tn, cutlass::bfloat16_t, ColumnMajor, 3, false, kZfill)
GEMM(gemm_bf16_nn, cutlass::bfloat16_t, RowMajor, 4, false, kNone)
GEMM(gemm_fp16_tn, cutlass::half_t, ColumnMajor, 2, false, kNone)
GEMM(gemm_fp16_nn_split_k, cutlass::half_t, RowMajor, 3, true, kNone)
GEMM(gemm_tf32_tn, float, ColumnMajor, 3, false, kZfill)
