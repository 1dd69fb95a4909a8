#include "ptxvm/body.h"

#include "ptxvm/instruction.h"
#include "ptxvm/variables.h"

namespace lumos::ptxvm {
namespace {

constexpr int kMaxNesting = 100;  // a name is looked for in every scope around it

}  // namespace

std::string BodyParser::declare(const std::string& name, Name::Kind kind, int line) {
  const std::string unique = scopes_.declare(name, kind);
  if (unique.empty()) fail(line, "'" + name + "' is declared twice");
  return unique;
}

void BodyParser::parse() {
  cursor_.expect("{");
  int num_open = 1;
  scopes_.open();
  while (num_open > 0) {
    if (cursor_.accept("{")) {
      if (++num_open > kMaxNesting) fail(cursor_.line(), "braces are nested too deeply");
      scopes_.open();
    } else if (cursor_.accept("}")) {
      --num_open;
      scopes_.close();
    } else if (cursor_.is_dotted()) {
      directive();
    } else if (cursor_.is_word() && cursor_.peek(1).is(":")) {
      label();
    } else {
      instruction();
    }
  }
  resolve_all();
}

void BodyParser::directive() {
  if (cursor_.accept(".reg")) {
    registers();
  } else if (cursor_.accept(".shared")) {
    variable(&function_.shared);
  } else if (cursor_.accept(".local") || cursor_.accept(".param")) {
    variable(&function_.local);
  } else if (cursor_.accept(".loc")) {
    location();
  } else if (cursor_.accept(".pragma")) {
    while (!cursor_.accept(";")) cursor_.next();
  } else {
    cursor_.unexpected("an instruction or a directive of a body");
  }
}

void BodyParser::registers() {
  const Type type = cursor_.is_dotted() ? type_named(std::string(cursor_.peek().text.substr(1))) : Type::none;
  if (type == Type::none) cursor_.unexpected("the type of a register");
  cursor_.next();
  do {
    const int line = cursor_.line();
    const std::string name = cursor_.word();
    bool is_new;
    if (cursor_.accept("<")) {
      is_new = scopes_.declare_registers(name, cursor_.integer(), type);
      cursor_.expect(">");
    } else {
      is_new = scopes_.declare_register(name, type);
    }
    if (!is_new) fail(line, "register '" + name + "' is declared twice");
  } while (cursor_.accept(","));
  cursor_.expect(";");
}

void BodyParser::variable(std::vector<Variable>* variables) {
  const int line = cursor_.line();
  variables->push_back(read_declaration(&cursor_).variable);
  variables->back().name = declare(variables->back().name, Name::Kind::variable, line);
  cursor_.expect(";");
}

// `file line column`, and for inlined code what it is inlined into, which is not kept.
void BodyParser::location() {
  location_.file = cursor_.integer();
  location_.line = cursor_.integer();
  cursor_.integer();
  while (cursor_.accept(",")) {
    if (cursor_.accept("inlined_at")) {
      for (int i = 0; i < 3; ++i) cursor_.integer();
    } else {
      cursor_.expect("function_name");
      cursor_.next();
      if (cursor_.accept("+")) cursor_.integer();
    }
  }
}

void BodyParser::label() {
  const int line = cursor_.line();
  const std::string name = cursor_.word();
  cursor_.expect(":");
  if (cursor_.accept(".branchtargets")) {
    tables_.push_back({declare(name, Name::Kind::table, line), scopes_.current(), line});
    do {
      function_.branch_targets[tables_.back().name].push_back(cursor_.word());
    } while (cursor_.accept(","));
    cursor_.expect(";");
  } else if (cursor_.accept(".callprototype") || cursor_.accept(".calltargets")) {
    while (!cursor_.accept(";")) cursor_.next();
  } else {
    function_.labels[declare(name, Name::Kind::label, line)] = static_cast<int>(function_.instructions.size());
  }
}

void BodyParser::instruction() {
  Instruction made;
  made.location = location_;
  made.location.ptx_line = cursor_.line();
  if (cursor_.accept("@")) {
    made.guard_negated = cursor_.accept("!");
    made.guard = predicate();
  }
  if (!cursor_.is_word()) cursor_.unexpected("an instruction");
  made.name = cursor_.word();
  while (cursor_.is_dotted()) made.modifiers.emplace_back(cursor_.next().text.substr(1));
  if (made.name == "call") {
    call(&made);
  } else if (!cursor_.is(";")) {
    do {
      made.operands.push_back(operand());
    } while (cursor_.accept(","));
  }
  cursor_.expect(";");
  function_.instructions.push_back(std::move(made));
}

// `(results), name, (arguments)`, of which only the name must be there.
void BodyParser::call(Instruction* made) {
  Operand results, arguments;
  results.kind = arguments.kind = Operand::Kind::vector;
  if (cursor_.accept("(")) {
    results.elements = elements(")");
    cursor_.expect(",");
  }
  const int line = cursor_.line();
  Operand function = named();
  if (cursor_.accept(",")) {
    cursor_.expect("(");
    arguments.elements = elements(")");
  }
  // A register, or behind the arguments a list of what it may point to.
  if (function.kind == Operand::Kind::reg || cursor_.is(",")) fail(line, "indirect calls are not supported");
  made->operands = {results, function, arguments};
}

std::vector<Operand> BodyParser::elements(const char* end) {
  std::vector<Operand> made;
  while (!cursor_.accept(end)) {
    if (!made.empty()) cursor_.expect(",");
    made.push_back(element());
  }
  return made;
}

Operand BodyParser::operand() {
  Operand made;
  if (cursor_.accept("[")) return address();
  if (cursor_.accept("{")) {
    made.kind = Operand::Kind::vector;
    made.elements = elements("}");
    return made;
  }
  Operand first = element();
  if (!cursor_.accept("|")) return first;
  made.kind = Operand::Kind::pair;
  made.elements = {std::move(first), element()};
  return made;
}

Operand BodyParser::element() {
  if (cursor_.is_word()) {
    const int line = cursor_.line();
    Operand made = named();
    if (cursor_.accept("+")) add_offset(&made, line);
    return made;
  }
  if (!cursor_.accept("!")) return read_immediate(&cursor_);
  Operand made;
  made.kind = Operand::Kind::reg;
  made.negated = true;
  made.reg = predicate();
  return made;
}

// `[register + 8]`, `[name + -8]` or `[16]`, behind its bracket.
Operand BodyParser::address() {
  const int line = cursor_.line();
  Operand made = cursor_.is_word() ? named() : read_immediate(&cursor_);
  resolve(&made, line);
  if (made.kind != Operand::Kind::reg && made.kind != Operand::Kind::symbol && made.kind != Operand::Kind::integer) {
    fail(line, "bad address");
  }
  made.kind = Operand::Kind::address;
  while (!cursor_.accept("]")) {
    if (!cursor_.is("-")) cursor_.expect("+");
    add_offset(&made, line);
  }
  return made;
}

void BodyParser::add_offset(Operand* operand, int line) {
  resolve(operand, line);
  const Operand offset = read_immediate(&cursor_);
  const bool has_offset = operand->kind == Operand::Kind::address || operand->kind == Operand::Kind::symbol;
  if (!has_offset || offset.kind != Operand::Kind::integer) fail(line, "bad address");
  operand->bits = static_cast<int64_t>(static_cast<uint64_t>(operand->bits) + static_cast<uint64_t>(offset.bits));
}

Operand BodyParser::named() {
  Operand made;
  made.name = cursor_.word();
  const Name* known = scopes_.find(made.name, scopes_.current());
  if (made.name == "_") {
    made.name.clear();
  } else if (made.name == "WARP_SZ") {
    made.kind = Operand::Kind::integer;
    made.bits = kLanes;
  } else if (known && known->kind == Name::Kind::reg) {
    made.kind = Operand::Kind::reg;
    made.reg = known->reg;
    made.name.clear();
  } else if (known && known->kind == Name::Kind::variable) {
    made.kind = Operand::Kind::symbol;
    made.name = known->unique;
  } else if (made.name[0] == '%') {
    made.kind = Operand::Kind::special;
    if (cursor_.is_dotted()) made.name += cursor_.next().text;
  } else {
    // A label may come later: resolve() tells it from a name of the file, and finds its scope in `bits`.
    made.kind = Operand::Kind::label;
    made.bits = scopes_.current();
  }
  return made;
}

int BodyParser::predicate() {
  const int line = cursor_.line();
  const Operand made = named();
  if (made.kind != Operand::Kind::reg || function_.registers[made.reg].type != Type::pred) {
    fail(line, "a predicate is needed");
  }
  return made.reg;
}

// What the label or table of this name is called in the function. Empty if there is none.
std::string BodyParser::label_named(const std::string& name, int scope, int line) {
  const Name* known = scopes_.find(name, scope);
  if (!known) return "";
  if (known->kind == Name::Kind::label || known->kind == Name::Kind::table) return known->unique;
  fail(line, "'" + name + "' is used before it is declared");
}

void BodyParser::resolve(Operand* operand, int line) {
  for (Operand& element : operand->elements) resolve(&element, line);
  if (operand->kind != Operand::Kind::label) return;
  const std::string label = label_named(operand->name, static_cast<int>(operand->bits), line);
  operand->bits = 0;
  if (!label.empty()) {
    operand->name = label;
  } else if (file_names_.count(operand->name)) {
    operand->kind = Operand::Kind::symbol;
  } else {
    fail(line, "unknown name '" + operand->name + "'");
  }
}

void BodyParser::resolve_all() {
  for (Instruction& instruction : function_.instructions) {
    for (Operand& operand : instruction.operands) resolve(&operand, instruction.location.ptx_line);
  }
  for (const Table& table : tables_) {
    for (std::string& name : function_.branch_targets[table.name]) {
      const std::string label = label_named(name, table.scope, table.line);
      if (label.empty()) fail(table.line, "unknown label '" + name + "'");
      name = label;
    }
  }
}

}  // namespace lumos::ptxvm
