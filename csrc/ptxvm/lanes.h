// Elementwise operations: a handler out of a function of one lane's values, and its decoder.
//
//   struct Add { template <class T> T operator()(T a, T b) const { ... } };
//   decode_map<Add, kSame, kSame, kSame>(d, Types<Type::u32, Type::f32>());
//
// A function computes lanes that are not active too (the loops are then plain ones that the compiler vectorises), so it
// must be defined for every value of its operands.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "ptxvm/decode.h"
#include "ptxvm/instruction.h"
#include "ptxvm/syntax.h"

namespace lumos::ptxvm {

// The C++ type that functions get for a PTX type. half.h adds the formats of 16 bits.
template <Type>
struct ValueOf;
template <Type type>
using Value = typename ValueOf<type>::type;
// clang-format off
template <> struct ValueOf<Type::pred> { using type = bool; };
template <> struct ValueOf<Type::b16> { using type = uint16_t; };
template <> struct ValueOf<Type::b32> { using type = uint32_t; };
template <> struct ValueOf<Type::b64> { using type = uint64_t; };
template <> struct ValueOf<Type::u16> { using type = uint16_t; };
template <> struct ValueOf<Type::u32> { using type = uint32_t; };
template <> struct ValueOf<Type::u64> { using type = uint64_t; };
template <> struct ValueOf<Type::s16> { using type = int16_t; };
template <> struct ValueOf<Type::s32> { using type = int32_t; };
template <> struct ValueOf<Type::s64> { using type = int64_t; };
template <> struct ValueOf<Type::f32> { using type = float; };
template <> struct ValueOf<Type::f64> { using type = double; };
// clang-format on

// An element of the row that holds values T; values of 8 and 16 bits leave its upper bits zero.
template <class T>
using Cell = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
template <class T>
using Bits = std::conditional_t<sizeof(T) == 1, uint8_t, std::conditional_t<sizeof(T) == 2, uint16_t, Cell<T>>>;

// The lanes of an operand, and of a result until it is stored: its row may be that of an operand.
template <class T>
class Source {
 public:
  Source(Warp& warp, uint32_t row) : cells_(warp.row<Cell<T>>(row)) {}
  T operator[](int lane) const { return bits_as<T>(static_cast<Bits<T>>(cells_[lane])); }

 private:
  const Cell<T>* cells_;
};

inline void store_predicate(Warp& warp, uint32_t row, uint32_t bits, uint32_t mask) {
  uint32_t& to = warp.predicate(row);
  to = (to & ~mask) | (bits & mask);
}

template <class T>
class Result {
 public:
  void set(int lane, T value) { cells_[lane] = bits_as<Bits<T>>(value); }
  void store(Warp& warp, uint32_t row, uint32_t mask) const {
    Cell<T>* to = warp.row<Cell<T>>(row);
    if (mask == kAllLanes) {
      std::memcpy(to, cells_, sizeof cells_);
    } else {
      for (int lane = 0; lane < kLanes; ++lane) to[lane] = mask & 1u << lane ? cells_[lane] : to[lane];
    }
  }

 private:
  Cell<T> cells_[kLanes];
};

template <>
class Source<bool> {
 public:
  Source(Warp& warp, uint32_t row) {
    const uint32_t bits = warp.predicate(row);
    for (int lane = 0; lane < kLanes; ++lane) lanes_[lane] = bits >> lane & 1;
  }
  bool operator[](int lane) const { return lanes_[lane]; }

 private:
  uint32_t lanes_[kLanes];  // not the bits alone: a choice between loaded values is a loop that gets vectorised
};

template <>
class Result<bool> {
 public:
  void set(int lane, bool value) { bits_ |= value ? 1u << lane : 0; }
  void store(Warp& warp, uint32_t row, uint32_t mask) const { store_predicate(warp, row, bits_, mask); }

 private:
  uint32_t bits_ = 0;
};

// Functions that need more than their operands have a constructor that takes the instruction.
template <class F>
inline F function_of(const Inst& inst) {
  if constexpr (std::is_constructible_v<F, const Inst&>) {
    return F(inst);
  } else {
    return F();
  }
}

template <class F, class R, class... A, size_t... I>
inline void map_operands(Warp& warp, const Inst& inst, uint32_t mask, std::index_sequence<I...>) {
  const F f = function_of<F>(inst);
  Result<R> result;
  [&](const auto&... source) {
    for (int lane = 0; lane < kLanes; ++lane) result.set(lane, f(source[lane]...));
  }(Source<A>(warp, inst.op[I + 1])...);
  result.store(warp, inst.op[0], mask);
}

// A handler: op[0] = f(op[1], op[2], ...) of type R, from operands of the types A. bool stands for predicates.
template <class F, class R, class... A>
void map(Warp& warp, const Inst& inst, uint32_t mask) {
  map_operands<F, R, A...>(warp, inst, mask, std::index_sequence_for<A...>());
}

// The function on each half of packed operands: T of 16 bits.
template <class F, class T>
class Packed {
 public:
  explicit Packed(const Inst& inst) : f_(function_of<F>(inst)) {}
  template <class... A>
  uint32_t operator()(A... packed) const {
    const uint32_t low = bits_as<uint16_t>(T(f_(bits_as<T>(static_cast<uint16_t>(packed))...)));
    const uint32_t high = bits_as<uint16_t>(T(f_(bits_as<T>(static_cast<uint16_t>(packed >> 16))...)));
    return low | high << 16;
  }

 private:
  F f_;
};

// A list of types: those that an opcode exists for.
template <Type... types>
struct Types {};

// Placeholders among the operands of decode_map: the type of the opcode, and the integer of twice its size.
constexpr Type kSame = Type::none, kTwice = Type::b128;

constexpr Type operand_type(Type operand, Type opcode) {
  if (operand == kSame) return opcode;
  if (operand != kTwice) return operand;
  return opcode == Type::u16   ? Type::u32
         : opcode == Type::s16 ? Type::s32
         : opcode == Type::u32 ? Type::u64
                               : Type::s64;
}

// Row of an operand, which must be of this size if it is a register. A predicate must not be negated.
inline uint32_t operand_row(const Decoding& d, const Operand& operand, Type type) {
  if (operand.negated) d.wrong("a negated predicate does not belong here");
  if (operand.kind == Operand::Kind::reg && size_bytes(d.rows.type_of(operand.reg)) != size_bytes(type)) {
    d.wrong("the size of a register does not fit");
  }
  return d.row(operand, type);
}

// Rows of the operands, which must be as many as these types.
inline void decode_operands(const Decoding& d, std::initializer_list<Type> types) {
  if (d.source.operands.size() != types.size()) d.wrong("wrong number of operands");
  int i = 0;
  for (Type type : types) {
    d.out.op[i] = operand_row(d, d.source.operands[i], type);
    ++i;
  }
}

template <class F, Type type, Type result, Type... operands>
bool decode_map_of(const Decoding& d) {
  if (d.type() != type) return false;
  d.out.run = map<F, Value<operand_type(result, type)>, Value<operand_type(operands, type)>...>;
  decode_operands(d, {operand_type(result, type), operand_type(operands, type)...});
  return true;
}

// The instruction applies F to its operands (result first), if the only type of its opcode is one of `types`.
template <class F, Type... operands, Type... types>
void decode_map(const Decoding& d, Types<types...>) {
  if (d.type(1) != Type::none || !(decode_map_of<F, types, operands...>(d) || ...)) d.unknown();
}

}  // namespace lumos::ptxvm
