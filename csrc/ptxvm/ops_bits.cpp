// Operations on bits: logic, shifts, fields, counts, permutations of bytes.
#include <algorithm>

#include "ptxvm/lanes.h"

namespace lumos::ptxvm {
namespace {

using Sizes = Types<Type::b16, Type::b32, Type::b64>;
using Words = Types<Type::b32, Type::b64>;
using Fields = Types<Type::u32, Type::s32, Type::u64, Type::s64>;
using B32 = Types<Type::b32>;

template <class T>
constexpr uint32_t kBits = 8 * sizeof(T);

// The lowest `count` bits.
template <class T>
T low_bits(uint32_t count) {
  return count < kBits<T> ? (T{1} << (count % kBits<T>)) - 1 : ~T{0};
}

struct And {
  template <class T>
  T operator()(T a, T b) const {
    return a & b;
  }
};

struct Or {
  template <class T>
  T operator()(T a, T b) const {
    return a | b;
  }
};

struct Xor {
  template <class T>
  T operator()(T a, T b) const {
    return a ^ b;
  }
};

struct Not {
  template <class T>
  T operator()(T a) const {
    return ~a;
  }
};

struct LogicalNot {
  template <class T>
  T operator()(T a) const {
    return a == 0;
  }
};

// Bit 4 a + 2 b + c of the table is the result of bits a, b, c.
class TruthTable {
 public:
  explicit TruthTable(const Inst& inst) {
    for (int i = 0; i < 8; ++i) entries_[i] = inst.aux >> i & 1 ? ~0u : 0;
  }
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    const auto choose = [](uint32_t which, uint32_t one, uint32_t zero) { return zero ^ (which & (one ^ zero)); };
    uint32_t of_bc[4];
    for (int i = 0; i < 4; ++i) of_bc[i] = choose(a, entries_[4 + i], entries_[i]);
    return choose(b, choose(c, of_bc[3], of_bc[2]), choose(c, of_bc[1], of_bc[0]));
  }

 private:
  uint32_t entries_[8];
};

// op: result, predicate, three operands, predicate. The first predicate is F(result is not 0, second predicate).
template <class F>
void lop3_with_predicate(Warp& warp, const Inst& inst, uint32_t mask) {
  const TruthTable table(inst);
  const Source<uint32_t> a(warp, inst.op[2]), b(warp, inst.op[3]), c(warp, inst.op[4]);
  Result<uint32_t> result;
  uint32_t nonzero = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t value = table(a[lane], b[lane], c[lane]);
    result.set(lane, value);
    nonzero |= value ? 1u << lane : 0;
  }
  const uint32_t combined = F()(nonzero, warp.predicate(inst.op[5]));
  result.store(warp, inst.op[0], mask);
  store_predicate(warp, inst.op[1], combined, mask);
}

// Shifts by the width and more leave nothing but the sign.
struct ShiftLeft {
  template <class T>
  T operator()(T a, uint32_t count) const {
    return count < kBits<T> ? a << (count % kBits<T>) : 0;
  }
};

struct ShiftRight {
  template <class T>
  T operator()(T a, uint32_t count) const {
    const T vacated = a < 0 ? -1 : 0;
    return count < kBits<T> ? a >> (count % kBits<T>) : vacated;
  }
};

// Of the 64 bits b:a, the upper word after a shift to the left or the lower one after a shift to the right.
template <bool kLeft, bool kClamp>
struct FunnelShift {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    const uint32_t count = kClamp ? std::min(c, 32u) : c % 32;
    const uint64_t both = uint64_t{b} << 32 | a;
    return kLeft ? both << count >> 32 : both >> count;
  }
};

struct PopulationCount {
  uint32_t operator()(uint32_t a) const { return __builtin_popcount(a); }
  uint32_t operator()(uint64_t a) const { return __builtin_popcountll(a); }
};

struct LeadingZeros {
  uint32_t operator()(uint32_t a) const { return a ? __builtin_clz(a) : 32; }
  uint32_t operator()(uint64_t a) const { return a ? __builtin_clzll(a) : 64; }
};

// Position of the highest bit that differs from the sign, or its distance from the highest.
template <bool kDistance>
struct FindBit {
  template <class T>
  uint32_t operator()(T a) const {
    const auto bits = static_cast<Cell<T>>(a < 0 ? ~a : a);
    const uint32_t zeros = LeadingZeros()(bits);
    return bits == 0 ? ~0u : kDistance ? zeros : kBits<T> - 1 - zeros;
  }
};

struct Reverse {
  uint32_t operator()(uint32_t a) const {
    const auto exchange = [](uint32_t x, uint32_t odd, int by) { return (x >> by & odd) | (x & odd) << by; };
    a = exchange(exchange(exchange(a, 0x55555555, 1), 0x33333333, 2), 0x0f0f0f0f, 4);
    return __builtin_bswap32(a);
  }
  uint64_t operator()(uint64_t a) const {
    const uint64_t high = operator()(static_cast<uint32_t>(a));
    return high << 32 | operator()(static_cast<uint32_t>(a >> 32));
  }
};

struct ExtractField {
  template <class T>
  T operator()(T a, uint32_t b, uint32_t c) const {
    constexpr uint32_t kTop = kBits<T> - 1;
    const uint32_t begin = b & 0xff, count = c & 0xff;
    if (count == 0 || (begin > kTop && !std::is_signed_v<T>)) return 0;
    // The field's top bit goes to the word's, from where it is extended. A field beyond the word is the word's sign.
    const uint32_t last = std::min(begin + count - 1, kTop), up = kTop - last;
    return static_cast<T>(static_cast<Cell<T>>(a) << up) >> (up + std::min(begin, last));
  }
};

struct InsertField {
  template <class T>
  T operator()(T a, T b, uint32_t c, uint32_t d) const {
    const uint32_t begin = c & 0xff, count = d & 0xff;
    const T mask = ShiftLeft()(low_bits<T>(count), begin);
    return (b & ~mask) | (ShiftLeft()(a, begin) & mask);
  }
};

template <bool kClamp>
struct FieldMask {
  uint32_t operator()(uint32_t begin, uint32_t count) const {
    if (kClamp) return ShiftLeft()(low_bits<uint32_t>(count), begin);
    return low_bits<uint32_t>(count % 32) << begin % 32;
  }
};

template <bool kClamp>
struct ExtendField {
  template <class T>
  T operator()(T a, uint32_t b) const {
    if (kClamp && b >= 32) return a;
    const uint32_t up = (32 - b % 32) % 32;
    return b % 32 ? static_cast<T>(static_cast<uint32_t>(a) << up) >> up : 0;
  }
};

// Position of the n-th set bit from bit `base`, downwards if n is negative; n = 0 asks for the bit `base` itself.
struct FindNth {
  uint32_t operator()(uint32_t bits, uint32_t base, int32_t n) const {
    const int step = n < 0 ? -1 : 1;
    int64_t left = n < 0 ? -int64_t{n} : n;
    if (n == 0) return base < 32 && bits >> base & 1 ? base : ~0u;
    for (int64_t at = base; at >= 0 && at < 32; at += step) {
      if (bits >> at & 1 && --left == 0) return static_cast<uint32_t>(at);
    }
    return ~0u;
  }
};

// Which of the eight bytes b:a becomes byte i, by the low two bits n of the control word.
struct ForwardExtract {
  static int byte(int i, int n) { return n + i; }
};
struct BackwardExtract {
  static int byte(int i, int n) { return (n - i) & 7; }
};
struct Replicate8 {
  static int byte(int, int n) { return n; }
};
struct ClampLeft {
  static int byte(int i, int n) { return std::max(i, n); }
};
struct ClampRight {
  static int byte(int i, int n) { return std::min(i, n); }
};
struct Replicate16 {
  static int byte(int i, int n) { return (n & 1) * 2 + (i & 1); }
};

inline uint32_t byte_of(uint32_t a, uint32_t b, uint32_t i) { return (i & 4 ? b : a) >> (i & 3) * 8 & 0xff; }

template <class Mode>
struct Permute {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) result |= byte_of(a, b, Mode::byte(i, c & 3)) << (8 * i);
    return result;
  }
};

// Four bits of control for each byte: the highest one asks for its sign in all bits.
struct AnyBytes {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i, c >>= 4) {
      const uint32_t byte = byte_of(a, b, c & 7), sign = (byte >> 7) * 0xff;
      result |= (c & 8 ? sign : byte) << (8 * i);
    }
    return result;
  }
};

template <class F>
void map_predicates(Warp& warp, const Inst& inst, uint32_t mask) {
  store_predicate(warp, inst.op[0], F()(warp.predicate(inst.op[1]), warp.predicate(inst.op[2])), mask);
}

template <class F>
void decode_logic(const Decoding& d) {
  d.allow({});
  if (d.type() != Type::pred) return decode_map<F, kSame, kSame, kSame>(d, Sizes());
  decode_operands(d, {Type::pred, Type::pred, Type::pred});
  d.out.run = map_predicates<F>;
}

void decode_not(const Decoding& d) {
  d.allow({});
  if (d.type() != Type::pred) return decode_map<Not, kSame, kSame>(d, Sizes());
  decode_operands(d, {Type::pred, Type::pred});
  d.out.op[2] = d.rows.of_constant(1, 1);
  d.out.run = map_predicates<Xor>;
}

void decode_cnot(const Decoding& d) {
  d.allow({});
  decode_map<LogicalNot, kSame, kSame>(d, Sizes());
}

void decode_lop3(const Decoding& d) {
  d.allow({"and", "or"});
  const std::vector<Operand>& operands = d.source.operands;
  const bool with_predicate = d.has("and") || d.has("or");
  if (d.source.modifiers.size() != (with_predicate ? 2 : 1) || d.type() != Type::b32) d.unknown();
  if (operands.size() != (with_predicate ? 6 : 5)) d.wrong("wrong number of operands");
  const Operand& table = operands[4];
  if (table.kind != Operand::Kind::integer || table.bits < 0 || table.bits > 255) {
    d.wrong("the table is no integer from 0 to 255");
  }
  d.out.aux = table.bits;
  uint32_t* op = d.out.op;
  if (with_predicate) {
    if (operands[0].kind != Operand::Kind::pair) d.wrong("the destination is no pair");
    *op++ = operand_row(d, operands[0].elements.at(0), Type::b32);
    *op++ = operand_row(d, operands[0].elements.at(1), Type::pred);
    d.out.run = d.has("and") ? lop3_with_predicate<And> : lop3_with_predicate<Or>;
  } else {
    *op++ = operand_row(d, operands[0], Type::b32);
    d.out.run = map<TruthTable, uint32_t, uint32_t, uint32_t, uint32_t>;
  }
  for (int i = 1; i <= 3; ++i) *op++ = operand_row(d, operands[i], Type::b32);
  if (with_predicate) *op++ = operand_row(d, operands[5], Type::pred);
}

void decode_shl(const Decoding& d) {
  d.allow({});
  decode_map<ShiftLeft, kSame, kSame, Type::u32>(d, Sizes());
}

void decode_shr(const Decoding& d) {
  d.allow({});
  decode_map<ShiftRight, kSame, kSame, Type::u32>(
      d, Types<Type::b16, Type::b32, Type::b64, Type::u16, Type::s16, Type::u32, Type::s32, Type::u64, Type::s64>());
}

// Whether it is the first of two modifiers, one of which must be there.
bool is_first_of(const Decoding& d, const char* first, const char* second) {
  if (d.has(first) == d.has(second)) d.unknown();
  return d.has(first);
}

void decode_shf(const Decoding& d) {
  d.allow({"l", "r", "clamp", "wrap"});
  const bool left = is_first_of(d, "l", "r"), clamp = is_first_of(d, "clamp", "wrap");
  if (left && clamp) return decode_map<FunnelShift<true, true>, kSame, kSame, kSame, Type::u32>(d, B32());
  if (left) return decode_map<FunnelShift<true, false>, kSame, kSame, kSame, Type::u32>(d, B32());
  if (clamp) return decode_map<FunnelShift<false, true>, kSame, kSame, kSame, Type::u32>(d, B32());
  decode_map<FunnelShift<false, false>, kSame, kSame, kSame, Type::u32>(d, B32());
}

template <class F>
void decode_count(const Decoding& d) {
  d.allow({});
  decode_map<F, Type::u32, kSame>(d, Words());
}

void decode_bfind(const Decoding& d) {
  d.allow({"shiftamt"});
  if (d.has("shiftamt")) return decode_map<FindBit<true>, Type::u32, kSame>(d, Fields());
  decode_map<FindBit<false>, Type::u32, kSame>(d, Fields());
}

void decode_brev(const Decoding& d) {
  d.allow({});
  decode_map<Reverse, kSame, kSame>(d, Words());
}

void decode_bfe(const Decoding& d) {
  d.allow({});
  decode_map<ExtractField, kSame, kSame, Type::u32, Type::u32>(d, Fields());
}

void decode_bfi(const Decoding& d) {
  d.allow({});
  decode_map<InsertField, kSame, kSame, kSame, Type::u32, Type::u32>(d, Words());
}

void decode_bmsk(const Decoding& d) {
  d.allow({"clamp", "wrap"});
  if (is_first_of(d, "clamp", "wrap")) return decode_map<FieldMask<true>, kSame, Type::u32, Type::u32>(d, B32());
  decode_map<FieldMask<false>, kSame, Type::u32, Type::u32>(d, B32());
}

void decode_szext(const Decoding& d) {
  d.allow({"clamp", "wrap"});
  using Word = Types<Type::u32, Type::s32>;
  if (is_first_of(d, "clamp", "wrap")) return decode_map<ExtendField<true>, kSame, kSame, Type::u32>(d, Word());
  decode_map<ExtendField<false>, kSame, kSame, Type::u32>(d, Word());
}

void decode_fns(const Decoding& d) {
  d.allow({});
  decode_map<FindNth, kSame, kSame, Type::u32, Type::s32>(d, B32());
}

template <class F>
void decode_permute(const Decoding& d) {
  decode_map<F, kSame, kSame, kSame, kSame>(d, B32());
}

void decode_prmt(const Decoding& d) {
  static const NamedDecoder kModes[] = {
      {"f4e", decode_permute<Permute<ForwardExtract>>}, {"b4e", decode_permute<Permute<BackwardExtract>>},
      {"rc8", decode_permute<Permute<Replicate8>>},     {"ecl", decode_permute<Permute<ClampLeft>>},
      {"ecr", decode_permute<Permute<ClampRight>>},     {"rc16", decode_permute<Permute<Replicate16>>}};
  if (d.source.modifiers.size() == 1) return decode_permute<AnyBytes>(d);
  d.allow({"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"});
  if (d.source.modifiers.size() != 2) d.unknown();
  for (const NamedDecoder& mode : kModes) {
    if (d.has(mode.name)) return mode.decode(d);
  }
  d.unknown();
}

}  // namespace

const NamedDecoder kBitDecoders[] = {{"and", decode_logic<And>},
                                     {"or", decode_logic<Or>},
                                     {"xor", decode_logic<Xor>},
                                     {"not", decode_not},
                                     {"cnot", decode_cnot},
                                     {"lop3", decode_lop3},
                                     {"shl", decode_shl},
                                     {"shr", decode_shr},
                                     {"shf", decode_shf},
                                     {"popc", decode_count<PopulationCount>},
                                     {"clz", decode_count<LeadingZeros>},
                                     {"bfind", decode_bfind},
                                     {"brev", decode_brev},
                                     {"bfe", decode_bfe},
                                     {"bfi", decode_bfi},
                                     {"bmsk", decode_bmsk},
                                     {"szext", decode_szext},
                                     {"fns", decode_fns},
                                     {"prmt", decode_prmt},
                                     {nullptr, nullptr}};

}  // namespace lumos::ptxvm
