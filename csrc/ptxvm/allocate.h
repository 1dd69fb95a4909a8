// Which row of the register file each virtual register lives in.
#pragma once

#include <cstdint>
#include <vector>

#include "ptxvm/syntax.h"

namespace lumos::ptxvm {

struct Allocation {
  std::vector<uint32_t> rows;  // [virtual registers], byte offset
  std::vector<uint32_t>
      tracked;       // [virtual registers], row of the lanes that have set it; 0 = set on every path before each use
  uint32_t end = 0;  // bytes of the register file so far
  int num_rows = 0;  // of 32 lanes, at the widest point
};

// What an instruction reads and writes; predicates among them.
struct RegisterUse {
  std::vector<int> reads, writes;
};
RegisterUse register_use(const Instruction& instruction);

// Registers whose lives do not overlap share a row. `begin`: the first free byte of the register file.
Allocation allocate(const Function& kernel, uint32_t begin);

}  // namespace lumos::ptxvm
