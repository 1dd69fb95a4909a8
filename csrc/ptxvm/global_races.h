// Races between the blocks of a launch in global memory.
//
// Two accesses of different blocks to the same granule race if one of them is a plain one, one of them writes, and
// nothing orders them. Blocks are ordered by releases and acquires, as the memory model of PTX has it: a release is a
// strong write with a fence before it, an acquire a strong read with a fence behind it, or either with the fence in its
// own modifiers. A block counts as one agent: what orders one of its threads orders all of them.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "ptxvm/buffers.h"
#include "ptxvm/history.h"

namespace lumos::ptxvm {

// [i]: of block i, what it did up to then; those that are missing are 0.
using BlockClocks = std::vector<uint32_t>;

// What a running block is ordered after, and what others may come to be.
struct BlockOrder {
  uint32_t block = 0, clock = 1;
  uint32_t oldest = 1;        // histories below it are from before the block
  BlockClocks known;          // what comes before all that the block does from now on
  BlockClocks fenced;         // `known` at its last fence, which its strong writes release,
  uint32_t fenced_clock = 0;  // and its own clock then, 0 = there was none
  BlockClocks observed;       // released by what its strong reads saw, for its next fence to acquire
  Steps steps;
};

class GlobalRaces {
 public:
  // For one launch, after clear_histories(). granule_bytes: 1, 2 or 4; no access is narrower, but for copies of parts.
  explicit GlobalRaces(uint32_t granule_bytes);

  void begin_block(BlockOrder* order, int64_t block);
  // Checks and records the accesses of these lanes to `row_bytes` each, which lie in the buffer and are aligned.
  void access(BlockOrder* order, Kind kind, Buffer* buffer, uint32_t mask, const uint64_t* offsets, uint32_t row_bytes);
  void fence(BlockOrder* order);
  // After a strong write, and after a strong read, which may have the fence in themselves.
  void release(BlockOrder* order, uint64_t address, bool has_fence);
  void acquire(BlockOrder* order, uint64_t address, bool has_fence);

 private:
  uint32_t checked(BlockOrder* order, uint32_t history, Kind kind, const Buffer& buffer, uint64_t offset, int lane);

  uint32_t granule_log2_;
  Histories histories_{1};
  std::unordered_map<uint64_t, BlockClocks> released_;  // by address
};

}  // namespace lumos::ptxvm
