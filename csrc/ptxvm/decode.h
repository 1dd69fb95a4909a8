// From a parsed instruction to a handler with rows. One decoder for each first word of an opcode.
#pragma once

#include "ptxvm/fault.h"
#include "ptxvm/instruction.h"
#include "ptxvm/syntax.h"

namespace lumos::ptxvm {

// Where operands live. Kept by the kernel that is being decoded.
class Rows {
 public:
  virtual ~Rows() = default;
  virtual uint32_t of_register(int reg) = 0;
  virtual uint32_t of_constant(uint64_t bits,
                               int row_bytes) = 0;           // 4: row of uint32_t, 8: row of uint64_t, 1: predicate
  virtual uint32_t of_special(const std::string& name) = 0;  // 0 if there is none of that name
  virtual uint64_t address_of(const std::string& name) = 0;  // of a variable, in its space
  virtual uint32_t of_symbol(const std::string& name) = 0;  // row of uint64_t: the address in the space of the variable
  virtual uint32_t scratch(int row_bytes) = 0;              // a row that nobody reads, for the sink _
  virtual int symbol_space(const std::string& name) = 0;    // Space of memory.h
  virtual Type type_of(int reg) = 0;
  virtual int label(const std::string& name) = 0;
};

struct Decoding {
  const Instruction& source;
  Rows& rows;
  Inst& out;

  // Row of operand i, for a value of `type`: a register as it is (it may be wider than the type), an immediate
  // converted to it. `element` picks from a vector or a pair.
  uint32_t row(int i, Type type, int element = -1) const;
  uint32_t row(const Operand& operand, Type type) const;
  // Whether the register of operand i (or its element) is a row of 64 bits.
  bool is_wide(int i, int element = -1) const;
  int num_elements(int i) const;  // 1 unless it is a vector
  bool has(const char* modifier) const { return source.has(modifier); }
  Type type(int from_last = 0) const { return source.type(from_last); }
  // Throws Error naming opcode and line; for modifiers that a decoder does not know.
  [[noreturn]] void unknown() const;
  [[noreturn]] void wrong(const char* what) const;
  // unknown() if there is a modifier that is no type and not among those given.
  void allow(std::initializer_list<const char*> modifiers) const;
};

using Decoder = void (*)(const Decoding&);

struct NamedDecoder {
  const char* name;  // first word of the opcode
  Decoder decode;
};

// One table a file of operations, each ended by {nullptr, nullptr}.
extern const NamedDecoder kIntegerDecoders[];  // ops_integer.cpp: add ... for integers
extern const NamedDecoder kBitDecoders[];      // ops_bits.cpp: logic, shifts, fields, counts, prmt
extern const NamedDecoder kFloatDecoders[];  // ops_float.cpp: f32, f64, f16, bf16 and packed arithmetic, approximations
extern const NamedDecoder kConvertDecoders[];  // ops_convert.cpp: cvt, and cvt.pack
extern const NamedDecoder kMoveDecoders[];     // ops_move.cpp: mov, cvta, isspacep, selp, slct
extern const NamedDecoder kCompareDecoders[];  // ops_compare.cpp: setp, set
extern const NamedDecoder kWarpDecoders[];     // ops_warp.cpp: shfl, vote, match, redux, activemask, elect
extern const NamedDecoder kMatrixDecoders[];   // ops_matrix.cpp: mma, ldmatrix, stmatrix, movmatrix
extern const NamedDecoder kMemoryDecoders[];   // ops_memory.cpp: ld, st, ldu, prefetch
extern const NamedDecoder kAtomicDecoders[];   // ops_atomic.cpp: atom, red, membar, fence
extern const NamedDecoder kAsyncDecoders[];    // ops_async.cpp: cp.async and its groups
extern const NamedDecoder
    kControlDecoders[];  // ops_control.cpp: bra, brx, exit, ret, trap, bar, barrier, call, nanosleep

// add, sub, mul, ... exist for integers and floats: the table of integers has them and hands floats on to these.
void decode_float(const Decoding& d);

// Decodes `d.source` by these tables. Throws Error for an opcode that none of them has.
void decode(const Decoding& d);

// How many of the first operands are written: 0 for st, red, bar and their like.
int num_destinations(const Instruction& instruction);

}  // namespace lumos::ptxvm
