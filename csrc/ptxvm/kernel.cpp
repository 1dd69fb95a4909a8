#include "ptxvm/kernel.h"

#include <algorithm>

namespace lumos::ptxvm {
namespace {

int64_t aligned(int64_t offset, int64_t align) { return (offset + align - 1) / align * align; }

// Lays variables one after the other from *end on, those of dynamic size last, all at the same address.
void place(const std::vector<Variable>& variables, Space space, int64_t* end, Symbols* symbols) {
  for (bool dynamic : {false, true}) {
    for (const Variable& variable : variables) {
      if (variable.dynamic != dynamic) continue;
      const int64_t begin = aligned(*end, dynamic ? std::max<int64_t>(variable.align, 16) : variable.align);
      (*symbols)[variable.name] = {space, static_cast<uint64_t>(begin), 0};
      *end = dynamic ? std::max(*end, begin) : begin + variable.num_bytes;
    }
  }
}

bool mentions(const Operand& operand, const std::string& name) {
  if (operand.name == name) return true;
  for (const Operand& element : operand.elements) {
    if (mentions(element, name)) return true;
  }
  return false;
}

std::vector<Variable> used_shared(const Program& program, const Function& function) {
  std::vector<Variable> used = function.shared;
  for (const Variable& variable : program.shared) {
    for (const Instruction& instruction : function.instructions) {
      const auto& operands = instruction.operands;
      if (std::any_of(operands.begin(), operands.end(), [&](const Operand& o) { return mentions(o, variable.name); })) {
        used.push_back(variable);
        break;
      }
    }
  }
  return used;
}

// Bytes of the narrowest access to `space`, at most 4; accesses without a space may go anywhere.
uint32_t narrowest_access(const Function& function, const std::string& space) {
  int bytes = 4;
  for (const Instruction& i : function.instructions) {
    if (i.name != "ld" && i.name != "st" && i.name != "atom" && i.name != "red") continue;
    bool elsewhere = false;
    for (const char* other : {"global", "shared", "param", "const", "local"}) {
      elsewhere = elsewhere || (space != other && i.has(other));
    }
    if (!elsewhere) bytes = std::min(bytes, std::max(1, size_bytes(i.type())));
  }
  return bytes;
}

// Throws Error unless every branch has somewhere to go.
void check_branches(const Function& function) {
  for (const Instruction& i : function.instructions) {
    const size_t at = i.name == "brx" ? 1 : 0;
    if (i.name != "bra" && i.name != "brx") continue;
    const std::string target = at < i.operands.size() ? i.operands[at].name : "";
    if (at ? !function.branch_targets.count(target) : !function.labels.count(target)) {
      throw Error(
          format("PTX line %d: %s has no target '%s'", i.location.ptx_line, i.opcode().c_str(), target.c_str()));
    }
    if (!at) continue;
    for (const std::string& label : function.branch_targets.at(target)) {
      if (!function.labels.count(label))
        throw Error(format("PTX line %d: no label '%s'", i.location.ptx_line, label.c_str()));
    }
  }
}

class KernelRows : public Rows {
 public:
  KernelRows(Kernel* kernel, const Symbols& symbols, const Allocation& allocation)
      : kernel_(*kernel), symbols_(symbols), allocation_(allocation), end_(allocation.end) {}

  uint32_t of_register(int reg) override { return allocation_.rows.at(reg); }

  uint32_t of_constant(uint64_t bits, int row_bytes) override {
    uint32_t& row = constants_[{bits, row_bytes}];
    if (!row) {
      row = fresh(row_bytes);
      kernel_.constants.push_back({row, bits, row_bytes});
    }
    return row;
  }

  uint32_t of_special(const std::string& name) override {
    static const char* const kNames[] = {"%tid.x",
                                         "%tid.y",
                                         "%tid.z",
                                         "%ntid.x",
                                         "%ntid.y",
                                         "%ntid.z",
                                         "%ctaid.x",
                                         "%ctaid.y",
                                         "%ctaid.z",
                                         "%nctaid.x",
                                         "%nctaid.y",
                                         "%nctaid.z",
                                         "%laneid",
                                         "%warpid",
                                         "%nwarpid",
                                         "%smid",
                                         "%nsmid",
                                         "%lanemask_eq",
                                         "%lanemask_le",
                                         "%lanemask_lt",
                                         "%lanemask_ge",
                                         "%lanemask_gt",
                                         "%dynamic_smem_size",
                                         "%total_smem_size"};
    if (std::find(std::begin(kNames), std::end(kNames), name) == std::end(kNames)) return 0;
    uint32_t& row = kernel_.specials[name];
    if (!row) row = fresh(4);
    return row;
  }

  uint64_t address_of(const std::string& name) override { return find(name).address; }
  uint32_t of_symbol(const std::string& name) override { return of_constant(find(name).address, 8); }
  int symbol_space(const std::string& name) override { return static_cast<int>(find(name).space); }
  uint32_t scratch(int row_bytes) override {
    return scratch_[row_bytes] ? scratch_[row_bytes] : (scratch_[row_bytes] = fresh(row_bytes));
  }
  Type type_of(int reg) override { return kernel_.function.registers.at(reg).type; }

  int label(const std::string& name) override {
    const auto found = kernel_.function.labels.find(name);
    if (found == kernel_.function.labels.end()) throw Error(format("no label '%s'", name.c_str()));
    return found->second;
  }

  uint32_t end() const { return (end_ + 63) / 64 * 64; }

 private:
  uint32_t fresh(int row_bytes) {
    end_ = (end_ + 63) / 64 * 64;
    const uint32_t row = end_;
    end_ += row_bytes == 1 ? 4 : 32 * row_bytes;
    return row;
  }
  const Symbol& find(const std::string& name) const {
    const auto found = symbols_.find(name);
    if (found == symbols_.end()) throw Error(format("no variable '%s'", name.c_str()));
    return found->second;
  }

  Kernel& kernel_;
  const Symbols& symbols_;
  const Allocation& allocation_;
  uint32_t end_;
  std::map<std::pair<uint64_t, int>, uint32_t> constants_;
  std::map<int, uint32_t> scratch_;
};

}  // namespace

Kernel::Kernel(const Program& program, const Function& source, const Symbols& module_symbols)
    : name(source.name), function(source), files(program.files), variables(module_symbols) {
  inline_calls(program, &function);
  Symbols symbols = module_symbols;
  int64_t end = 0;
  for (const Variable& parameter : function.params) {
    end = aligned(end, parameter.align);
    parameter_places.push_back({end, parameter.num_bytes});
    end += parameter.num_bytes;
  }
  parameters.resize(end);  // never moved from here on: its addresses are constants
  for (size_t i = 0; i < function.params.size(); ++i) {
    const auto address = reinterpret_cast<uint64_t>(parameters.data()) + parameter_places[i].first;
    symbols[function.params[i].name] = {Space::param, address, 0};
  }
  int64_t shared_end = kSharedBegin, local_end = 0;
  place(used_shared(program, function), Space::shared, &shared_end, &symbols);
  place(function.local, Space::local, &local_end, &symbols);
  static_shared_bytes = static_cast<uint32_t>(shared_end - kSharedBegin);
  local_bytes = static_cast<uint32_t>(aligned(local_end, 16));

  check_branches(function);
  const Allocation allocation = allocate(function, 64);  // row 0 stands for none
  num_rows = allocation.num_rows;
  KernelRows rows(this, symbols, allocation);
  for (size_t i = 0; i < function.instructions.size(); ++i) {
    const Instruction& instruction = function.instructions[i];
    Inst inst;
    inst.index = static_cast<int32_t>(i);
    if (instruction.guard >= 0) inst.guard = rows.of_register(instruction.guard);
    inst.guard_negated = instruction.guard_negated;
    decode({instruction, rows, inst});
    if (inst.flow == Flow::branch_table) {
      std::vector<int32_t> table;
      for (const std::string& label : function.branch_targets.at(instruction.operands.at(1).name)) {
        table.push_back(rows.label(label));
      }
      inst.aux = branch_tables.size();
      branch_tables.push_back(table);
    }
    Tracked uses;
    const RegisterUse use = register_use(instruction);
    for (int reg : use.reads) {
      if (allocation.tracked[reg] && reg != instruction.guard) uses.reads.push_back(allocation.tracked[reg]);
    }
    for (int reg : use.writes) {
      if (allocation.tracked[reg]) uses.writes.push_back(allocation.tracked[reg]);
    }
    if (instruction.guard >= 0) uses.guard = allocation.tracked[instruction.guard];
    if (uses.guard || !uses.reads.empty() || !uses.writes.empty()) {
      uses.propagates = instruction.name == "mov" || instruction.name == "selp";
      inst.tracked = static_cast<int32_t>(tracked.size());
      tracked.push_back(std::move(uses));
    }
    code.push_back(inst);
  }
  Inst exit;
  exit.flow = Flow::exit;
  exit.cls = Class::control;
  exit.index = static_cast<int32_t>(code.size());
  code.push_back(exit);
  function.instructions.push_back({"exit", {}, {}, -1, false, {}});
  shared_granule = narrowest_access(function, "shared");
  global_granule = narrowest_access(function, "global");
  for (uint32_t row : allocation.tracked) {
    if (row) tracked_rows.push_back(row);
  }
  file_bytes = rows.end();
}

std::string Kernel::location(int index) const {
  const Location& location = function.instructions[index].location;
  const auto file = files.find(location.file);
  const std::string ptx = format("PTX line %d", location.ptx_line);
  if (file == files.end() || !location.line) return ptx;
  const std::string base = file->second.substr(file->second.find_last_of('/') + 1);
  return format("%s:%d, %s", base.c_str(), location.line, ptx.c_str());
}

}  // namespace lumos::ptxvm
