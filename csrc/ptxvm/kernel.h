// A kernel that is ready to run: decoded instructions, and what the rows of its register file hold before it starts.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "ptxvm/allocate.h"
#include "ptxvm/decode.h"
#include "ptxvm/machine.h"
#include "ptxvm/memory.h"
#include "ptxvm/syntax.h"

namespace lumos::ptxvm {

struct Symbol {
  Space space = Space::global;
  uint64_t address = 0;
  size_t num_bytes = 0;
};
using Symbols = std::unordered_map<std::string, Symbol>;

// Registers of one instruction that may not be set: the rows that say in which lanes they are.
struct Tracked {
  std::vector<uint32_t> reads, writes;
  uint32_t guard = 0;       // of the predicate that guards it; 0 = surely set
  bool propagates = false;  // mov and selp hand "not set" on; everything else must not read it
};

struct Kernel {
  // `symbols`: the variables of the module.
  Kernel(const Program& program, const Function& source, const Symbols& symbols);

  std::string name;
  Function function;  // after inlining
  std::unordered_map<int, std::string> files;
  std::vector<Inst> code;  // one an instruction, and an exit at the end
  std::vector<Tracked> tracked;
  std::vector<std::vector<int32_t>> branch_tables;

  uint32_t file_bytes = 0;  // of a warp's register file
  int num_rows = 0;
  struct Constant {
    uint32_t row;
    uint64_t bits;
    int row_bytes;
  };
  std::vector<Constant> constants;
  std::map<std::string, uint32_t> specials;  // name -> row of uint32_t
  std::vector<uint32_t> tracked_rows;        // zeroed when a block starts

  Symbols variables;                                          // of the module
  std::vector<uint8_t> parameters;                            // arguments of the running launch
  std::vector<std::pair<int64_t, int64_t>> parameter_places;  // offset, bytes
  uint32_t static_shared_bytes = 0;                           // from kSharedBegin on; dynamic shared memory follows
  uint32_t local_bytes = 0;                                   // of a thread
  uint32_t shared_granule = 4, global_granule = 4;            // bytes of the narrowest access, see memory.h

  std::string location(int index) const;  // "mm_rope.cu:42, PTX line 88"
};

}  // namespace lumos::ptxvm
