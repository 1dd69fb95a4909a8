// setp and set. Five comparisons are enough: the others are these of exchanged operands, or their opposites.
#include <cmath>
#include <limits>

#include "ptxvm/half.h"
#include "ptxvm/lanes.h"

namespace lumos::ptxvm {
namespace {

struct Equal {
  template <class T>
  bool operator()(T a, T b) const {
    return a == b;
  }
};

struct Different {  // and no NaN
  template <class T>
  bool operator()(T a, T b) const {
    return (a < b) | (a > b);
  }
};

struct Less {
  template <class T>
  bool operator()(T a, T b) const {
    return a < b;
  }
};

struct LessOrEqual {
  template <class T>
  bool operator()(T a, T b) const {
    return a <= b;
  }
};

struct Ordered {
  template <class T>
  bool operator()(T a, T b) const {
    return (a == a) & (b == b);
  }
};

// What is compared: integers and floats as they are, narrower formats as float; subnormals as zero where they are
// flushed.
template <bool kFlush, class T>
auto compared(T x) {
  return x;
}
template <>
inline auto compared<true>(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? 0.0f : x;
}
template <bool kFlush, class F>
float compared(Narrow<F> x) {
  const float value = x;
  return kFlush && std::fabs(value) < 0x1p-14f ? 0.0f : value;
}

template <class F, bool kFlush, class T>
bool compare(T a, T b) {
  return F()(compared<kFlush>(a), compared<kFlush>(b));
}

// Bits of all lanes; `second` is that of the upper halves of packed operands, or else the opposite.
struct Compared {
  uint32_t first = 0, second = 0;
};

template <class F, class T, bool kFlush>
struct OfScalars {
  static constexpr bool kPacked = false;
  static Compared run(Warp& warp, const Inst& inst) {
    const Source<T> a(warp, inst.op[2]), b(warp, inst.op[3]);
    uint32_t bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= compare<F, kFlush>(a[lane], b[lane]) ? 1u << lane : 0;
    return {bits, ~bits};
  }
};

template <class F, class T, bool kFlush>
struct OfPacked {
  static constexpr bool kPacked = true;
  static Compared run(Warp& warp, const Inst& inst) {
    const Source<uint32_t> a(warp, inst.op[2]), b(warp, inst.op[3]);
    Compared bits;
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t x = a[lane], y = b[lane];
      bits.first |= compare<F, kFlush>(T(x), T(y)) ? 1u << lane : 0;
      bits.second |= compare<F, kFlush>(T(x >> 16), T(y >> 16)) ? 1u << lane : 0;
    }
    return bits;
  }
};

// Bit 2 t + c of Inst::flags is the result for comparison t and predicate c.
uint32_t combine(uint32_t compared, uint32_t predicate, uint8_t table) {
  const auto entry = [table](int i) { return table >> i & 1 ? kAllLanes : 0; };
  return (compared & ((entry(3) & predicate) | (entry(2) & ~predicate))) |
         (~compared & ((entry(1) & predicate) | (entry(0) & ~predicate)));
}

// op: p, q, a, b, c.
template <class Comparison>
void setp(Warp& warp, const Inst& inst, uint32_t mask) {
  const uint32_t predicate = warp.predicate(inst.op[4]);
  const Compared bits = Comparison::run(warp, inst);
  store_predicate(warp, inst.op[0], combine(bits.first, predicate, inst.flags), mask);
  store_predicate(warp, inst.op[1], combine(bits.second, predicate, inst.flags), mask);
}

// op: d, -, a, b, c. The lower and the upper half of Inst::aux say what true is.
template <class Comparison>
void set(Warp& warp, const Inst& inst, uint32_t mask) {
  const uint32_t predicate = warp.predicate(inst.op[4]);
  const Compared bits = Comparison::run(warp, inst);
  const uint32_t lower = combine(bits.first, predicate, inst.flags);
  const uint32_t upper = Comparison::kPacked ? combine(bits.second, predicate, inst.flags) : lower;
  const auto truth = static_cast<uint32_t>(inst.aux);
  Result<uint32_t> result;
  for (int lane = 0; lane < kLanes; ++lane) {
    result.set(lane, (lower >> lane & 1 ? truth & 0xffff : 0) | (upper >> lane & 1 ? truth & 0xffff0000 : 0));
  }
  result.store(warp, inst.op[0], mask);
}

template <class F>
Handler handler_of(Type type, bool flush, bool is_setp) {
  using H = Narrow<Half>;
  using B = Narrow<Bfloat>;
  const auto handler = [is_setp](auto comparison) {
    using Comparison = decltype(comparison);
    return is_setp ? setp<Comparison> : set<Comparison>;
  };
  if (flush) {
    switch (type) {
      case Type::f32: return handler(OfScalars<F, float, true>());
      case Type::f16: return handler(OfScalars<F, H, true>());
      case Type::f16x2: return handler(OfPacked<F, H, true>());
      default: return nullptr;
    }
  }
  switch (type) {
    case Type::b16:
    case Type::u16: return handler(OfScalars<F, uint16_t, false>());
    case Type::s16: return handler(OfScalars<F, int16_t, false>());
    case Type::b32:
    case Type::u32: return handler(OfScalars<F, uint32_t, false>());
    case Type::s32: return handler(OfScalars<F, int32_t, false>());
    case Type::b64:
    case Type::u64: return handler(OfScalars<F, uint64_t, false>());
    case Type::s64: return handler(OfScalars<F, int64_t, false>());
    case Type::f32: return handler(OfScalars<F, float, false>());
    case Type::f64: return handler(OfScalars<F, double, false>());
    case Type::f16: return handler(OfScalars<F, H, false>());
    case Type::f16x2: return handler(OfPacked<F, H, false>());
    case Type::bf16: return handler(OfScalars<F, B, false>());
    case Type::bf16x2: return handler(OfPacked<F, B, false>());
    default: return nullptr;
  }
}

enum Kinds : uint8_t { kBits = 1, kSigned = 2, kUnsigned = 4, kFloat = 8, kNumbers = 14, kAll = 15 };

Kinds kind_of(Type type) {
  switch (type) {
    case Type::b16:
    case Type::b32:
    case Type::b64: return kBits;
    case Type::u16:
    case Type::u32:
    case Type::u64: return kUnsigned;
    case Type::s16:
    case Type::s32:
    case Type::s64: return kSigned;
    default: return kFloat;
  }
}

struct Operator {
  const char* name;
  Handler (*handler)(Type type, bool flush, bool is_setp);
  bool exchanged, opposite;  // of the operands; of the result
  uint8_t kinds;             // of types that have it
};

// A comparison ending in u is true where an operand is NaN: the opposite of the opposite one.
constexpr Operator kOperators[] = {{"eq", handler_of<Equal>, false, false, kAll},
                                   {"ne", handler_of<Equal>, false, true, kAll & ~kFloat},
                                   {"ne", handler_of<Different>, false, false, kFloat},
                                   {"lt", handler_of<Less>, false, false, kNumbers},
                                   {"le", handler_of<LessOrEqual>, false, false, kNumbers},
                                   {"gt", handler_of<Less>, true, false, kNumbers},
                                   {"ge", handler_of<LessOrEqual>, true, false, kNumbers},
                                   {"lo", handler_of<Less>, false, false, kUnsigned},
                                   {"ls", handler_of<LessOrEqual>, false, false, kUnsigned},
                                   {"hi", handler_of<Less>, true, false, kUnsigned},
                                   {"hs", handler_of<LessOrEqual>, true, false, kUnsigned},
                                   {"equ", handler_of<Different>, false, true, kFloat},
                                   {"neu", handler_of<Equal>, false, true, kFloat},
                                   {"ltu", handler_of<LessOrEqual>, true, true, kFloat},
                                   {"leu", handler_of<Less>, true, true, kFloat},
                                   {"gtu", handler_of<LessOrEqual>, false, true, kFloat},
                                   {"geu", handler_of<Less>, false, true, kFloat},
                                   {"num", handler_of<Ordered>, false, false, kFloat},
                                   {"nan", handler_of<Ordered>, false, true, kFloat}};

// Of BoolOp(t, c), entry 2 t + c; without BoolOp the comparison alone counts.
int truth_table(const Decoding& d) {
  int table = 0b1100;
  int num_operators = 0;
  const auto if_has = [&](const char* name, int its_table) {
    if (!d.has(name)) return;
    table = its_table;
    ++num_operators;
  };
  if_has("and", 0b1000);
  if_has("or", 0b1110);
  if_has("xor", 0b0110);
  if (num_operators > 1) d.unknown();
  return table;
}

// Everything but the destinations.
void decode_comparison(const Decoding& d, bool is_setp) {
  d.out.cls = Class::compare;
  const Type type = d.type();
  const std::string name = d.source.modifiers.empty() ? "" : d.source.modifiers[0];
  d.allow({name.c_str(), "and", "or", "xor", "ftz"});
  for (const Operator& found : kOperators) {
    if (name != found.name || !(found.kinds & kind_of(type))) continue;
    d.out.run = found.handler(type, d.has("ftz"), is_setp);
    if (!d.out.run) d.unknown();
    int table = truth_table(d);
    const bool combines = table != 0b1100;
    const std::vector<Operand>& operands = d.source.operands;
    if (operands.size() != (combines ? 4 : 3)) d.wrong("wrong number of operands");
    if (found.opposite) table = (table >> 2 & 3) | (table & 3) << 2;
    if (combines) {
      Operand predicate = operands[3];
      if (predicate.negated) table = (table >> 1 & 5) | (table & 5) << 1;
      predicate.negated = false;
      d.out.op[4] = operand_row(d, predicate, Type::pred);
    }
    d.out.flags = static_cast<uint8_t>(table);
    d.out.op[2] = operand_row(d, operands[found.exchanged ? 2 : 1], type);
    d.out.op[3] = operand_row(d, operands[found.exchanged ? 1 : 2], type);
    return;
  }
  d.unknown();
}

void decode_setp(const Decoding& d) {
  decode_comparison(d, true);
  const Operand& destination = d.source.operands[0];
  const bool is_pair = destination.kind == Operand::Kind::pair;
  if (d.type(1) != Type::none) d.unknown();
  if (!is_pair && (d.type() == Type::f16x2 || d.type() == Type::bf16x2)) d.wrong("the destination is no pair");
  d.out.op[0] = operand_row(d, is_pair ? destination.elements.at(0) : destination, Type::pred);
  d.out.op[1] = is_pair ? operand_row(d, destination.elements.at(1), Type::pred) : d.rows.scratch(1);
}

// What set writes for true; 0 if it has no such destination.
uint32_t truth_of(Type destination, Type compared) {
  const bool is_half = compared == Type::f16 || compared == Type::bf16;
  if (compared == Type::f16x2 || compared == Type::bf16x2) {
    if (destination == compared) return compared == Type::f16x2 ? 0x3c003c00 : 0x3f803f80;
    return destination == Type::u32 || destination == Type::s32 ? 0xffffffff : 0;
  }
  switch (destination) {
    case Type::u16:
    case Type::s16: return is_half ? 0xffff : 0;
    case Type::u32:
    case Type::s32: return 0xffffffff;
    case Type::f16: return 0x3c00;
    case Type::bf16: return 0x3f80;
    case Type::f32: return is_half ? 0 : 0x3f800000;
    default: return 0;
  }
}

void decode_set(const Decoding& d) {
  decode_comparison(d, false);
  const Type destination = d.type(1);
  d.out.aux = truth_of(destination, d.type());
  if (!d.out.aux || d.type(2) != Type::none) d.unknown();
  d.out.op[0] = operand_row(d, d.source.operands[0], destination);
}

}  // namespace

const NamedDecoder kCompareDecoders[] = {{"setp", decode_setp}, {"set", decode_set}, {nullptr, nullptr}};

}  // namespace lumos::ptxvm
