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
#include "ptxvm/traffic.h"

namespace lumos::ptxvm {

enum class Space : uint8_t { generic, global, constant, param, shared, local };

constexpr uint64_t kSharedWindow = 1ull << 60, kLocalWindow = 2ull << 60, kWindowMask = 15ull << 60;
constexpr uint64_t kSharedBegin = 1024;

enum class Access : uint8_t { read, write };

// Memory of a running block.
struct BlockMemory {
  SharedMemory shared;
  std::vector<uint8_t> local, local_written;  // [num_warps * 32][local_bytes]; written: 1 = by the thread
  uint32_t local_bytes = 0;                   // of a thread
  uint32_t num_warps = 0;
  Counter* counters = nullptr;          // by Inst::index; nullptr = traffic is not counted
  GlobalRaces* global_races = nullptr;  // nullptr = not checked
  BlockOrder order;

  void start(uint32_t shared_bytes, uint32_t shared_granule_bytes, bool check_races, int64_t block, GlobalRaces* races);
  void end_of_block() const { shared.end_of_kernel(); }
};
BlockMemory& memory_of(Warp& warp);

// Inst::flags of loads, stores, atomics and copies. Block scope: the order is within the block only. Narrow: the
// address register has 32 bits.
constexpr uint8_t kStrongFlag = 1, kBlockScopeFlag = 2, kAcquireFlag = 4, kReleaseFlag = 8, kNarrowAddressFlag = 16;

// Addresses of a decoded operand: the row and the offset. Inactive lanes get that of the first active one.
inline void addresses_of(Warp& warp, uint32_t row, int64_t offset, bool narrow, uint32_t mask, uint64_t* addresses) {
  const int first = __builtin_ctz(mask);
  if (narrow) {
    const uint32_t* base = warp.row<uint32_t>(row);
    for (int lane = 0; lane < kLanes; ++lane) {
      addresses[lane] = static_cast<uint32_t>((mask >> lane & 1 ? base[lane] : base[first]) + offset);
    }
  } else {
    const uint64_t* base = warp.row<uint64_t>(row);
    for (int lane = 0; lane < kLanes; ++lane) {
      addresses[lane] = (mask >> lane & 1 ? base[lane] : base[first]) + offset;
    }
  }
}

// Where the lanes of an access lie, once it is known to be within bounds, aligned, initialised and no race.
struct LanePointers {
  uint8_t* base = nullptr;        // all lanes lie one behind the other from here on, or all at these bytes
  bool same = false;              // the latter
  uint8_t* lanes[kLanes];         // otherwise; of active lanes
  const void* written = nullptr;  // set by a plain store: [lanes][lane_bytes], see SharedMemory::announce
};

// Checks an access, counts it, and finds its bytes; throws Fault. addresses: [lanes], in the space of the function;
// those of inactive lanes are that of the first active one. lane_bytes: contiguous, a power of two, at most 32.
using Resolve = void (*)(Warp& warp, const Inst& inst, uint32_t mask, Kind kind, const uint64_t* addresses,
                         int lane_bytes, LanePointers* pointers);
Resolve resolve_in(Space space);

// Offsets of the lanes of an access from the first byte of shared memory: checked for bounds and alignment, and
// counted.
Shape shared_offsets(Warp& warp, const Inst& inst, uint32_t mask, Kind kind, const uint64_t* addresses, int lane_bytes,
                     uint64_t* offsets);

// Host pointers to rows of 16 bytes of shared memory, checked: ldmatrix and stmatrix. addresses: [count], given by lane
// i % 32.
void matrix_rows(Warp& warp, const Inst& inst, Access access, const uint64_t* addresses, int count, uint8_t** pointers);

}  // namespace lumos::ptxvm
