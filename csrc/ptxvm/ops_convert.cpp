// Decoding of conversions.
#include "ptxvm/convert_functions.h"
#include "ptxvm/float_functions.h"

namespace lumos::ptxvm {
namespace {

using namespace convert;

bool is_signed(Type type) { return type == Type::s8 || type == Type::s16 || type == Type::s32 || type == Type::s64; }
bool is_integer(Type type) {
  return is_signed(type) || type == Type::u8 || type == Type::u16 || type == Type::u32 || type == Type::u64;
}

bool is_float(Type type) { return type == Type::f16 || type == Type::bf16 || type == Type::f32 || type == Type::f64; }

struct NamedRounding {
  const char* name;
  Rounding rounding;
};
constexpr NamedRounding kToInteger[] = {
    {"rni", Rounding::nearest_even}, {"rzi", Rounding::zero}, {"rmi", Rounding::down}, {"rpi", Rounding::up}};
constexpr NamedRounding kToFloat[] = {
    {"rn", Rounding::nearest_even}, {"rz", Rounding::zero}, {"rm", Rounding::down}, {"rp", Rounding::up}};

const NamedRounding* rounding_among(const Decoding& d, const NamedRounding (&known)[4]) {
  for (const NamedRounding& rounding : known) {
    if (d.has(rounding.name)) return &rounding;
  }
  return nullptr;
}

template <Rounding kRounding>
using RoundingTag = std::integral_constant<Rounding, kRounding>;
template <class T>
struct Tag {
  using type = T;
};

// Calls f with the tag of one of the roundings. Unknown if there is none.
template <class F>
void with_rounding(const Decoding& d, const NamedRounding (&known)[4], F f) {
  const NamedRounding* found = rounding_among(d, known);
  if (!found) d.wrong("it needs a rounding");
  switch (found->rounding) {
    case Rounding::zero: return f(RoundingTag<Rounding::zero>());
    case Rounding::down: return f(RoundingTag<Rounding::down>());
    case Rounding::up: return f(RoundingTag<Rounding::up>());
    default: return f(RoundingTag<Rounding::nearest_even>());
  }
}

template <class F>
void with_float(const Decoding& d, Type type, F f) {
  switch (type) {
    case Type::f16: return f(Tag<Narrow<Half>>());
    case Type::bf16: return f(Tag<Narrow<Bfloat>>());
    case Type::f32: return f(Tag<float>());
    case Type::f64: return f(Tag<double>());
    default: d.unknown();
  }
}

// Of a register that may be wider than the integer; tells whether its row is one of 64 bits.
bool decode_integer(const Decoding& d, int i, Type type) {
  const Operand& operand = d.source.operands[i];
  int bytes = size_bytes(type);
  if (operand.kind == Operand::Kind::reg) {
    if (operand.negated || size_bytes(d.rows.type_of(operand.reg)) < bytes) d.wrong("a register is too narrow");
    bytes = size_bytes(d.rows.type_of(operand.reg));
  }
  const bool is_result = i == 0;
  d.out.op[i] = d.row(operand, type);
  if (is_signed(type)) d.out.flags |= is_result ? kSignedResult : kSignedSource;
  d.out.aux |= is_result ? static_cast<uint64_t>(size_bytes(type)) << 11 | static_cast<uint64_t>(bytes) << 19
                         : static_cast<uint64_t>(size_bytes(type)) << 3;
  return bytes == 8;
}

template <class F, class To>
Handler from_row(bool wide) {
  return wide ? map<F, To, uint64_t> : map<F, To, uint32_t>;
}

template <class F, class To>
Handler from_row_directed(bool wide) {
  return wide ? directed<map<F, To, uint64_t>> : directed<map<F, To, uint32_t>>;
}

void decode_integer_to_integer(const Decoding& d, Type to, Type from) {
  d.allow({"sat"});
  const bool wide_result = decode_integer(d, 0, to), wide = decode_integer(d, 1, from);
  const auto handler = [&](auto tag) {
    using F = typename decltype(tag)::type;
    return wide_result ? from_row<F, uint64_t>(wide) : from_row<F, uint32_t>(wide);
  };
  d.out.run = is_signed(from) ? handler(Tag<IntegerToInteger<true>>()) : handler(Tag<IntegerToInteger<false>>());
}

void decode_integer_to_float(const Decoding& d, Type to, Type from) {
  d.allow({"rn", "rz", "rm", "rp", "sat", "ftz"});
  const bool wide = decode_integer(d, 1, from);
  d.out.op[0] = operand_row(d, d.source.operands[0], to);
  with_float(d, to, [&](auto result) {
    using To = typename decltype(result)::type;
    with_rounding(d, kToFloat, [&](auto rounding) {
      if constexpr (sizeof(To) == 2) {
        d.out.run = from_row<IntegerToHalf<typename To::Format, rounding()>, To>(wide);
      } else {
        const auto handler = [&](auto tag) {
          using F = typename decltype(tag)::type;
          return set_rounding_mode(d) ? from_row_directed<F, To>(wide) : from_row<F, To>(wide);
        };
        d.out.run =
            is_signed(from) ? handler(Tag<IntegerToFloat<To, true>>()) : handler(Tag<IntegerToFloat<To, false>>());
      }
    });
  });
}

void decode_float_to_integer(const Decoding& d, Type to, Type from) {
  d.allow({"rni", "rzi", "rmi", "rpi", "sat", "ftz"});
  const bool wide = decode_integer(d, 0, to);
  d.out.op[1] = operand_row(d, d.source.operands[1], from);
  with_float(d, from, [&](auto source) {
    using From = typename decltype(source)::type;
    with_rounding(d, kToInteger, [&](auto rounding) {
      using F = FloatToInteger<From, rounding()>;
      d.out.run = wide ? map<F, uint64_t, From> : map<F, uint32_t, From>;
    });
  });
}

void decode_float_to_float(const Decoding& d, Type to, Type from) {
  const bool to_half = size_bytes(to) == 2, narrower = size_bytes(to) < size_bytes(from) || (to_half && to != from);
  if (narrower) {
    to_half ? d.allow({"rn", "rz", "rm", "rp", "sat", "ftz", "relu"}) : d.allow({"rn", "rz", "rm", "rp", "sat", "ftz"});
  } else {
    to == from ? d.allow({"rni", "rzi", "rmi", "rpi", "sat", "ftz"}) : d.allow({"sat", "ftz"});
  }
  decode_operands(d, {to, from});
  with_float(d, to, [&](auto result) {
    with_float(d, from, [&](auto source) {
      using To = typename decltype(result)::type;
      using From = typename decltype(source)::type;
      if constexpr (sizeof(To) < sizeof(From) || (sizeof(To) == 2 && sizeof(From) == 2 && !std::is_same_v<To, From>)) {
        with_rounding(d, kToFloat,
                      [&](auto rounding) { d.out.run = map<FloatToFloat<To, From, rounding(), false>, To, From>; });
      } else {
        d.out.run = map<FloatToFloat<To, From, Rounding::nearest_even, false>, To, From>;
      }
      if constexpr (std::is_same_v<To, From>) {
        if (!rounding_among(d, kToInteger)) return;
        with_rounding(d, kToInteger,
                      [&](auto rounding) { d.out.run = map<FloatToFloat<To, From, rounding(), true>, To, From>; });
      }
    });
  });
}

template <class Format>
void decode_floats_to_pair(const Decoding& d, Type to) {
  d.allow({"rn", "rz", "relu"});
  with_rounding(d, kToFloat,
                [&](auto rounding) { d.out.run = map<FloatsToPair<Format, rounding()>, uint32_t, float, float>; });
  decode_operands(d, {to, Type::f32, Type::f32});
}

void decode_float_to_tf32(const Decoding& d) {
  d.allow({"rna", "rn", "rz", "relu"});
  if (d.has("rna")) {
    d.out.run = map<FloatToTf32<Rounding::nearest_away>, uint32_t, float>;
  } else {
    with_rounding(d, kToFloat, [&](auto rounding) { d.out.run = map<FloatToTf32<rounding()>, uint32_t, float>; });
  }
  decode_operands(d, {Type::b32, Type::f32});
}

// cvt.pack.sat.TYPE.s32 d, a, b and cvt.pack.sat.TYPE.s32.b32 d, a, b, c for types of 16 and 8 bits.
void decode_pack(const Decoding& d) {
  d.allow({"pack", "sat"});
  const bool has_c = d.type() == Type::b32;
  const Type to = d.type(has_c + 1);
  const int num_bits = 8 * size_bytes(to);
  if (!d.has("sat") || d.type(has_c) != Type::s32 || !is_integer(to) || num_bits != (has_c ? 8 : 16)) d.unknown();
  if (is_signed(to)) d.out.flags |= kSignedResult;
  d.out.aux = static_cast<uint64_t>(num_bits) << 8 | 32 << 16;
  d.out.run = map<PackSaturated, uint32_t, int32_t, int32_t, uint32_t>;
  if (has_c) return decode_operands(d, {Type::b32, Type::s32, Type::s32, Type::b32});
  decode_operands(d, {Type::b32, Type::s32, Type::s32});
  d.out.op[3] = d.rows.of_constant(0, 4);
}

void decode_cvt(const Decoding& d) {
  const Type to = d.type(1), from = d.type(0);
  d.out.cls = Class::convert;
  d.out.flags = (d.has("ftz") ? kFlush : 0) | (d.has("sat") ? kSaturate : 0) | (d.has("relu") ? kRelu : 0);
  if (d.has("pack")) return decode_pack(d);
  if (d.type(2) != Type::none) d.unknown();
  if (from == Type::f32) {
    if (to == Type::f16x2) return decode_floats_to_pair<Half>(d, to);
    if (to == Type::bf16x2) return decode_floats_to_pair<Bfloat>(d, to);
    if (to == Type::tf32) return decode_float_to_tf32(d);
  }
  if (!(is_integer(to) || is_float(to)) || !(is_integer(from) || is_float(from))) d.unknown();
  if (d.has("ftz") && to != Type::f32 && from != Type::f32) d.unknown();
  if (d.source.operands.size() != 2) d.wrong("wrong number of operands");
  constexpr void (*kDecoders[2][2])(const Decoding&, Type, Type) = {
      {decode_float_to_float, decode_integer_to_float}, {decode_float_to_integer, decode_integer_to_integer}};
  kDecoders[is_integer(to)][is_integer(from)](d, to, from);
}

}  // namespace

const NamedDecoder kConvertDecoders[] = {{"cvt", decode_cvt}, {nullptr, nullptr}};

}  // namespace lumos::ptxvm
