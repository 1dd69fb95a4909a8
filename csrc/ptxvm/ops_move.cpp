// Moves: mov with its packing and unpacking, clocks, cvta, selp, slct.
#include <limits>

#include "ptxvm/lanes.h"
#include "ptxvm/memory.h"

namespace lumos::ptxvm {
namespace {

using Values = Types<Type::b16, Type::b32, Type::b64, Type::u16, Type::s16, Type::u32, Type::s32, Type::u64, Type::s64,
                     Type::f32, Type::f64>;

struct Copy {
  template <class T>
  T operator()(T a) const {
    return a;
  }
};

struct Select {
  template <class T>
  T operator()(T a, T b, bool first) const {
    return first ? a : b;
  }
};

template <bool kFlush>
struct SelectBySign {
  template <class T, class C>
  T operator()(T a, T b, C c) const {
    // What is flushed to zero is not negative.
    return (kFlush ? c > -std::numeric_limits<float>::min() : c >= 0) ? a : b;
  }
};

struct AddAux {
  explicit AddAux(const Inst& inst) : addend(inst.aux) {}
  uint64_t operator()(uint64_t a) const { return a + addend; }
  uint64_t addend;
};

struct IsInWindow {
  explicit IsInWindow(const Inst& inst) : window(inst.aux) {}
  bool operator()(uint64_t address) const { return (address & kWindowMask) == window; }
  uint64_t window;
};

void copy_predicate(Warp& warp, const Inst& inst, uint32_t mask) {
  store_predicate(warp, inst.op[0], warp.predicate(inst.op[1]), mask);
}

// The time is the number of instructions of the warp, and reading it takes time: it is never the same twice.
template <class T, int kShift>
void read_clock(Warp& warp, const Inst& inst, uint32_t mask) {
  const uint64_t now = ++warp.num_executed;
  Result<T> result;
  for (int lane = 0; lane < kLanes; ++lane) result.set(lane, static_cast<T>(now >> kShift));
  result.store(warp, inst.op[0], mask);
}

template <class Whole, int kCount>
using Part = std::conditional_t<sizeof(Whole) == kCount, uint8_t,
                                std::conditional_t<sizeof(Whole) == 2 * kCount, uint16_t, uint32_t>>;

// op[0] = {op[1], op[2], ...}, the first of them in the lowest bits.
template <class Whole, int kCount>
void pack(Warp& warp, const Inst& inst, uint32_t mask) {
  using Element = Part<Whole, kCount>;
  Cell<Whole> cells[kLanes] = {};
  for (int i = 0; i < kCount; ++i) {
    const Source<Element> part(warp, inst.op[1 + i]);
    for (int lane = 0; lane < kLanes; ++lane) cells[lane] |= Cell<Whole>{part[lane]} << (8 * sizeof(Element) * i);
  }
  Result<Whole> result;
  for (int lane = 0; lane < kLanes; ++lane) result.set(lane, static_cast<Whole>(cells[lane]));
  result.store(warp, inst.op[0], mask);
}

// {op[0], op[1], ...} = op[kCount].
template <class Whole, int kCount>
void unpack(Warp& warp, const Inst& inst, uint32_t mask) {
  using Element = Part<Whole, kCount>;
  const Source<Whole> whole(warp, inst.op[kCount]);
  Result<Element> parts[kCount];
  for (int i = 0; i < kCount; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      parts[i].set(lane, static_cast<Element>(whole[lane] >> (8 * sizeof(Element) * i)));
    }
  }
  for (int i = 0; i < kCount; ++i) parts[i].store(warp, inst.op[i], mask);
}

// mov.b32 %r, {%h1, %h2} and mov.b32 {%h1, %h2}, %r.
void decode_packing(const Decoding& d, bool unpacks) {
  const Operand& vector = d.source.operands[unpacks ? 0 : 1];
  const Operand& whole = d.source.operands[unpacks ? 1 : 0];
  const auto count = static_cast<int>(vector.elements.size());
  const Type type = d.type();
  Type part = Type::none;
  const auto choose = [&](auto example, auto num_parts, Type type_of_part) {
    constexpr int kCount = decltype(num_parts)::value;
    using Whole = decltype(example);
    if (size_bytes(type) != sizeof(Whole) || count != kCount) return;
    part = type_of_part;
    d.out.run = unpacks ? unpack<Whole, kCount> : pack<Whole, kCount>;
  };
  constexpr std::integral_constant<int, 2> kTwo;
  constexpr std::integral_constant<int, 4> kFour;
  choose(uint16_t{}, kTwo, Type::b8);
  choose(uint32_t{}, kTwo, Type::b16);
  choose(uint32_t{}, kFour, Type::b8);
  choose(uint64_t{}, kTwo, Type::b32);
  choose(uint64_t{}, kFour, Type::b16);
  if (part == Type::none) d.wrong("no vector of this length has this size");
  uint32_t* op = d.out.op;
  if (!unpacks) *op++ = operand_row(d, whole, type);
  for (const Operand& element : vector.elements) *op++ = operand_row(d, element, part);
  if (unpacks) *op++ = operand_row(d, whole, type);
}

bool decode_clock(const Decoding& d) {
  struct Clock {
    const char* name;
    Type type;
    Handler run;
  };
  static const Clock kClocks[] = {{"%clock", Type::u32, read_clock<uint32_t, 0>},
                                  {"%clock_hi", Type::u32, read_clock<uint32_t, 32>},
                                  {"%clock64", Type::u64, read_clock<uint64_t, 0>},
                                  {"%globaltimer", Type::u64, read_clock<uint64_t, 0>},
                                  {"%globaltimer_lo", Type::u32, read_clock<uint32_t, 0>},
                                  {"%globaltimer_hi", Type::u32, read_clock<uint32_t, 32>}};
  const Operand& source = d.source.operands[1];
  for (const Clock& clock : kClocks) {
    if (source.kind != Operand::Kind::special || source.name != clock.name) continue;
    if (size_bytes(d.type()) != size_bytes(clock.type)) d.wrong("the size of a register does not fit");
    d.out.op[0] = operand_row(d, d.source.operands[0], clock.type);
    d.out.run = clock.run;
    return true;
  }
  return false;
}

void decode_mov(const Decoding& d) {
  d.out.cls = Class::move;
  d.allow({});
  const std::vector<Operand>& operands = d.source.operands;
  if (d.source.modifiers.size() != 1) d.unknown();
  if (operands.size() != 2) d.wrong("wrong number of operands");
  if (operands[0].kind == Operand::Kind::vector) return decode_packing(d, true);
  if (operands[1].kind == Operand::Kind::vector) return decode_packing(d, false);
  if (decode_clock(d)) return;
  if (d.type() != Type::pred) return decode_map<Copy, kSame, kSame>(d, Values());
  decode_operands(d, {Type::pred, Type::pred});
  d.out.run = copy_predicate;
}

// Where the generic addresses of a space begin; global memory, constants and parameters lie at their own addresses.
uint64_t window_of(const Decoding& d) {
  if (d.has("shared") || d.has("shared::cta")) return kSharedWindow;
  if (d.has("local")) return kLocalWindow;
  if (d.has("global") || d.has("const") || d.has("param")) return 0;
  d.unknown();
}

void decode_cvta(const Decoding& d) {
  d.out.cls = Class::move;
  d.allow({"to", "global", "const", "param", "shared", "shared::cta", "local"});
  if (d.source.modifiers.size() != (d.has("to") ? 3 : 2)) d.unknown();
  d.out.aux = d.has("to") ? -window_of(d) : window_of(d);
  decode_map<AddAux, kSame, kSame>(d, Types<Type::u64>());
}

void decode_isspacep(const Decoding& d) {
  d.out.cls = Class::compare;
  // Nothing tells addresses of constants and parameters from those of global memory.
  d.allow({"global", "shared", "shared::cta", "local"});
  if (d.source.modifiers.size() != 1) d.unknown();
  d.out.aux = window_of(d);
  d.out.run = map<IsInWindow, bool, uint64_t>;
  decode_operands(d, {Type::pred, Type::u64});
}

void decode_selp(const Decoding& d) {
  d.out.cls = Class::move;
  d.allow({});
  decode_map<Select, kSame, kSame, kSame, Type::pred>(d, Values());
}

template <class F, class C>
Handler select_of_size(int num_bytes) {
  switch (num_bytes) {
    case 2: return map<F, uint16_t, uint16_t, uint16_t, C>;
    case 4: return map<F, uint32_t, uint32_t, uint32_t, C>;
    case 8: return map<F, uint64_t, uint64_t, uint64_t, C>;
    default: return nullptr;
  }
}

void decode_slct(const Decoding& d) {
  d.out.cls = Class::move;
  d.allow({"ftz"});
  const Type type = d.type(1), control = d.type(0);
  const bool flush = d.has("ftz");
  if (control != Type::f32 && (control != Type::s32 || flush)) d.unknown();
  if (d.type(2) != Type::none) d.unknown();
  const int bytes = size_bytes(type);
  d.out.run = control == Type::s32 ? select_of_size<SelectBySign<false>, int32_t>(bytes)
              : flush              ? select_of_size<SelectBySign<true>, float>(bytes)
                                   : select_of_size<SelectBySign<false>, float>(bytes);
  if (!d.out.run) d.unknown();
  decode_operands(d, {type, type, type, control});
}

}  // namespace

const NamedDecoder kMoveDecoders[] = {{"mov", decode_mov},   {"cvta", decode_cvta}, {"isspacep", decode_isspacep},
                                      {"selp", decode_selp}, {"slct", decode_slct}, {nullptr, nullptr}};

}  // namespace lumos::ptxvm
