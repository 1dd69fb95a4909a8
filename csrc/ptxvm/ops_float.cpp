// Arithmetic of f32 and f64, and the approximations.
#include <cmath>

#include "ptxvm/float_functions.h"
#include "ptxvm/lanes.h"

namespace lumos::ptxvm {
namespace {

// Arithmetic of f32 yields this NaN whatever its operands; f64 passes payloads on.
constexpr uint32_t kCanonicalNan = 0x7fffffff;

struct FusedSum {
  template <class T>
  T operator()(T a, T b, T c) const {
    return std::fma(a, b, c);
  }
};

struct Quotient {
  template <class T>
  T operator()(T a, T b) const {
    return a / b;
  }
};

struct Reciprocal {
  template <class T>
  T operator()(T x) const {
    return 1 / x;
  }
};

struct Root {
  template <class T>
  T operator()(T x) const {
    return std::sqrt(x);
  }
};

struct ReciprocalRoot {
  template <class T>
  T operator()(T x) const {
    return 1 / std::sqrt(x);
  }
};

struct Sine {
  float operator()(float x) const { return static_cast<float>(std::sin(static_cast<double>(x))); }
};

struct Cosine {
  float operator()(float x) const { return static_cast<float>(std::cos(static_cast<double>(x))); }
};

// The forms .approx.ftz.f64 see the upper half of their operand only, and yield the upper half of a result.
template <class F>
struct Coarse {
  double operator()(double x) const { return upper(F()(upper(x))); }
  static double upper(double x) {
    const uint64_t bits = bits_as<uint64_t>(x), sign = bits & 1ull << 63;
    const uint64_t flushed = (bits & ~sign) < 1ull << 52 ? sign : bits;
    return x == x ? bits_as<double>(flushed & 0xffffffff00000000) : bits_as<double>(uint64_t{kCanonicalNan} << 32);
  }
};

template <bool kFlush>
float flushed(float x) {
  const auto bits = bits_as<uint32_t>(x);
  return kFlush && !(bits & 0x7f800000) ? bits_as<float>(bits & 0x80000000) : x;
}

// .ftz and .sat around a function of f32.
template <class F, bool kFlush, bool kSaturate>
struct SinglePrecision {
  template <class... A>
  float operator()(A... operands) const {
    const float x = flushed<kFlush>(F()(flushed<kFlush>(operands)...));
    if (kSaturate) return x > 0 ? x < 1 ? x : 1 : 0;
    return x == x ? x : bits_as<float>(kCanonicalNan);
  }
};

template <class F, int kArity, bool kSaturates>
Handler single_handler(const Decoding& d) {
  static constexpr Handler kHandlers[2][2] = {{kMapSame<SinglePrecision<F, false, false>, float, kArity>,
                                               kMapSame<SinglePrecision<F, true, false>, float, kArity>},
                                              {kMapSame<SinglePrecision<F, false, kSaturates>, float, kArity>,
                                               kMapSame<SinglePrecision<F, true, kSaturates>, float, kArity>}};
  static constexpr Handler kDirected[2][2] = {{directed<kHandlers[0][0]>, directed<kHandlers[0][1]>},
                                              {directed<kHandlers[1][0]>, directed<kHandlers[1][1]>}};
  return (set_rounding_mode(d) ? kDirected : kHandlers)[d.has("sat")][d.has("ftz")];
}

// Operations that round correctly.
template <class F, int kArity, bool kSaturates>
void decode_exact(const Decoding& d) {
  if (d.type() == Type::f32) {
    kSaturates ? d.allow({"rn", "rz", "rm", "rp", "ftz", "sat"}) : d.allow({"rn", "rz", "rm", "rp", "ftz"});
    return decode_same(d, kArity, Class::fp32, single_handler<F, kArity, kSaturates>(d));
  }
  if (d.type() != Type::f64) d.unknown();
  d.allow({"rn", "rz", "rm", "rp"});
  constexpr Handler kHandler = kMapSame<F, double, kArity>;
  decode_same(d, kArity, Class::fp64, set_rounding_mode(d) ? directed<kHandler> : kHandler);
}

template <class F, int kArity>
void decode_approximate(const Decoding& d) {
  if (d.type() != Type::f32 || !(d.has("approx") || d.has("full"))) d.unknown();
  kArity == 2 ? d.allow({"approx", "full", "ftz"}) : d.allow({"approx", "ftz"});
  static constexpr Handler kHandlers[2] = {kMapSame<SinglePrecision<F, false, false>, float, kArity>,
                                           kMapSame<SinglePrecision<F, true, false>, float, kArity>};
  decode_same(d, kArity, Class::special, kHandlers[d.has("ftz")]);
}

bool is_half(const Decoding& d) {
  const Type type = d.type();
  return type == Type::f16 || type == Type::f16x2 || type == Type::bf16 || type == Type::bf16x2;
}

template <class F, int kArity, Decoder kHalf>
void decode_arithmetic(const Decoding& d) {
  is_half(d) ? kHalf(d) : decode_exact<F, kArity, true>(d);
}

// Operations that exist exact, with a rounding, and approximate.
template <class F, int kArity>
void decode_either(const Decoding& d) {
  if (d.has("approx") || d.has("full")) return decode_approximate<F, kArity>(d);
  if (!(d.has("rn") || d.has("rz") || d.has("rm") || d.has("rp"))) d.wrong("it needs a rounding or .approx");
  decode_exact<F, kArity, false>(d);
}

void decode_rcp(const Decoding& d) {
  if (d.type() != Type::f64 || !d.has("approx")) return decode_either<Reciprocal, 1>(d);
  d.allow({"approx", "ftz"});
  if (!d.has("ftz")) d.unknown();
  decode_same(d, 1, Class::special, kMapSame<Coarse<Reciprocal>, double, 1>);
}

void decode_rsqrt(const Decoding& d) {
  if (d.type() != Type::f64) return decode_approximate<ReciprocalRoot, 1>(d);
  d.allow({"approx", "ftz"});
  if (!d.has("approx")) d.unknown();
  decode_same(d, 1, Class::special,
              d.has("ftz") ? kMapSame<Coarse<ReciprocalRoot>, double, 1> : kMapSame<ReciprocalRoot, double, 1>);
}

template <class F, Decoder kHalf>
void decode_function(const Decoding& d) {
  is_half(d) ? kHalf(d) : decode_approximate<F, 1>(d);
}

void decode_tanh(const Decoding& d) {
  if (d.has("ftz")) d.unknown();
  decode_function<HyperbolicTangent, decode_half_tanh>(d);
}

}  // namespace

// The names that integers have too come by decode_float().
const NamedDecoder kFloatDecoders[] = {{"add", decode_arithmetic<Sum, 2, decode_half_add>},
                                       {"sub", decode_arithmetic<Difference, 2, decode_half_sub>},
                                       {"mul", decode_arithmetic<Product, 2, decode_half_mul>},
                                       {"fma", decode_arithmetic<FusedSum, 3, decode_half_fma>},
                                       {"mad", decode_exact<FusedSum, 3, true>},
                                       {"div", decode_either<Quotient, 2>},
                                       {"rcp", decode_rcp},
                                       {"sqrt", decode_either<Root, 1>},
                                       {"rsqrt", decode_rsqrt},
                                       {"min", decode_float_min},
                                       {"max", decode_float_max},
                                       {"abs", decode_float_abs},
                                       {"neg", decode_float_neg},
                                       {"copysign", decode_copysign},
                                       {"testp", decode_testp},
                                       {"ex2", decode_function<PowerOfTwo, decode_half_ex2>},
                                       {"lg2", decode_approximate<Logarithm, 1>},
                                       {"sin", decode_approximate<Sine, 1>},
                                       {"cos", decode_approximate<Cosine, 1>},
                                       {"tanh", decode_tanh},
                                       {nullptr, nullptr}};

void decode_float(const Decoding& d) {
  const NamedDecoder* entry = kFloatDecoders;
  while (entry->name && d.source.name != entry->name) ++entry;
  if (!entry->name) d.unknown();
  entry->decode(d);
}

}  // namespace lumos::ptxvm
