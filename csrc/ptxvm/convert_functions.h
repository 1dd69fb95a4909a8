// Conversions of one lane. Integers pass through 64 bits: what differs between their types is data that the function
// reads from the instruction. Floats pass through float, or double where one of the types is f64 or an integer.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "ptxvm/half.h"
#include "ptxvm/instruction.h"

namespace lumos::ptxvm::convert {

constexpr uint8_t kFlush = 1, kSaturate = 2, kRelu = 4, kSignedSource = 8, kSignedResult = 16;  // Inst::flags

struct IntegerType {
  IntegerType(int bits, bool is_signed) : mask(~0ull >> (64 - bits)), sign(is_signed ? mask ^ mask >> 1 : 0) {}
  uint64_t least() const { return 0 - sign; }
  uint64_t most() const { return mask ^ sign; }
  // The value of its bits, the lowest of `x`.
  uint64_t extended(uint64_t x) const { return ((x & mask) ^ sign) - sign; }
  uint64_t mask, sign;
};

// Inst::aux: a byte each for the bits of the source, of the result, and of the register that the result fills, by
// extension if it is wider.
struct IntegerSource : IntegerType {
  explicit IntegerSource(const Inst& inst) : IntegerType(inst.aux & 0xff, inst.flags & kSignedSource) {}
};

struct IntegerResult : IntegerType {
  explicit IntegerResult(const Inst& inst)
      : IntegerType(inst.aux >> 8 & 0xff, inst.flags & kSignedResult),
        filled(~0ull >> (64 - (inst.aux >> 16 & 0xff))) {}
  uint64_t filling(uint64_t x) const { return extended(x) & filled; }
  uint64_t filled;
};

template <bool kSigned>
class IntegerToInteger {
  using Wide = std::conditional_t<kSigned, int64_t, uint64_t>;
  using Limits = std::numeric_limits<Wide>;

 public:
  explicit IntegerToInteger(const Inst& inst) : from_(inst), to_(inst) {
    if (!(inst.flags & kSaturate)) return;
    if (kSigned) least_ = static_cast<Wide>(to_.least());
    if (to_.most() < static_cast<uint64_t>(Limits::max())) most_ = static_cast<Wide>(to_.most());
  }
  uint64_t operator()(uint64_t x) const {
    const auto value = static_cast<Wide>(from_.extended(x));
    return to_.filling(static_cast<uint64_t>(value < least_ ? least_ : value > most_ ? most_ : value));
  }

 private:
  IntegerSource from_;
  IntegerResult to_;
  Wide least_ = Limits::min(), most_ = Limits::max();
};

// .sat of an integer leaves 0 and 1.
template <class To, bool kSigned>
class IntegerToFloat {
 public:
  explicit IntegerToFloat(const Inst& inst) : from_(inst), saturate_(inst.flags & kSaturate) {}
  To operator()(uint64_t x) const {
    using Wide = std::conditional_t<kSigned, int64_t, uint64_t>;
    const auto value = static_cast<Wide>(from_.extended(x));
    return static_cast<To>(saturate_ ? Wide{value > 0} : value);
  }

 private:
  IntegerSource from_;
  bool saturate_;
};

template <class Format, Rounding kRounding>
class IntegerToHalf {
 public:
  explicit IntegerToHalf(const Inst& inst) : from_(inst), saturate_(inst.flags & kSaturate) {}
  Narrow<Format> operator()(uint64_t x) const {
    const bool negative = x & from_.sign;
    const uint64_t value = from_.extended(x), magnitude = negative ? 0 - value : value;
    // What double has no places for still tells on which side of a rounding the value lies.
    const uint64_t kept = magnitude >> 11 | ((magnitude & 0x7ff) != 0);
    const double exact = magnitude >> 53 ? static_cast<double>(kept) * 0x1p11 : static_cast<double>(magnitude);
    const double result = saturate_ & (exact > 1) ? 1 : exact;
    return Narrow<Format>(narrow<Format, kRounding>(negative ? saturate_ ? 0 : -result : result));
  }

 private:
  IntegerSource from_;
  bool saturate_;
};

// To an integer value.
template <Rounding kRounding, class T>
T rounded(T x) {
  switch (kRounding) {
    case Rounding::zero: return std::trunc(x);
    case Rounding::down: return std::floor(x);
    case Rounding::up: return std::ceil(x);
    default: return std::nearbyint(x);
  }
}

template <class T>
T flushed(T x, T smallest) {
  return std::abs(x) < smallest ? std::copysign(T{0}, x) : x;
}

// Values beyond the type become its extremes. A NaN becomes zero between types of less than 64 bits.
template <class From, Rounding kRounding>
class FloatToInteger {
 public:
  explicit FloatToInteger(const Inst& inst)
      : to_(inst),
        smallest_(inst.flags & kFlush ? std::numeric_limits<float>::min() : 0),
        least_(-static_cast<double>(to_.sign)),
        end_(2 * static_cast<double>(to_.most() / 2 + 1)),
        nan_(sizeof(From) == 8 || to_.mask == ~0ull ? to_.mask ^ to_.mask >> 1 : 0) {}
  uint64_t operator()(double x) const {
    const double value = rounded<kRounding>(flushed(x, smallest_));
    const bool below = value < least_, above = value >= end_, large = value >= 0x1p63;
    const double inside = (value >= least_) & !above ? large ? value - 0x1p63 : value : 0;
    const uint64_t converted = static_cast<uint64_t>(static_cast<int64_t>(inside)) ^ uint64_t { large } << 63;
    return to_.filling(x == x ? below ? to_.least() : above ? to_.most() : converted : nan_);
  }

 private:
  IntegerResult to_;
  double smallest_, least_, end_;
  uint64_t nan_;
};

// kToInteger: the result is an integer value.
template <class To, class From, Rounding kRounding, bool kToInteger>
class FloatToFloat {
  static constexpr bool kDouble = sizeof(To) == 8 || sizeof(From) == 8;
  using Wide = std::conditional_t<kDouble, double, float>;

 public:
  explicit FloatToFloat(const Inst& inst)
      : smallest_(inst.flags & kFlush ? std::numeric_limits<float>::min() : 0),
        least_(inst.flags & (kSaturate | kRelu) ? 0 : -std::numeric_limits<Wide>::infinity()),
        most_(inst.flags & kSaturate ? 1 : std::numeric_limits<Wide>::infinity()),
        saturate_(inst.flags & kSaturate) {}

  To operator()(From from) const {
    Wide x = flushed(static_cast<Wide>(from), std::is_same_v<From, float> ? smallest_ : 0);
    if (kToInteger) x = rounded<kRounding>(x);
    x = x > least_ ? x : x == x ? least_ : saturate_ ? 0 : x;
    x = x > most_ ? most_ : x;
    if constexpr (sizeof(To) == 8) {
      return x;
    } else if constexpr (sizeof(To) == 4) {
      float result = x;
      if constexpr (kDouble) result = bits_as<float>(narrow<Single, kRounding>(x));
      result = flushed<float>(result, smallest_);
      return result == result ? result : bits_as<float>(Single::nan);
    } else {
      return To(x == x ? narrow<typename To::Format, kRounding>(x) : To::Format::nan);
    }
  }

 private:
  Wide smallest_, least_, most_;
  bool saturate_;
};

template <class Format, Rounding kRounding>
class FloatsToPair {
 public:
  explicit FloatsToPair(const Inst& inst) : convert_(inst) {}
  uint32_t operator()(float high, float low) const {
    return static_cast<uint32_t>(convert_(high).bits) << 16 | convert_(low).bits;
  }

 private:
  FloatToFloat<Narrow<Format>, float, kRounding, false> convert_;
};

template <Rounding kRounding>
class FloatToTf32 {
 public:
  explicit FloatToTf32(const Inst& inst) : relu_(inst.flags & kRelu) {}
  uint32_t operator()(float x) const {
    const float clamped = relu_ & !(x > 0) ? 0 : x;
    return x == x ? float_to_tf32<kRounding>(clamped) : Single::nan;
  }

 private:
  bool relu_;
};

// c moves up, and two saturated values come below it.
class PackSaturated {
 public:
  explicit PackSaturated(const Inst& inst) : to_(inst), bits_(inst.aux >> 8 & 0xff) {}
  uint32_t operator()(int32_t a, int32_t b, uint32_t c) const {
    const uint64_t pair = saturated(a) << bits_ | saturated(b);
    return static_cast<uint32_t>(uint64_t{c} << 2 * bits_ | pair);
  }

 private:
  uint64_t saturated(int64_t x) const {
    const auto least = static_cast<int64_t>(to_.least()), most = static_cast<int64_t>(to_.most());
    return static_cast<uint64_t>(x < least ? least : x > most ? most : x) & to_.mask;
  }
  IntegerResult to_;
  int bits_;
};

}  // namespace lumos::ptxvm::convert
