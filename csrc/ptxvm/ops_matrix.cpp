// Matrices between shared memory and registers, and across the lanes: ldmatrix, stmatrix, movmatrix. mma: see mma.cpp.
#include "ptxvm/matrix.h"
#include "ptxvm/memory.h"

namespace lumos::ptxvm {
namespace {

constexpr uint8_t kWideAddress = 1, kGenericAddress = 2;  // Inst::flags

using Matrix = uint16_t[64];  // 8 x 8, as the row of a register holds it

// Pointers to the rows of the matrices in shared memory: lane i tells the address of row i % 8 of matrix i / 8.
void row_pointers(Warp& warp, const Inst& inst, uint32_t address_row, Access access, int count, uint8_t** pointers) {
  uint64_t addresses[kLanes];
  for (int i = 0; i < count; ++i) {
    if (inst.flags & kWideAddress) {
      addresses[i] = warp.row<uint64_t>(address_row)[i] + inst.offset;
    } else {
      addresses[i] = static_cast<uint32_t>(warp.row<uint32_t>(address_row)[i] + inst.offset);
    }
    if (!(inst.flags & kGenericAddress)) continue;
    if ((addresses[i] & kWindowMask) != kSharedWindow) {
      throw Fault("out of bounds", format("address 0x%llx is not in shared memory", (unsigned long long)addresses[i]),
                  i);
    }
    addresses[i] -= kSharedWindow;
  }
  matrix_rows(warp, inst, access, addresses, count, pointers);
}

template <int kNum, bool kTranspose>
void ldmatrix(Warp& warp, const Inst& inst, uint32_t mask) {
  need_whole_warp(mask);
  uint8_t* pointers[8 * kNum];
  row_pointers(warp, inst, inst.op[kNum], Access::read, 8 * kNum, pointers);
  alignas(64) Matrix loaded[kNum];
  for (int i = 0; i < 8 * kNum; ++i) std::memcpy(loaded[0] + 8 * i, pointers[i], 16);
  for (int i = 0; i < kNum; ++i) {
    auto& to = *warp.row<Matrix>(inst.op[i]);
    if constexpr (kTranspose) {
      transpose(loaded[i], to);
    } else {
      std::memcpy(to, loaded[i], sizeof to);
    }
  }
}

template <int kNum, bool kTranspose>
void stmatrix(Warp& warp, const Inst& inst, uint32_t mask) {
  need_whole_warp(mask);
  uint8_t* pointers[8 * kNum];
  row_pointers(warp, inst, inst.op[0], Access::write, 8 * kNum, pointers);
  for (int i = 0; i < kNum; ++i) {
    alignas(64) Matrix stored;
    const auto& from = *warp.row<Matrix>(inst.op[1 + i]);
    if constexpr (kTranspose) {
      transpose(from, stored);
    } else {
      std::memcpy(stored, from, sizeof from);
    }
    for (int r = 0; r < 8; ++r) std::memcpy(pointers[8 * i + r], stored + 8 * r, 16);
  }
}

void movmatrix(Warp& warp, const Inst& inst, uint32_t mask) {
  need_whole_warp(mask);
  alignas(64) Matrix transposed;
  transpose(*warp.row<Matrix>(inst.op[1]), transposed);
  std::memcpy(warp.row<Matrix>(inst.op[0]), transposed, sizeof transposed);
}

struct Move {
  const char* count;
  int num;
  bool transposes;
  Handler load, store;
};
template <int kNum, bool kTranspose>
constexpr Move move_of(const char* count) {
  return {count, kNum, kTranspose, ldmatrix<kNum, kTranspose>, stmatrix<kNum, kTranspose>};
}
constexpr Move kMoves[] = {move_of<1, false>("x1"), move_of<1, true>("x1"),  move_of<2, false>("x2"),
                           move_of<2, true>("x2"),  move_of<4, false>("x4"), move_of<4, true>("x4")};

// The modifiers come in any order: some write the count before the shape.
void decode_move(const Decoding& d, bool loads) {
  d.allow({"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"});
  if (!d.has("sync") || !d.has("m8n8") || d.type() != Type::b16) d.unknown();
  if (d.source.operands.size() != 2) d.wrong("it has two operands");
  for (const Move& move : kMoves) {
    if (!d.has(move.count) || d.has("trans") != move.transposes) continue;
    const int address = loads ? 1 : 0;
    d.out.run = loads ? move.load : move.store;
    d.out.cls = loads ? Class::matrix_load : Class::shared_store;
    d.out.flow = Flow::warp_sync;
    d.out.offset = d.source.operands[address].bits;
    const bool generic = !d.has("shared") && !d.has("shared::cta");
    d.out.flags = (d.is_wide(address) ? kWideAddress : 0) | (generic ? kGenericAddress : 0);
    d.out.op[loads ? move.num : 0] = d.row(address, Type::b64);
    decode_registers(d, 1 - address, move.num, false, d.out.op + (loads ? 0 : 1));
    return;
  }
  d.unknown();
}

void decode_movmatrix(const Decoding& d) {
  if (d.source.opcode() != "movmatrix.sync.aligned.m8n8.trans.b16") d.unknown();
  d.out.run = movmatrix;
  d.out.cls = Class::warp;
  d.out.flow = Flow::warp_sync;
  for (int i : {0, 1}) decode_registers(d, i, 1, false, d.out.op + i);
}

}  // namespace

void decode_registers(const Decoding& d, int operand, int count, bool wide, uint32_t* rows) {
  if (d.num_elements(operand) != count) d.wrong("wrong number of registers");
  for (int i = 0; i < count; ++i) {
    if (d.is_wide(operand, i) != wide) d.wrong("the size of a register does not fit");
    rows[i] = d.row(operand, wide ? Type::b64 : Type::b32, i);
  }
}

const NamedDecoder kMatrixDecoders[] = {{"mma", decode_mma},
                                        {"ldmatrix", [](const Decoding& d) { decode_move(d, true); }},
                                        {"stmatrix", [](const Decoding& d) { decode_move(d, false); }},
                                        {"movmatrix", decode_movmatrix},
                                        {nullptr, nullptr}};

}  // namespace lumos::ptxvm
