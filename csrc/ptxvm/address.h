// What loads, stores, atomics and copies have in common: address operands and modifiers.
#pragma once

#include <initializer_list>

#include "ptxvm/decode.h"
#include "ptxvm/memory.h"

namespace lumos::ptxvm {

// An address operand. Kept in Inst::op[slot], Inst::offset and kNarrowAddressFlag.
void decode_address(const Decoding& d, int operand, int slot);
inline void addresses_of(Warp& warp, const Inst& inst, int slot, uint32_t mask, uint64_t* addresses) {
  addresses_of(warp, inst.op[slot], inst.offset, inst.flags & kNarrowAddressFlag, mask, addresses);
}

// The space that the modifiers name; parameters of functions that have become part of the kernel are local.
Space decode_space(const Decoding& d, int address_operand);

// allow(), with all that tells caches what to expect.
void allow_with_hints(const Decoding& d, std::initializer_list<const char*> modifiers);

// kStrongFlag, and scope and order by the modifiers.
void decode_order(const Decoding& d);

}  // namespace lumos::ptxvm
