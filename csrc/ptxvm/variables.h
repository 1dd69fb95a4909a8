// Declarations of variables in PTX text.
#pragma once

#include <string>
#include <unordered_set>

#include "ptxvm/lexer.h"
#include "ptxvm/syntax.h"

namespace lumos::ptxvm {

struct Declaration {
  Variable variable;
  Type type = Type::none;  // of an element
  bool is_open = false;    // its first extent is not written: []
};

// What follows the space: `.align 4 .b8 name[16]`, `.u64 .ptr .global .align 1 name`.
Declaration read_declaration(Cursor* cursor);

// What follows a `=`. file_names: of which it may hold addresses.
void read_initial(Cursor* cursor, const std::unordered_set<std::string>& file_names, Declaration* declaration);

// An integer or real operand, with its sign.
Operand read_immediate(Cursor* cursor);

}  // namespace lumos::ptxvm
