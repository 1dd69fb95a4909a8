// Run-time choice between the copies of a kernel, one per instruction set.
//
// In a header:
//   LUMOS_DECLARE_KERNEL(void, mm_rope_rows, (const lumos_mm_rope_params& params, int64_t begin, int64_t end))
//
// In <op>_cpu.cpp:
//   namespace lumos::LUMOS_ISA {
//   void mm_rope_rows(...) {...}
//   }
//
// In the launcher:
//   auto* kernel = LUMOS_SELECT_KERNEL(mm_rope_rows);
//
// A kernel for tiles alone is LUMOS_DECLARE_AMX_KERNEL in the header and lies in <op>_amx.cpp;
// LUMOS_SELECT_AMX_KERNEL is null below level amx.
#pragma once

#include "cpu/isa.h"

#if defined(__x86_64__)
#define LUMOS_DECLARE_KERNEL(result, name, arguments) \
  namespace lumos {                                   \
  namespace portable {                                \
  result name arguments;                              \
  }                                                   \
  namespace avx2 {                                    \
  result name arguments;                              \
  }                                                   \
  namespace avx512 {                                  \
  result name arguments;                              \
  }                                                   \
  }
#define LUMOS_SELECT_KERNEL(name) \
  ::lumos::select_kernel(&::lumos::portable::name, &::lumos::avx2::name, &::lumos::avx512::name)
#else
#define LUMOS_DECLARE_KERNEL(result, name, arguments) \
  namespace lumos {                                   \
  namespace portable {                                \
  result name arguments;                              \
  }                                                   \
  }
#define LUMOS_SELECT_KERNEL(name) (&::lumos::portable::name)
#endif

#define LUMOS_DECLARE_AMX_KERNEL(result, name, arguments) \
  namespace lumos::amx {                                  \
  result name arguments;                                  \
  }
#if defined(__x86_64__)
#define LUMOS_SELECT_AMX_KERNEL(name) (::lumos::active_isa() == ::lumos::Isa::amx ? &::lumos::amx::name : nullptr)
#else
#define LUMOS_SELECT_AMX_KERNEL(name) (static_cast<decltype(&::lumos::amx::name)>(nullptr))
#endif

namespace lumos {

template <class Kernel>
Kernel* select_kernel(Kernel* portable, Kernel* avx2, Kernel* avx512) {
  Kernel* const table[] = {portable, avx2, avx512, avx512};
  return table[static_cast<int>(active_isa())];
}

}  // namespace lumos
