// Address spaces, and the checks of every access.
//
// Global and constant memory are the host's own, at the host's addresses. Shared and local memory are offsets; as
// generic addresses they lie in windows that no host address falls into. Shared memory begins at kSharedBegin, so that
// a null pointer is caught.
#pragma once

#include <cstdint>

#include "ptxvm/instruction.h"

namespace lumos::ptxvm {

enum class Space : uint8_t { generic, global, constant, param, shared, local };

constexpr uint64_t kSharedWindow = 1ull << 60, kLocalWindow = 2ull << 60, kWindowMask = 15ull << 60;
constexpr uint64_t kSharedBegin = 1024;

enum class Access : uint8_t { read, write, atomic };

// All of these check bounds, alignment (to `bytes`), initialisation and races, count the traffic, and throw Fault.
// addresses: [lanes], in `space`. lane_bytes: contiguous bytes of each lane, a power of two, at most 16.

// Reads into data[lane * 16 ...].
void load(Warp& warp, const Inst& inst, uint32_t mask, Space space, const uint64_t* addresses, int lane_bytes,
          uint8_t (*data)[16]);
void store(Warp& warp, const Inst& inst, uint32_t mask, Space space, const uint64_t* addresses, int lane_bytes,
           const uint8_t (*data)[16]);

// Host pointer to the bytes of one lane after the checks of an atomic access.
uint8_t* atomic_pointer(Warp& warp, const Inst& inst, int lane, Space space, uint64_t address, int bytes);

// Host pointers to rows of 16 bytes of shared memory, checked: ldmatrix and stmatrix. addresses: [count], given by lane
// i % 32.
void matrix_rows(Warp& warp, const Inst& inst, Access access, const uint64_t* addresses, int count, uint8_t** pointers);

}  // namespace lumos::ptxvm
