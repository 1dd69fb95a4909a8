#include "ptxvm/address.h"

#include <algorithm>

namespace lumos::ptxvm {

void decode_address(const Decoding& d, int operand, int slot) {
  const Operand& address = d.source.operands.at(operand);
  if (address.kind != Operand::Kind::address) d.wrong("an address is missing");
  d.out.op[slot] = d.row(operand, Type::b64);
  d.out.offset = address.bits;
  if (!d.is_wide(operand)) d.out.flags |= kNarrowAddressFlag;
}

Space decode_space(const Decoding& d, int address_operand) {
  const auto any = [&](std::initializer_list<const char*> names) {
    return std::any_of(names.begin(), names.end(), [&](const char* name) { return d.has(name); });
  };
  if (any({"global"})) return Space::global;
  if (any({"shared", "shared::cta"})) return Space::shared;
  if (any({"local"})) return Space::local;
  if (any({"const"})) return Space::constant;
  if (!any({"param", "param::entry", "param::func"})) return Space::generic;
  const std::string& name = d.source.operands.at(address_operand).name;
  return name.empty() ? Space::param : static_cast<Space>(d.rows.symbol_space(name));
}

void allow_with_hints(const Decoding& d, std::initializer_list<const char*> modifiers) {
  static const char* const kHints[] = {"L1::evict_normal", "L1::evict_unchanged",
                                       "L1::evict_first",  "L1::evict_last",
                                       "L1::no_allocate",  "L2::evict_normal",
                                       "L2::evict_first",  "L2::evict_last",
                                       "L2::cache_hint",   "L2::64B",
                                       "L2::128B",         "L2::256B"};
  for (const std::string& modifier : d.source.modifiers) {
    const auto is_it = [&](const char* known) { return modifier == known; };
    if (type_named(modifier) == Type::none && std::none_of(modifiers.begin(), modifiers.end(), is_it) &&
        std::none_of(std::begin(kHints), std::end(kHints), is_it)) {
      d.unknown();
    }
  }
}

void decode_order(const Decoding& d) {
  d.out.flags |= kStrongFlag;
  if (d.has("cta")) d.out.flags |= kBlockScopeFlag;
  if (d.has("acquire") || d.has("acq_rel")) d.out.flags |= kAcquireFlag;
  if (d.has("release") || d.has("acq_rel")) d.out.flags |= kReleaseFlag;
}

}  // namespace lumos::ptxvm
