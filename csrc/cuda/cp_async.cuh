// Copies of 16 bytes from global to shared memory that travel while the thread goes on.
#pragma once

#include <cstdint>

namespace lumos {

// Reads the first `source_bytes` (0 or 16) and writes zeros for the rest.
__device__ inline void cp_async(uint32_t shared, const void* global, uint32_t source_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared), "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
               : "memory");
}

__device__ inline void cp_async(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(shared), "l"(__cvta_generic_to_global(global))
               : "memory");
}

// Closes the group of the copies that this thread has issued since the last one. A group may be empty.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// Waits until at most `kPending` of this thread's groups are on their way. The others' copies need a barrier as well.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

}  // namespace lumos
