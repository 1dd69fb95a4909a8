#include <algorithm>
#include <unordered_set>

#include "ptxvm/decode.h"

namespace lumos::ptxvm {

int num_destinations(const Instruction& instruction) {
  static const std::unordered_set<std::string> writes_none = {
      "st",      "stmatrix",      "red",   "bra",     "brx",        "ret",           "exit",
      "trap",    "membar",        "fence", "cp",      "prefetch",   "prefetchu",     "nanosleep",
      "discard", "applypriority", "brkpt", "pmevent", "setmaxnreg", "griddepcontrol"};
  const std::string& name = instruction.name;
  if (name == "bar" || name == "barrier") return instruction.has("red") ? 1 : 0;
  if (name == "mbarrier") {
    return instruction.has("init") || instruction.has("inval") || instruction.has("expect_tx") ||
                   instruction.has("complete_tx")
               ? 0
               : 1;
  }
  if (name == "call") {
    const std::vector<Operand>& results = instruction.operands.at(0).elements;
    const auto is_register = [](const Operand& result) { return result.kind == Operand::Kind::reg; };
    return std::any_of(results.begin(), results.end(), is_register) ? 1 : 0;
  }
  return writes_none.count(name) ? 0 : 1;
}

}  // namespace lumos::ptxvm
