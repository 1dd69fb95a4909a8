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

// clocks[i]: of block i, what it did up to then; missing ones are 0.
using BlockClocks = std::vector<uint32_t>;

// What a block is ordered after, and what others may come to be.
struct BlockOrder {
  uint32_t block = 0, clock = 1;
  uint32_t oldest = 1;   // the first history that this block can occur in
  BlockClocks known;     // ordered before what this block does now
  BlockClocks fenced;    // ordered before its last fence, which its strong writes release
  BlockClocks observed;  // released by what its strong reads saw, which its next fence acquires
  Steps steps;
};

class GlobalRaces {
 public:
  // For one launch. granule_bytes: 1, 2 or 4; no store of the kernel is narrower.
  explicit GlobalRaces(uint32_t granule_bytes);

  void begin_block(BlockOrder& order, int64_t block);
  // Checks and records an access to [address, address + num_bytes) of the buffer.
  void access(BlockOrder& order, Kind kind, Buffer& buffer, const uint8_t* begin, uint32_t num_bytes);
  void fence(BlockOrder& order);
  // Around a strong access to `address`.
  void release(BlockOrder& order, uint64_t address);
  void acquire(BlockOrder& order, uint64_t address);

 private:
  uint32_t checked(BlockOrder& order, uint32_t history, Kind kind, const Buffer& buffer, size_t offset);

  uint32_t granule_log2_;
  Histories histories_{1};
  std::unordered_map<uint64_t, BlockClocks> released_;  // by address
};

}  // namespace lumos::ptxvm
