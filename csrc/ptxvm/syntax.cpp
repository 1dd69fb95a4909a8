#include "ptxvm/syntax.h"

#include <algorithm>

namespace lumos::ptxvm {
namespace {

struct NamedType {
  const char* name;
  Type type;
  int num_bytes;
};

constexpr NamedType kTypes[] = {
    {"pred", Type::pred, 0},     {"b8", Type::b8, 1},         {"b16", Type::b16, 2},     {"b32", Type::b32, 4},
    {"b64", Type::b64, 8},       {"u8", Type::u8, 1},         {"u16", Type::u16, 2},     {"u32", Type::u32, 4},
    {"u64", Type::u64, 8},       {"s8", Type::s8, 1},         {"s16", Type::s16, 2},     {"s32", Type::s32, 4},
    {"s64", Type::s64, 8},       {"f16", Type::f16, 2},       {"f16x2", Type::f16x2, 4}, {"bf16", Type::bf16, 2},
    {"bf16x2", Type::bf16x2, 4}, {"tf32", Type::tf32, 4},     {"f32", Type::f32, 4},     {"f64", Type::f64, 8},
    {"e4m3x2", Type::e4m3x2, 2}, {"e5m2x2", Type::e5m2x2, 2}, {"b128", Type::b128, 16},
};

}  // namespace

Type type_named(const std::string& word) {
  const auto found =
      std::find_if(std::begin(kTypes), std::end(kTypes), [&](const NamedType& t) { return word == t.name; });
  return found == std::end(kTypes) ? Type::none : found->type;
}

int size_bytes(Type type) {
  const auto found =
      std::find_if(std::begin(kTypes), std::end(kTypes), [&](const NamedType& t) { return type == t.type; });
  return found == std::end(kTypes) ? 0 : found->num_bytes;
}

std::string Instruction::opcode() const {
  std::string text = name;
  for (const std::string& modifier : modifiers) text += "." + modifier;
  return text;
}

bool Instruction::has(const char* modifier) const {
  return std::find(modifiers.begin(), modifiers.end(), modifier) != modifiers.end();
}

Type Instruction::type(int from_last) const {
  for (auto modifier = modifiers.rbegin(); modifier != modifiers.rend(); ++modifier) {
    const Type type = type_named(*modifier);
    if (type != Type::none && from_last-- == 0) return type;
  }
  return Type::none;
}

}  // namespace lumos::ptxvm
