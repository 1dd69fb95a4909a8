#include "ptxvm/variables.h"

#include <algorithm>

#include "ptxvm/instruction.h"

namespace lumos::ptxvm {
namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 31, kMaxAlign = 4096;

void read_extents(Cursor* cursor, Declaration* made) {
  int64_t& num_bytes = made->variable.num_bytes;
  for (bool is_first = true; cursor->is("["); is_first = false) {
    const int line = cursor->next().line;
    if (is_first && cursor->accept("]")) {
      made->is_open = true;
      continue;
    }
    num_bytes *= cursor->integer();
    if (num_bytes > kMaxBytes) fail(line, "the variable is too large");
    cursor->expect("]");
  }
  if (made->is_open) num_bytes = 0;
}

// The bytes of an immediate in a variable of `type`.
int64_t bits_in(Type type, const Operand& value, int line) {
  const bool is_real = value.kind == Operand::Kind::real;
  if (!is_real && type != Type::f32 && type != Type::f64) return value.bits;
  const double real = is_real ? bits_as<double>(value.bits) : static_cast<double>(value.bits);
  if (size_bytes(type) == 8) return bits_as<int64_t>(real);
  if (size_bytes(type) != 4) fail(line, "a real number needs 4 or 8 bytes");
  return bits_as<uint32_t>(static_cast<float>(real));
}

}  // namespace

Declaration read_declaration(Cursor* cursor) {
  Declaration made;
  Variable& variable = made.variable;
  int num_components = 1;
  bool is_pointer = false;
  while (cursor->is_dotted()) {
    const Token& word = cursor->next();
    if (word.is(".align")) {
      const int align = cursor->integer();
      const bool is_power = align > 0 && (align & (align - 1)) == 0;
      if (!is_power || align > kMaxAlign) fail(word.line, "an alignment must be a power of two of at most 4096");
      if (!is_pointer) variable.align = align;  // after .ptr it is that of the bytes pointed to
    } else if (word.is(".ptr")) {
      is_pointer = true;
    } else if (word.is(".v2") || word.is(".v4")) {
      num_components = word.is(".v2") ? 2 : 4;
    } else if (word.is(".attribute")) {
      while (!cursor->accept(")")) cursor->next();
    } else if (!is_pointer || !(word.is(".global") || word.is(".const") || word.is(".shared") || word.is(".local"))) {
      made.type = type_named(std::string(word.text.substr(1)));
      if (size_bytes(made.type) == 0) fail(word.line, "'" + std::string(word.text) + "' is no type of a variable");
    }
  }
  if (made.type == Type::none) cursor->unexpected("the type of a variable");
  variable.name = cursor->word();
  variable.num_bytes = num_components * size_bytes(made.type);
  variable.align = std::max(variable.align, variable.num_bytes);
  read_extents(cursor, &made);
  return made;
}

void read_initial(Cursor* cursor, const std::unordered_set<std::string>& file_names, Declaration* declaration) {
  Variable& variable = declaration->variable;
  const int num_bytes = size_bytes(declaration->type);
  const bool is_list = cursor->accept("{");
  do {
    const int line = cursor->line();
    const int64_t begin = static_cast<int64_t>(variable.initial.size());
    if (declaration->is_open) variable.num_bytes += num_bytes;
    if (begin + num_bytes > variable.num_bytes) fail(line, "more values than elements");
    int64_t bits = 0;
    if (cursor->is_word()) {
      const bool is_generic = cursor->accept("generic");
      if (is_generic) cursor->expect("(");
      const std::string name = cursor->word();
      if (is_generic) cursor->expect(")");
      if (!file_names.count(name)) fail(line, "unknown name '" + name + "'");
      if (num_bytes != 8) fail(line, "an address needs 8 bytes");
      variable.pointers.push_back({begin, name});
      if (cursor->accept("+")) bits = read_immediate(cursor).bits;
    } else {
      bits = bits_in(declaration->type, read_immediate(cursor), line);
    }
    variable.initial.resize(begin + num_bytes);
    std::memcpy(variable.initial.data() + begin, &bits, std::min(num_bytes, 8));
  } while (is_list && cursor->accept(","));
  if (is_list) cursor->expect("}");
  variable.initial.resize(variable.num_bytes);
}

Operand read_immediate(Cursor* cursor) {
  const bool is_negative = cursor->accept("-");
  if (cursor->peek().kind != Token::Kind::number) cursor->unexpected("an operand");
  const Number number = number_of(cursor->next());
  Operand made;
  if (number.is_real) {
    made.kind = Operand::Kind::real;
    made.bits = bits_as<int64_t>(is_negative ? -number.real : number.real);
  } else {
    made.kind = Operand::Kind::integer;
    made.bits = static_cast<int64_t>(is_negative ? 0 - number.integer : number.integer);
  }
  return made;
}

}  // namespace lumos::ptxvm
