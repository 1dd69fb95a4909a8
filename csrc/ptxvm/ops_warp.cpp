// What lanes of a warp tell each other: shfl, vote, match, redux, elect, activemask.
//
// The scheduler runs a handler once for all lanes of the member mask that have not ended.
#include <algorithm>

#include "ptxvm/lanes.h"

namespace lumos::ptxvm {
namespace {

// Inst::op: the result, the predicate beside it (a row that nobody reads if there is none), the sources.
constexpr int kResult = 0, kPredicate = 1, kSource = 2;
constexpr uint8_t kNegated = 1;  // Inst::flags: the predicate that is voted on

void set_predicate(Warp& warp, uint32_t row, uint32_t bits, uint32_t mask) {
  uint32_t& to = warp.predicate(row);
  to = (to & ~mask) | (bits & mask);
}

template <class F>
void set_lanes(Warp& warp, const Inst& inst, uint32_t mask, F&& value) {
  Result<uint32_t> result;
  for (int lane = 0; lane < kLanes; ++lane) result.set(lane, value(lane));
  result.store(warp, inst.op[kResult], mask);
}

// The lane a shuffle reads, before it is compared with the bound of its segment.
struct Up {
  int operator()(int lane, int b, int, int) const { return lane - b; }
};
struct Down {
  int operator()(int lane, int b, int, int) const { return lane + b; }
};
struct Butterfly {
  int operator()(int lane, int b, int, int) const { return lane ^ b; }
};
struct Index {
  int operator()(int, int b, int first, int segment) const { return first | (b & ~segment); }
};

template <class Mode>
void shfl(Warp& warp, const Inst& inst, uint32_t mask) {
  const auto* values = warp.row<uint32_t>(inst.op[kSource]);
  const auto* b = warp.row<uint32_t>(inst.op[kSource + 1]);
  const auto* c = warp.row<uint32_t>(inst.op[kSource + 2]);
  int from[kLanes];
  uint32_t in_range[kLanes], absent[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int clamp = c[lane] & 31, segment = c[lane] >> 8 & 31;
    const int first = lane & segment, bound = first | (clamp & ~segment);
    const int j = Mode()(lane, b[lane] & 31, first, segment);
    const bool in = std::is_same_v<Mode, Up> ? j >= bound : j <= bound;
    from[lane] = in ? j : lane;
    in_range[lane] = in;
    absent[lane] = ~(mask >> from[lane]) & 1;
  }
  uint32_t predicate = 0, undefined = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    predicate |= in_range[lane] << lane;
    undefined |= absent[lane] << lane;
  }
  if (undefined & mask) {
    const int lane = __builtin_ctz(undefined & mask);
    throw Fault("undefined shuffle", format("it reads lane %d, which is not among lanes %08x", from[lane], mask), lane);
  }
  set_lanes(warp, inst, mask, [&](int lane) { return values[from[lane]]; });
  set_predicate(warp, inst.op[kPredicate], predicate, mask);
}

uint32_t votes(Warp& warp, const Inst& inst, uint32_t mask) {
  const uint32_t bits = warp.predicate(inst.op[kSource]);
  return (inst.flags & kNegated ? ~bits : bits) & mask;
}

struct All {
  bool operator()(uint32_t votes, uint32_t mask) const { return votes == mask; }
};
struct Any {
  bool operator()(uint32_t votes, uint32_t) const { return votes != 0; }
};
struct Uniform {
  bool operator()(uint32_t votes, uint32_t mask) const { return votes == mask || votes == 0; }
};

template <class Condition>
void vote(Warp& warp, const Inst& inst, uint32_t mask) {
  set_predicate(warp, inst.op[kResult], Condition()(votes(warp, inst, mask), mask) ? kAllLanes : 0, mask);
}

void ballot(Warp& warp, const Inst& inst, uint32_t mask) {
  const uint32_t bits = votes(warp, inst, mask);
  set_lanes(warp, inst, mask, [&](int) { return bits; });
}

template <class T>
uint32_t lanes_with(const T* values, T value, uint32_t mask) {
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= (values[lane] == value ? 1u : 0u) << lane;
  return bits & mask;
}

template <class T>
void match_any(Warp& warp, const Inst& inst, uint32_t mask) {
  const T* values = warp.row<T>(inst.op[kSource]);
  uint32_t same[kLanes];
  for (uint32_t rest = mask; rest;) {
    const uint32_t group = lanes_with(values, values[__builtin_ctz(rest)], mask);
    for_lanes(group, [&](int lane) { same[lane] = group; });
    rest &= ~group;
  }
  auto* result = warp.row<uint32_t>(inst.op[kResult]);
  for_lanes(mask, [&](int lane) { result[lane] = same[lane]; });
}

template <class T>
void match_all(Warp& warp, const Inst& inst, uint32_t mask) {
  const T* values = warp.row<T>(inst.op[kSource]);
  const bool all = lanes_with(values, values[__builtin_ctz(mask)], mask) == mask;
  set_lanes(warp, inst, mask, [&](int) { return all ? mask : 0; });
  set_predicate(warp, inst.op[kPredicate], all ? kAllLanes : 0, mask);
}

// clang-format off
struct Add { template <class T> T operator()(T a, T b) const { return a + b; } };
struct Min { template <class T> T operator()(T a, T b) const { return std::min(a, b); } };
struct Max { template <class T> T operator()(T a, T b) const { return std::max(a, b); } };
struct And { template <class T> T operator()(T a, T b) const { return a & b; } };
struct Or { template <class T> T operator()(T a, T b) const { return a | b; } };
struct Xor { template <class T> T operator()(T a, T b) const { return a ^ b; } };
// clang-format on

template <class F, class T>
void redux(Warp& warp, const Inst& inst, uint32_t mask) {
  const T* values = warp.row<T>(inst.op[kSource]);
  T result = values[__builtin_ctz(mask)];
  for_lanes(mask & (mask - 1), [&](int lane) { result = F()(result, values[lane]); });
  set_lanes(warp, inst, mask, [&](int) { return static_cast<uint32_t>(result); });
}

void elect(Warp& warp, const Inst& inst, uint32_t mask) {
  const int leader = __builtin_ctz(mask);
  set_lanes(warp, inst, mask, [&](int) { return leader; });
  set_predicate(warp, inst.op[kPredicate], 1u << leader, mask);
}

void activemask(Warp& warp, const Inst& inst, uint32_t mask) {
  set_lanes(warp, inst, mask, [&](int) { return mask; });
}

struct Form {
  const char* opcode;
  Handler run;
  Type result;
  bool has_predicate;         // d|p
  std::vector<Type> sources;  // and the member mask behind them, in those with .sync
};

const std::vector<Form>& forms() {
  constexpr Type kPred = Type::pred, kB32 = Type::b32, kB64 = Type::b64;
  static const std::vector<Form> all = {
      {"shfl.sync.up.b32", shfl<Up>, kB32, true, {kB32, kB32, kB32}},
      {"shfl.sync.down.b32", shfl<Down>, kB32, true, {kB32, kB32, kB32}},
      {"shfl.sync.bfly.b32", shfl<Butterfly>, kB32, true, {kB32, kB32, kB32}},
      {"shfl.sync.idx.b32", shfl<Index>, kB32, true, {kB32, kB32, kB32}},
      {"vote.sync.all.pred", vote<All>, kPred, false, {kPred}},
      {"vote.sync.any.pred", vote<Any>, kPred, false, {kPred}},
      {"vote.sync.uni.pred", vote<Uniform>, kPred, false, {kPred}},
      {"vote.sync.ballot.b32", ballot, kB32, false, {kPred}},
      {"match.any.sync.b32", match_any<uint32_t>, kB32, false, {kB32}},
      {"match.any.sync.b64", match_any<uint64_t>, kB32, false, {kB64}},
      {"match.all.sync.b32", match_all<uint32_t>, kB32, true, {kB32}},
      {"match.all.sync.b64", match_all<uint64_t>, kB32, true, {kB64}},
      {"redux.sync.add.u32", redux<Add, uint32_t>, kB32, false, {kB32}},
      {"redux.sync.add.s32", redux<Add, uint32_t>, kB32, false, {kB32}},
      {"redux.sync.min.u32", redux<Min, uint32_t>, kB32, false, {kB32}},
      {"redux.sync.min.s32", redux<Min, int32_t>, kB32, false, {kB32}},
      {"redux.sync.max.u32", redux<Max, uint32_t>, kB32, false, {kB32}},
      {"redux.sync.max.s32", redux<Max, int32_t>, kB32, false, {kB32}},
      {"redux.sync.and.b32", redux<And, uint32_t>, kB32, false, {kB32}},
      {"redux.sync.or.b32", redux<Or, uint32_t>, kB32, false, {kB32}},
      {"redux.sync.xor.b32", redux<Xor, uint32_t>, kB32, false, {kB32}},
      {"elect.sync", elect, kB32, true, {}},
      {"activemask.b32", activemask, kB32, false, {}},
  };
  return all;
}

uint32_t checked_row(const Decoding& d, const Operand& operand, Type type) {
  if (operand.kind == Operand::Kind::reg && size_bytes(d.rows.type_of(operand.reg)) != size_bytes(type)) {
    d.wrong("the size of a register does not fit");
  }
  return d.row(operand, type);
}

void decode_warp(const Decoding& d) {
  const std::string opcode = d.source.opcode();
  const auto form = std::find_if(forms().begin(), forms().end(), [&](const Form& f) { return opcode == f.opcode; });
  if (form == forms().end()) d.unknown();
  const auto& operands = d.source.operands;
  const bool synchronises = d.has("sync");
  if (operands.size() != 1 + form->sources.size() + synchronises) d.wrong("wrong number of operands");

  Inst& out = d.out;
  out.run = form->run;
  out.cls = Class::warp;
  const bool pair = operands[0].kind == Operand::Kind::pair;
  if (pair && !form->has_predicate) d.wrong("it has one destination");
  out.op[kResult] = checked_row(d, pair ? operands[0].elements.at(0) : operands[0], form->result);
  out.op[kPredicate] = pair ? checked_row(d, operands[0].elements.at(1), Type::pred) : d.rows.scratch(1);
  for (size_t i = 0; i < form->sources.size(); ++i) {
    out.op[kSource + i] = checked_row(d, operands[1 + i], form->sources[i]);
    if (operands[1 + i].negated) out.flags |= kNegated;
  }
  if (synchronises) {
    out.flow = Flow::warp_sync;
    out.member_mask = checked_row(d, operands.back(), Type::b32);
  }
}

}  // namespace

const NamedDecoder kWarpDecoders[] = {{"shfl", decode_warp},  {"vote", decode_warp},       {"match", decode_warp},
                                      {"redux", decode_warp}, {"activemask", decode_warp}, {"elect", decode_warp},
                                      {nullptr, nullptr}};

}  // namespace lumos::ptxvm
