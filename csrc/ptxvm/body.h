// The body of a function in PTX text.
#pragma once

#include <string>
#include <unordered_set>
#include <vector>

#include "ptxvm/lexer.h"
#include "ptxvm/scopes.h"
#include "ptxvm/syntax.h"

namespace lumos::ptxvm {

class BodyParser {
 public:
  // file_names: of the variables and functions of the file.
  BodyParser(Cursor* cursor, const std::unordered_set<std::string>& file_names, Function* function)
      : cursor_(*cursor), file_names_(file_names), function_(*function), scopes_(function, file_names) {
    scopes_.open();
  }

  // Declares a formal parameter, or what `kind` says; returns what it is called in the function.
  std::string declare(const std::string& name, Name::Kind kind, int line);
  // From `{` to its `}`.
  void parse();

 private:
  struct Table {
    std::string name;
    int scope, line;
  };

  void directive();
  void registers();
  void variable(std::vector<Variable>* variables);
  void location();
  void label();
  void instruction();
  void call(Instruction* made);
  std::vector<Operand> elements(const char* end);
  Operand operand();
  Operand element();
  Operand address();
  void add_offset(Operand* operand, int line);
  Operand named();
  int predicate();
  std::string label_named(const std::string& name, int scope, int line);
  void resolve(Operand* operand, int line);
  void resolve_all();

  Cursor& cursor_;
  const std::unordered_set<std::string>& file_names_;
  Function& function_;
  Scopes scopes_;
  Location location_;
  std::vector<Table> tables_;  // of brx.idx
};

}  // namespace lumos::ptxvm
