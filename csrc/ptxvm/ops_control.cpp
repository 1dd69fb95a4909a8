// Branches, ends, barriers, and the two functions that kernels call without bringing them along.
#include "ptxvm/control.h"
#include "ptxvm/decode.h"
#include "ptxvm/memory.h"

namespace lumos::ptxvm {
namespace {

void nothing(Warp&, const Inst&, uint32_t) {}

void decode_bra(const Decoding& d) {
  d.allow({"uni"});
  d.out.flow = Flow::branch;
  d.out.cls = Class::control;
  d.out.target = d.rows.label(d.source.operands.at(0).name);
}

void decode_brx(const Decoding& d) {
  d.allow({"idx", "uni"});
  d.out.flow = Flow::branch_table;
  d.out.cls = Class::control;
  d.out.op[0] = d.row(0, Type::u32);
}

void decode_exit(const Decoding& d) {
  d.allow({"uni"});
  d.out.flow = Flow::exit;
  d.out.cls = Class::control;
}

void trap(Warp&, const Inst&, uint32_t) { throw Fault("trap", "the kernel stopped itself"); }
void decode_trap(const Decoding& d) {
  d.out.run = trap;
  d.out.cls = Class::control;
}

void decode_nothing(const Decoding& d) {
  d.out.run = nothing;
  d.out.cls = Class::control;
}

// bar{.cta}.sync|arrive a{, b}; bar.red.popc|and|or d, a{, b}, {!}c; bar.warp.sync mask. barrier is the same, .aligned
// or not.
void decode_bar(const Decoding& d) {
  d.allow({"cta", "sync", "arrive", "red", "popc", "and", "or", "warp", "aligned"});
  d.out.cls = Class::barrier;
  if (d.has("warp")) {
    d.out.flow = Flow::warp_sync;
    d.out.run = nothing;
    d.out.member_mask = d.row(0, Type::b32);
    return;
  }
  d.out.flow = Flow::barrier;
  auto kind = d.has("arrive") ? BarrierKind::arrive : BarrierKind::sync;
  const int num_operands = static_cast<int>(d.source.operands.size());
  int next = 0, last = num_operands;
  if (d.has("red")) {
    kind = d.has("popc") ? BarrierKind::reduce_popc : d.has("and") ? BarrierKind::reduce_and : BarrierKind::reduce_or;
    d.out.op[0] = d.row(next++, kind == BarrierKind::reduce_popc ? Type::u32 : Type::pred);
    const Operand& value = d.source.operands.at(--last);
    d.out.op[kBarrierValue] = d.row(value, Type::pred);
    d.out.flags = value.negated;
  }
  d.out.aux = static_cast<uint64_t>(kind);
  d.out.op[kBarrierId] = d.row(next++, Type::u32);
  if (next < last) d.out.op[kBarrierCount] = d.row(next, Type::u32);
}

void assertion_failed(Warp&, const Inst&, uint32_t) { throw Fault("trap", "an assertion failed"); }

// Calls that inline_calls left: functions of the device's own library.
void decode_call(const Decoding& d) {
  std::string name;
  for (const Operand& operand : d.source.operands) {
    if (operand.kind == Operand::Kind::symbol) name = operand.name;
  }
  d.out.flow = Flow::call;
  d.out.cls = Class::control;
  if (name == "__assertfail") {
    d.out.run = assertion_failed;
  } else if (name == "vprintf") {
    d.out.run = nothing;  // nothing is printed, and nobody reads how much was
  } else {
    d.wrong(format("function '%s' has no body", name.c_str()).c_str());
  }
}

}  // namespace

const NamedDecoder kControlDecoders[] = {
    {"bra", decode_bra},   {"brx", decode_brx},           {"exit", decode_exit},     {"ret", decode_exit},
    {"trap", decode_trap}, {"nanosleep", decode_nothing}, {"brkpt", decode_nothing}, {"pmevent", decode_nothing},
    {"bar", decode_bar},   {"barrier", decode_bar},       {"call", decode_call},     {nullptr, nullptr}};

}  // namespace lumos::ptxvm
