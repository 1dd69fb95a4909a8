// Loads of four 8 x 8 matrices of 16-bit elements from shared memory, as fragments of mma.cuh.
//
// Lane l gives the address of row l % 8 of matrix l / 8, aligned to 16 bytes. Lane 4 g + t gets of matrix i, in
// register i, the elements (g, 2t) and (g, 2t + 1); transposed: (2t, g) and (2t + 1, g).
#pragma once

#include <cstdint>

namespace lumos {

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ inline void ldmatrix(uint32_t (&registers)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

__device__ inline void ldmatrix_transposed(uint32_t (&registers)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

}  // namespace lumos
