// What memory would have to move for an access of a warp.
#pragma once

#include <cstdint>

#include "ptxvm/machine.h"

namespace lumos::ptxvm {

// How the lanes of an access lie to each other; full warps only, all else is scattered.
enum class Shape : uint8_t { scattered, contiguous, same };
Shape shape_of(uint32_t mask, const uint64_t* addresses, int lane_bytes);

// Sectors of global memory, 32 bytes each. addresses: [lanes]; no lane crosses the end of one.
void count_sectors(Shape shape, uint32_t mask, const uint64_t* addresses, Counter* counter);

// Wavefronts of shared memory: it serves the lanes in groups that may ask for 128 bytes, and in each wavefront one word
// of each of 32 banks.
void count_wavefronts(Shape shape, uint32_t mask, const uint64_t* offsets, int lane_bytes, Counter* counter);

}  // namespace lumos::ptxvm
