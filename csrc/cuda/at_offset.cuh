// Accesses of ldmatrix.cuh and cp_async.cuh at constant distances from an address, which the instruction adds itself.
#pragma once

#include <cstdint>

namespace lumos {

template <int kOffset>
__device__ inline void ldmatrix_at(uint32_t (&registers)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address), "n"(kOffset)
               : "memory");
}

template <int kOffset>
__device__ inline void ldmatrix_transposed_at(uint32_t (&registers)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address), "n"(kOffset)
               : "memory");
}

// global: in that space, see __cvta_generic_to_global
template <int kSharedOffset, int kGlobalOffset>
__device__ inline void cp_async_at(uint32_t shared, uint64_t global, uint32_t source_bytes) {
  asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %3], 16, %4;"
               :
               : "r"(shared), "l"(global), "n"(kSharedOffset), "n"(kGlobalOffset), "r"(source_bytes)
               : "memory");
}

template <int kSharedOffset, int kGlobalOffset>
__device__ inline void cp_async_at(uint32_t shared, uint64_t global) {
  asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %3], 16;"
               :
               : "r"(shared), "l"(global), "n"(kSharedOffset), "n"(kGlobalOffset)
               : "memory");
}

// Waits for all copies of this thread, in whichever groups. The others' copies need a barrier as well.
__device__ inline void cp_async_wait_all() { asm volatile("cp.async.wait_all;" : : : "memory"); }

}  // namespace lumos
