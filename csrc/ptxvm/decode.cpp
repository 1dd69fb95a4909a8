#include "ptxvm/decode.h"

#include <algorithm>
#include <unordered_map>

#include "ptxvm/memory.h"

namespace lumos::ptxvm {
namespace {

int row_bytes(Type type) { return type == Type::pred ? 1 : size_bytes(type) == 8 ? 8 : 4; }

uint64_t immediate(const Operand& operand, Type type) {
  if (operand.kind == Operand::Kind::integer) {
    if (type == Type::pred) return operand.bits ? 1 : 0;
    const int bytes = size_bytes(type);
    return bytes == 8 ? operand.bits : operand.bits & (bytes == 1 ? 0xffull : bytes == 2 ? 0xffffull : 0xffffffffull);
  }
  const auto value = bits_as<double>(operand.bits);
  return size_bytes(type) == 8 ? static_cast<uint64_t>(operand.bits) : bits_as<uint32_t>(static_cast<float>(value));
}

const std::unordered_map<std::string, Decoder>& decoders() {
  static const auto* const all = [] {
    auto* map = new std::unordered_map<std::string, Decoder>;
    for (const NamedDecoder* table :
         {kIntegerDecoders, kBitDecoders, kFloatDecoders, kConvertDecoders, kMoveDecoders, kCompareDecoders,
          kWarpDecoders, kMatrixDecoders, kMemoryDecoders, kAtomicDecoders, kAsyncDecoders, kControlDecoders}) {
      for (; table->name; ++table) map->emplace(table->name, table->decode);
    }
    return map;
  }();
  return *all;
}

}  // namespace

uint32_t Decoding::row(const Operand& operand, Type type) const {
  switch (operand.kind) {
    case Operand::Kind::reg: return rows.of_register(operand.reg);
    case Operand::Kind::integer:
    case Operand::Kind::real: return rows.of_constant(immediate(operand, type), row_bytes(type));
    case Operand::Kind::sink: return rows.scratch(row_bytes(type));
    case Operand::Kind::special: {
      const uint32_t row = rows.of_special(operand.name);
      if (!row) wrong(format("special register %s is not implemented", operand.name.c_str()).c_str());
      return row;
    }
    case Operand::Kind::symbol:
    case Operand::Kind::address: {
      if (operand.reg >= 0) return rows.of_register(operand.reg);
      const uint64_t base = operand.name.empty() ? 0 : rows.address_of(operand.name);
      if (operand.kind == Operand::Kind::address) return rows.of_constant(base, 8);
      return rows.of_constant(base + operand.bits, row_bytes(type));
    }
    default: wrong("an operand of this form does not belong here");
  }
}

uint32_t Decoding::row(int i, Type type, int element) const {
  if (i >= static_cast<int>(source.operands.size())) wrong("an operand is missing");
  const Operand& operand = source.operands[i];
  if (element < 0) return row(operand, type);
  if (operand.elements.empty() && element == 0) return row(operand, type);
  if (element >= static_cast<int>(operand.elements.size())) wrong("an element of a vector is missing");
  return row(operand.elements[element], type);
}

bool Decoding::is_wide(int i, int element) const {
  const Operand& operand = source.operands.at(i);
  const Operand& one = element >= 0 && !operand.elements.empty() ? operand.elements.at(element) : operand;
  if (one.reg >= 0) return size_bytes(rows.type_of(one.reg)) == 8;
  return one.kind == Operand::Kind::address;  // a symbol or a number: a row of 64 bits
}

int Decoding::num_elements(int i) const {
  const Operand& operand = source.operands.at(i);
  return operand.kind == Operand::Kind::vector ? static_cast<int>(operand.elements.size()) : 1;
}

void Decoding::unknown() const {
  throw Error(format("PTX line %d: unknown opcode '%s'", source.location.ptx_line, source.opcode().c_str()));
}

void Decoding::wrong(const char* what) const {
  throw Error(format("PTX line %d: %s: %s", source.location.ptx_line, source.opcode().c_str(), what));
}

void Decoding::allow(std::initializer_list<const char*> modifiers) const {
  for (const std::string& modifier : source.modifiers) {
    const bool known = std::any_of(modifiers.begin(), modifiers.end(), [&](const char* m) { return modifier == m; });
    if (!known && type_named(modifier) == Type::none) unknown();
  }
}

void decode(const Decoding& d) {
  const auto found = decoders().find(d.source.name);
  if (found == decoders().end()) d.unknown();
  try {
    found->second(d);
  } catch (const std::out_of_range&) {
    d.wrong("an operand is missing");
  }
}

}  // namespace lumos::ptxvm
