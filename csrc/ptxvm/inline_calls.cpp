#include <algorithm>
#include <unordered_set>

#include "ptxvm/fault.h"
#include "ptxvm/lexer.h"
#include "ptxvm/syntax.h"

namespace lumos::ptxvm {
namespace {

constexpr size_t kMaxDepth = 200, kMaxBodies = 100'000, kMaxInstructions = 1'000'000;

// What the names of a body become in the kernel. Labels and local variables get a suffix, and the place behind the body
// is the label that consists of the suffix alone.
struct Renaming {
  int first_register = 0;
  std::string suffix;                                    // empty for the kernel's own body
  std::unordered_map<std::string, std::string> symbols;  // formal parameters, results, variables

  void apply(Operand* operand) const {
    for (Operand& element : operand->elements) apply(&element);
    if (operand->reg >= 0) operand->reg += first_register;
    if (operand->kind == Operand::Kind::label) {
      operand->name += suffix;
    } else if (operand->kind == Operand::Kind::symbol || operand->kind == Operand::Kind::address) {
      const auto found = symbols.find(operand->name);
      if (found != symbols.end()) operand->name = found->second;
    }
  }
};

bool returns(const Instruction& instruction) { return instruction.name == "ret"; }

Operand operand_of(Operand::Kind kind, const std::string& name) {
  Operand made;
  made.kind = kind;
  made.name = name;
  return made;
}

class Inliner {
 public:
  Inliner(const Program& program, Function* kernel) : program_(program), kernel_(*kernel) {
    for (const Variable& parameter : kernel->params) arguments_.insert(parameter.name);
  }

  void run() {
    const Function source = kernel_;
    kernel_.instructions.clear();
    kernel_.labels.clear();
    kernel_.branch_targets.clear();
    expand(source, Renaming());
  }

 private:
  void expand(const Function& source, const Renaming& renaming) {
    const std::vector<Instruction>& body = source.instructions;
    const bool is_inlined = !renaming.suffix.empty();
    size_t end = body.size();
    while (is_inlined && end > 0 && returns(body[end - 1]) && body[end - 1].guard < 0) --end;
    std::vector<int> positions;
    for (size_t i = 0; i < end; ++i) {
      positions.push_back(num_instructions());
      Instruction made = renamed(body[i], renaming);
      if (const Function* callee = called(made)) {
        inline_call(made, *callee);
      } else if (is_inlined && returns(made)) {
        append_branch(made, renaming.suffix);
      } else {
        append(std::move(made));
      }
    }
    positions.resize(body.size() + 1, num_instructions());
    for (const auto& [label, index] : source.labels) kernel_.labels[label + renaming.suffix] = positions[index];
    for (const auto& [table, labels] : source.branch_targets) {
      std::vector<std::string>& targets = kernel_.branch_targets[table + renaming.suffix];
      for (const std::string& label : labels) targets.push_back(label + renaming.suffix);
    }
    if (is_inlined) kernel_.labels[renaming.suffix] = num_instructions();
  }

  Instruction renamed(const Instruction& source, const Renaming& renaming) const {
    Instruction made = source;
    if (made.guard >= 0) made.guard += renaming.first_register;
    for (Operand& operand : made.operands) renaming.apply(&operand);
    const bool is_local =
        !renaming.suffix.empty() ||
        std::any_of(made.operands.begin(), made.operands.end(), [&](const Operand& operand) {
          return operand.kind == Operand::Kind::address && !operand.name.empty() && !arguments_.count(operand.name);
        });
    for (std::string& modifier : made.modifiers) {
      if (modifier == "param" || modifier == "param::func" || modifier == "param::entry") {
        modifier = is_local ? "local" : "param";
      }
    }
    return made;
  }

  // The function whose body replaces the instruction, nullptr if there is none.
  const Function* called(const Instruction& instruction) const {
    if (instruction.name != "call") return nullptr;
    const std::string& name = instruction.operands[1].name;
    const auto callee = program_.functions.find(name);
    if (callee == program_.functions.end()) fail(instruction.location.ptx_line, "'" + name + "' is no function");
    return callee->second.has_body ? &callee->second : nullptr;
  }

  void inline_call(const Instruction& call, const Function& callee) {
    const int line = call.location.ptx_line;
    const std::vector<Operand>&results = call.operands[0].elements, &arguments = call.operands[2].elements;
    if (std::find(active_.begin(), active_.end(), &callee) != active_.end()) {
      fail(line, "'" + callee.name + "' calls itself, which is not supported");
    }
    if (active_.size() == kMaxDepth || num_bodies_ == kMaxBodies) fail(line, "too many calls of functions");
    if (results.size() != callee.results.size() || arguments.size() != callee.params.size()) {
      fail(line, "the call does not fit the parameters of '" + callee.name + "'");
    }

    Renaming renaming;
    renaming.first_register = static_cast<int>(kernel_.registers.size());
    renaming.suffix = "#" + std::to_string(++num_bodies_);
    kernel_.registers.insert(kernel_.registers.end(), callee.registers.begin(), callee.registers.end());
    for (const Variable& variable : callee.local) add_local(variable, &renaming);
    for (const Variable& variable : callee.shared) {  // one for all calls
      const std::string name = renaming.symbols[variable.name] = callee.name + "::" + variable.name;
      if (!shared_.insert(name).second) continue;
      kernel_.shared.push_back(variable);
      kernel_.shared.back().name = name;
    }
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (!bind(callee.params[i], arguments[i], &renaming)) append_access("st", call, callee.params[i], i, renaming);
    }
    for (size_t i = 0; i < results.size(); ++i) bind(callee.results[i], results[i], &renaming);

    if (call.guard >= 0) {
      Instruction skip = call;
      skip.guard_negated = !call.guard_negated;
      append_branch(skip, renaming.suffix);
    }
    active_.push_back(&callee);
    expand(callee, renaming);
    active_.pop_back();
    for (size_t i = 0; i < results.size(); ++i) {
      if (results[i].kind == Operand::Kind::reg) append_access("ld", call, callee.results[i], i, renaming);
    }
  }

  // Makes the variable of the caller the formal one. False if it is none; the formal one is then a variable itself.
  bool bind(const Variable& formal, const Operand& actual, Renaming* renaming) {
    const bool is_variable = actual.kind == Operand::Kind::symbol;
    if (is_variable) {
      renaming->symbols[formal.name] = actual.name;
    } else {
      add_local(formal, renaming);
    }
    return is_variable;
  }

  void add_local(const Variable& variable, Renaming* renaming) {
    kernel_.local.push_back(variable);
    kernel_.local.back().name = renaming->symbols[variable.name] = variable.name + renaming->suffix;
  }

  // Between a register of the caller, or an immediate, and a formal variable.
  void append_access(const char* name, const Instruction& call, const Variable& formal, size_t i,
                     const Renaming& renaming) {
    const bool is_load = name == std::string("ld");
    Instruction made = call;
    made.name = name;
    made.modifiers = {"local", "b" + std::to_string(8 * formal.num_bytes)};
    made.operands = {operand_of(Operand::Kind::address, renaming.symbols.at(formal.name)),
                     call.operands[is_load ? 0 : 2].elements[i]};
    if (is_load) std::swap(made.operands[0], made.operands[1]);
    append(std::move(made));
  }

  // In place of `source`, under its guard.
  void append_branch(Instruction source, const std::string& label) {
    source.name = "bra";
    source.modifiers.clear();
    source.operands = {operand_of(Operand::Kind::label, label)};
    append(std::move(source));
  }

  void append(Instruction instruction) {
    if (kernel_.instructions.size() == kMaxInstructions) {
      fail(instruction.location.ptx_line, "the kernel is too long with all its calls");
    }
    kernel_.instructions.push_back(std::move(instruction));
  }

  int num_instructions() const { return static_cast<int>(kernel_.instructions.size()); }

  const Program& program_;
  Function& kernel_;
  std::unordered_set<std::string> arguments_;  // of the kernel
  std::unordered_set<std::string> shared_;     // variables of functions
  std::vector<const Function*> active_;
  size_t num_bodies_ = 0;
};

}  // namespace

void inline_calls(const Program& program, Function* kernel) { Inliner(program, kernel).run(); }

}  // namespace lumos::ptxvm
