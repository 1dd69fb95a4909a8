// mma.sync: D = A B + C on fragments in registers.
//
// Sums start with C and take one product after the other, in ascending k, each by a fused multiply-add in the type of
// the accumulator: products are exact, every partial sum is rounded to nearest. fp16 accumulators are summed in fp32
// and rounded to fp16 once. A NaN comes out as the canonical one. So a result depends on the operands alone; a GPU
// sums in an order and a precision of its own, and differs by as much as roundings of fp32 do.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <unordered_map>

#include "ptxvm/half.h"
#include "ptxvm/matrix.h"

namespace lumos::ptxvm {
namespace {

// Elements of A and B: as registers hold them, and their value.

struct Bf16 {
  static constexpr const char* kName = "bf16";
  using Stored = uint16_t;
  static float value(Stored bits) { return bfloat_to_float(bits); }
};

struct F16 {
  static constexpr const char* kName = "f16";
  using Stored = uint16_t;
  static float value(Stored bits) { return half_to_float(bits); }
  // As an accumulator: two to a register.
  using Sum = float;
  static constexpr bool kSaturates = false;
  static Stored result(Sum sum) { return static_cast<Stored>(float_to_half(std::isnan(sum) ? std::fabs(sum) : sum)); }
};

struct Tf32 {
  static constexpr const char* kName = "tf32";
  using Stored = uint32_t;
  static float value(Stored bits) { return bits_as<float>(bits & 0xffffe000u); }  // the low 13 bits are ignored
};

struct S8 {
  static constexpr const char* kName = "s8";
  using Stored = int8_t;
  static int32_t value(Stored x) { return x; }
};

struct U8 {
  static constexpr const char* kName = "u8";
  using Stored = uint8_t;
  static int32_t value(Stored x) { return x; }
};

// Accumulators: as registers hold them, and the type in which they are summed.

struct F32 {
  static constexpr const char* kName = "f32";
  using Stored = float;
  using Sum = float;
  static constexpr bool kSaturates = false;
  static Sum value(Stored x) { return x; }
  static Stored result(Sum sum) { return std::isnan(sum) ? bits_as<float>(Single::nan) : sum; }
};

struct F64 {
  static constexpr const char* kName = "f64";
  using Stored = double;
  using Sum = double;
  static constexpr bool kSaturates = false;
  static Sum value(Stored x) { return x; }
  static Stored result(Sum sum) { return std::isnan(sum) ? std::numeric_limits<double>::quiet_NaN() : sum; }
};

struct S32 {
  static constexpr const char* kName = "s32";
  using Stored = uint32_t;
  using Sum = uint32_t;  // wraps
  static constexpr bool kSaturates = false;
  static Sum value(Stored x) { return x; }
  static Stored result(Sum sum) { return sum; }
};

struct SaturatingS32 {
  static constexpr const char* kName = "s32";
  using Stored = int32_t;
  using Sum = int64_t;
  static constexpr bool kSaturates = true;
  static Sum value(Stored x) { return x; }
  static Stored result(Sum sum) { return static_cast<Stored>(std::clamp<Sum>(sum, INT32_MIN, INT32_MAX)); }
};

template <class T>
inline T multiply_add(T a, T b, T c) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::fma(a, b, c);
  } else {
    return a * b + c;
  }
}

// The numbers of registers and of elements in a block, for A of kM x kK and B of kK x 8.
template <int kM, int kK, class A, class C>
struct Shape {
  static constexpr int kRowBlocks = kM / 8;
  static constexpr int kColumns = sizeof(typename A::Stored) == 8 ? 4 : 16 / sizeof(typename A::Stored);  // of a block
  static constexpr bool kPacked = sizeof(typename C::Stored) == 2;
  static constexpr int kNumA = kRowBlocks * kK / kColumns, kNumB = kK / kColumns;
  static constexpr int kNumC = kPacked ? kRowBlocks : 2 * kRowBlocks;
};

template <int kM, int kK, class A, class B, class C>
void mma(Warp& warp, const Inst& inst, uint32_t mask) {
  using S = Shape<kM, kK, A, C>;
  using Sum = typename C::Sum;
  using StoredC = typename C::Stored;
  constexpr int kBlock = 8 * S::kColumns;
  need_whole_warp(mask);
  alignas(64) Sum a[kM][kK], b[kK][8], c[kM][8];

  const uint32_t* row = inst.op + S::kNumC;
  for (int i = 0; i < S::kNumA; ++i) {  // downwards first
    const auto* stored = warp.row<typename A::Stored>(*row++);
    alignas(64) Sum block[kBlock];
    for (int j = 0; j < kBlock; ++j) block[j] = static_cast<Sum>(A::value(stored[j]));
    for (int m = 0; m < 8; ++m) {
      Sum* to = &a[i % S::kRowBlocks * 8 + m][i / S::kRowBlocks * S::kColumns];
      std::memcpy(to, block + m * S::kColumns, S::kColumns * sizeof(Sum));
    }
  }
  for (int i = 0; i < S::kNumB; ++i) {  // a block's 8 rows are columns of B
    alignas(64) typename B::Stored block[kBlock];
    transpose(warp.row<typename B::Stored>(*row++), block);
    Sum* to = b[i * S::kColumns];
    for (int j = 0; j < kBlock; ++j) to[j] = static_cast<Sum>(B::value(block[j]));
  }
  for (int i = 0; i < S::kRowBlocks; ++i) {
    Sum* to = c[8 * i];
    const auto* first = warp.row<StoredC>(*row++);
    if constexpr (S::kPacked) {
      for (int j = 0; j < 64; ++j) to[j] = C::value(first[j]);
    } else {  // two registers: the even columns, and the odd
      const auto* second = warp.row<StoredC>(*row++);
      for (int lane = 0; lane < kLanes; ++lane) {
        to[2 * lane] = C::value(first[lane]);
        to[2 * lane + 1] = C::value(second[lane]);
      }
    }
  }

  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < 8; ++n) {
      Sum sum = c[m][n];
#pragma GCC unroll 32  // so that the loop over n is the one that gets vectorised
      for (int k = 0; k < kK; ++k) sum = multiply_add(a[m][k], b[k][n], sum);
      c[m][n] = sum;
    }
  }

  row = inst.op;
  for (int i = 0; i < S::kRowBlocks; ++i) {
    const Sum* from = c[8 * i];
    auto* first = warp.row<StoredC>(*row++);
    if constexpr (S::kPacked) {
      for (int j = 0; j < 64; ++j) first[j] = C::result(from[j]);
    } else {
      auto* second = warp.row<StoredC>(*row++);
      for (int lane = 0; lane < kLanes; ++lane) {
        first[lane] = C::result(from[2 * lane]);
        second[lane] = C::result(from[2 * lane + 1]);
      }
    }
  }
}

struct Variant {
  Handler run;
  int num_c, num_a, num_b;
  bool wide;
};
using Variants = std::unordered_map<std::string, Variant>;

template <int kM, int kK, class A, class B, class C>
void add(Variants* all) {
  using S = Shape<kM, kK, A, C>;
  const std::string opcode = format("mma.sync.aligned.m%dn8k%d.row.col%s.%s.%s.%s.%s", kM, kK,
                                    C::kSaturates ? ".satfinite" : "", C::kName, A::kName, B::kName, C::kName);
  (*all)[opcode] = {mma<kM, kK, A, B, C>, S::kNumC, S::kNumA, S::kNumB, sizeof(typename C::Stored) == 8};
}

template <int kK, class C>
void add_bytes(Variants* all) {
  add<16, kK, S8, S8, C>(all);
  add<16, kK, S8, U8, C>(all);
  add<16, kK, U8, S8, C>(all);
  add<16, kK, U8, U8, C>(all);
}

Variants all_variants() {
  Variants all;
  add<16, 8, F16, F16, F16>(&all);
  add<16, 16, F16, F16, F16>(&all);
  add<16, 8, F16, F16, F32>(&all);
  add<16, 16, F16, F16, F32>(&all);
  add<16, 8, Bf16, Bf16, F32>(&all);
  add<16, 16, Bf16, Bf16, F32>(&all);
  add<16, 4, Tf32, Tf32, F32>(&all);
  add<16, 8, Tf32, Tf32, F32>(&all);
  add<8, 4, F64, F64, F64>(&all);
  add<16, 4, F64, F64, F64>(&all);
  add<16, 8, F64, F64, F64>(&all);
  add<16, 16, F64, F64, F64>(&all);
  add_bytes<16, S32>(&all);
  add_bytes<32, S32>(&all);
  add_bytes<16, SaturatingS32>(&all);
  add_bytes<32, SaturatingS32>(&all);
  return all;
}

}  // namespace

void decode_mma(const Decoding& d) {
  static const Variants variants = all_variants();
  const auto found = variants.find(d.source.opcode());
  if (found == variants.end()) d.unknown();
  const Variant& variant = found->second;
  if (d.source.operands.size() != 4) d.wrong("it has four operands");
  d.out.run = variant.run;
  d.out.cls = Class::mma;
  d.out.flow = Flow::warp_sync;
  int at = 0, operand = 0;
  for (int count : {variant.num_c, variant.num_a, variant.num_b, variant.num_c}) {
    decode_registers(d, operand++, count, variant.wide, d.out.op + at);
    at += count;
  }
}

}  // namespace lumos::ptxvm
