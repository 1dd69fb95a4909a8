// Names inside a function. Braces nest, and a name that is declared inside of them is theirs alone.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "ptxvm/syntax.h"

namespace lumos::ptxvm {

struct Name {
  enum class Kind { reg, variable, label, table };
  Kind kind;
  int reg;             // of Kind::reg
  std::string unique;  // of the other kinds: what it is called in the Function
};

class Scopes {
 public:
  // file_names: of the file's variables and functions. Nothing in a function is called like one of them.
  Scopes(Function* function, const std::unordered_set<std::string>& file_names)
      : function_(*function), file_names_(file_names) {}

  void open();
  void close() { current_ = scopes_[current_].parent; }
  int current() const { return current_; }

  // Return false, or an empty name, if the scope has this name already.
  bool declare_register(const std::string& name, Type type);
  bool declare_registers(const std::string& prefix, int count, Type type);  // prefix0, prefix1, ...
  std::string declare(const std::string& name, Name::Kind kind);

  // Looks in `scope` and in those around it. nullptr if none has the name.
  const Name* find(const std::string& name, int scope);

 private:
  struct Range {
    int count;
    Type type;
  };
  struct Scope {
    int parent;
    std::unordered_map<std::string, Name> names;
    std::unordered_map<std::string, Range> ranges;  // of registers that are made when they are first met
  };

  const Name* find_in_ranges(const std::string& name, Scope* scope);

  Function& function_;
  const std::unordered_set<std::string>& file_names_;
  std::unordered_set<std::string> taken_;
  std::vector<Scope> scopes_;  // closed ones too: labels are found after the end of the body
  int current_ = -1;
};

}  // namespace lumos::ptxvm
