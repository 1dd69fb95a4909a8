// cp.async: copies from global to shared memory whose bytes arrive when they are waited for.
#include <algorithm>

#include "ptxvm/address.h"

namespace lumos::ptxvm {
namespace {

constexpr int kDestination = 0, kSource = 1, kSourceBytes = 2, kIgnore = 3;  // Inst::op
constexpr uint8_t kNarrowSourceFlag = 32;                                    // Inst::flags

// Checked reads of the first source_bytes[lane] bytes of each lane, which is less than all of them.
void read_partly(Warp& warp, const Inst& inst, uint32_t mask, const uint64_t* addresses, const uint32_t* source_bytes,
                 uint8_t (*data)[16]) {
  for_lanes(mask, [&](int lane) {
    for (uint32_t done = 0; done < source_bytes[lane];) {
      const int piece = 1 << (31 - __builtin_clz(source_bytes[lane] - done));
      uint64_t address[kLanes];
      std::fill(address, address + kLanes, addresses[lane] + done);
      LanePointers pointers;
      resolve_in(Space::global)(warp, inst, 1u << lane, kRead, address, piece, &pointers);
      std::memcpy(data[lane] + done, pointers.lanes[lane], piece);
      done += piece;
    }
  });
}

template <int kBytes>
void copy(Warp& warp, const Inst& inst, uint32_t mask) {
  uint64_t from[kLanes], to[kLanes];
  addresses_of(warp, inst.op[kSource], static_cast<int64_t>(inst.aux), inst.flags & kNarrowSourceFlag, mask, from);
  addresses_of(warp, inst, kDestination, mask, to);
  const uint32_t* const source_bytes = warp.row<uint32_t>(inst.op[kSourceBytes]);
  const uint32_t ignored = inst.op[kIgnore] ? warp.predicate(inst.op[kIgnore]) : 0;
  uint32_t whole = 0, partly = 0;
  for_lanes(mask & ~ignored, [&](int lane) {
    if (source_bytes[lane] > kBytes) {
      throw Fault("out of bounds", format("a copy of %d bytes from %u", kBytes, source_bytes[lane]), lane);
    }
    (source_bytes[lane] == kBytes ? whole : partly) |= 1u << lane;
  });
  uint8_t data[kLanes][16] = {};
  if (whole) {
    uint64_t addresses[kLanes];
    addresses_of(warp, inst.op[kSource], static_cast<int64_t>(inst.aux), inst.flags & kNarrowSourceFlag, whole,
                 addresses);
    LanePointers pointers;
    resolve_in(Space::global)(warp, inst, whole, kRead, addresses, kBytes, &pointers);
    for_lanes(whole, [&](int lane) {
      const uint8_t* const source =
          !pointers.base ? pointers.lanes[lane] : pointers.base + (pointers.same ? 0 : lane * kBytes);
      std::memcpy(data[lane], source, kBytes);
    });
  }
  read_partly(warp, inst, partly, from, source_bytes, data);
  uint64_t offsets[kLanes];
  shared_offsets(warp, inst, mask, kWrite, to, kBytes, offsets);
  memory_of(warp).shared.issue_copy(warp.index, inst, mask, offsets, kBytes, data);
}

void commit(Warp& warp, const Inst&, uint32_t mask) { memory_of(warp).shared.commit_copies(warp.index, mask); }

void wait_group(Warp& warp, const Inst& inst, uint32_t mask) {
  memory_of(warp).shared.wait_copies(warp.index, mask, static_cast<uint32_t>(inst.aux));
}

void wait_all(Warp& warp, const Inst&, uint32_t mask) { memory_of(warp).shared.wait_all_copies(warp.index, mask); }

void decode_copy(const Decoding& d) {
  allow_with_hints(d, {"async", "ca", "cg", "shared", "shared::cta", "global"});
  const auto& operands = d.source.operands;
  const auto is_a = [&](const Operand& operand, int bytes) {
    return operand.kind == Operand::Kind::reg && size_bytes(d.rows.type_of(operand.reg)) == bytes;
  };
  size_t count = operands.size();
  if (d.has("L2::cache_hint")) --count;
  if (count < 3 || count > 4 || d.has("ca") == d.has("cg") || !d.has("global")) d.unknown();
  const Operand& size = operands[2];
  const auto bytes = size.kind == Operand::Kind::integer ? size.bits : 0;
  if (bytes != 16 && (d.has("cg") || (bytes != 4 && bytes != 8))) d.wrong("it cannot copy that many bytes");
  decode_address(d, 0, kDestination);
  d.out.op[kSource] = d.row(1, Type::b64);
  d.out.aux = static_cast<uint64_t>(operands[1].bits);
  if (!d.is_wide(1)) d.out.flags |= kNarrowSourceFlag;
  const bool is_predicate = count == 4 && is_a(operands[3], 0);
  if (is_predicate) d.out.op[kIgnore] = d.row(3, Type::pred);
  d.out.op[kSourceBytes] = d.row(count == 4 && !is_predicate ? 3 : 2, Type::u32);
  d.out.run = bytes == 16 ? copy<16> : bytes == 8 ? copy<8> : copy<4>;
  d.out.cls = Class::async_copy;
}

void decode_async(const Decoding& d) {
  if (d.source.modifiers.empty() || d.source.modifiers[0] != "async") d.unknown();
  const bool commits = d.has("commit_group"), waits = d.has("wait_group"), waits_for_all = d.has("wait_all");
  if (!commits && !waits && !waits_for_all) return decode_copy(d);
  if (d.source.modifiers.size() != 2 || d.source.operands.size() != (waits ? 1 : 0)) d.unknown();
  d.out.run = commits ? commit : waits ? wait_group : wait_all;
  if (waits) d.out.aux = static_cast<uint64_t>(d.source.operands[0].bits);
  d.out.cls = Class::async_copy;
}

}  // namespace

const NamedDecoder kAsyncDecoders[] = {{"cp", decode_async}, {nullptr, nullptr}};

}  // namespace lumos::ptxvm
