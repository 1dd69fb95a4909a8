// Address spaces, and the checks of every access.
//
// Global and constant memory are the host's own, at the host's addresses. Shared and local memory are offsets; as
// generic addresses they lie in windows that no host address falls into. Shared memory begins at kSharedBegin, so that
// a null pointer is caught.
#pragma once

#include <cstdint>
#include <vector>

#include "ptxvm/global_races.h"
#include "ptxvm/instruction.h"
#include "ptxvm/machine.h"
#include "ptxvm/shared_memory.h"

namespace lumos::ptxvm {

enum class Space : uint8_t { generic, global, constant, param, shared, local };

constexpr uint64_t kSharedWindow = 1ull << 60, kLocalWindow = 2ull << 60, kWindowMask = 15ull << 60;
constexpr uint64_t kSharedBegin = 1024;

enum class Access : uint8_t { read, write, atomic };

// Memory of a running block.
struct BlockMemory {
  SharedMemory shared;
  std::vector<uint8_t> local, local_written;  // [num_warps * 32][local_bytes]; written: 1 = by the thread
  uint32_t local_bytes = 0;                   // of a thread
  int64_t block_index = 0;
  uint32_t num_warps = 0;
  Counter* counters = nullptr;          // by Inst::index; nullptr = traffic is not counted
  GlobalRaces* global_races = nullptr;  // nullptr = not checked
  BlockOrder order;                     // see GlobalRaces::begin_block
};
BlockMemory& memory_of(Warp& warp);

// Inst::flags of loads, stores and atomics.
constexpr uint8_t kGenericFlag = 1, kStrongFlag = 2, kAcquireFlag = 4, kReleaseFlag = 8;

// Bytes of the narrowest access of a kernel, at most 4: granules for SharedMemory::reset and for GlobalRaces (of its
// writes only).
uint32_t shared_granule_bytes(const std::vector<Inst>& instructions);
uint32_t global_granule_bytes(const std::vector<Inst>& instructions);

// The lanes of one access, checked: bounds, alignment, initialisation and races; counted, too. All throw Fault.
struct LanePointers {
  uint8_t* base;           // of lane 0 if all 32 lanes lie contiguously, or all at the same bytes; else nullptr
  bool same;               // all lanes at the same bytes
  uint8_t* lanes[kLanes];  // of the active lanes, if base is nullptr
};
// addresses: [lanes], in `space`. lane_bytes: contiguous bytes of each lane, a power of two, at most 32.
void lane_pointers(Warp& warp, const Inst& inst, uint32_t mask, Space space, Kind kind, const uint64_t* addresses,
                   int lane_bytes, LanePointers* pointers);

// Host pointers to rows of 16 bytes of shared memory, checked: ldmatrix and stmatrix. addresses: [count], given by lane
// i % 32.
void matrix_rows(Warp& warp, const Inst& inst, Access access, const uint64_t* addresses, int count, uint8_t** pointers);

}  // namespace lumos::ptxvm
