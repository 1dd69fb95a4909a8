// What the parser makes of PTX text: names resolved to numbers, calls still in place.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace lumos::ptxvm {

// Types as PTX spells them. Registers are declared with the first six kinds of size; the rest occur as modifiers.
enum class Type : uint8_t {
  none,
  pred,
  b8,
  b16,
  b32,
  b64,
  u8,
  u16,
  u32,
  u64,
  s8,
  s16,
  s32,
  s64,
  f16,
  f16x2,
  bf16,
  bf16x2,
  tf32,
  f32,
  f64,
  e4m3x2,
  e5m2x2,
  b128
};

Type type_named(const std::string& word);  // Type::none if it names no type
int size_bytes(Type type);                 // of one value; 0 for none and pred

struct Location {
  int ptx_line = 0;
  int file = 0, line = 0;  // source, as -lineinfo tells; 0 = unknown
};

struct Operand {
  enum class Kind : uint8_t {
    reg,      // reg, negated for !%p
    integer,  // bits: any integer immediate, sign-extended
    real,     // bits: an IEEE double; 0fXXXXXXXX and 0dXXXXXXXXXXXXXXXX and decimals alike
    special,  // name: "%tid.x", "%laneid", ...
    symbol,   // name + bits: address of a variable, or a function
    label,    // name
    address,  // [reg + bits], [name + bits] or [bits]
    vector,   // elements: {a, b, c, d}
    pair,     // elements: a|b, two destinations of one instruction
    sink      // _
  };
  Kind kind = Kind::sink;
  int reg = -1;  // virtual register; of an address its base, -1 = none
  bool negated = false;
  int64_t bits = 0;
  std::string name;
  std::vector<Operand> elements;
};

// A call has three operands: a vector of its results, the symbol of the function, a vector of its arguments. Elements
// of the vectors are symbols of local variables, or registers and immediates.
struct Instruction {
  std::string name;                    // "ld"
  std::vector<std::string> modifiers;  // "global", "nc", "v4", "u32"
  std::vector<Operand> operands;       // destinations first, as written
  int guard = -1;                      // virtual predicate register of @%p, -1 = none
  bool guard_negated = false;
  Location location;

  std::string opcode() const;            // as written: "ld.global.nc.v4.u32"
  bool has(const char* modifier) const;  // one of the modifiers
  Type type(int from_last = 0) const;    // the modifiers that are types, counted from the last
};

struct Variable {
  std::string name;
  int64_t num_bytes = 0, align = 1;
  std::vector<uint8_t> initial;  // empty = zeros
  // To the 8 initial bytes at .first the generic address of symbol .second is added; it may be a function.
  std::vector<std::pair<int64_t, std::string>> pointers;
  bool dynamic = false;  // extern .shared ...[]: begins after all other variables
};

struct Register {
  std::string name;
  Type type = Type::none;
};

struct Function {
  std::string name;
  bool is_kernel = false, has_body = false;
  std::vector<Variable> params;   // of a kernel: its arguments; of a function: formal parameters
  std::vector<Variable> results;  // of a function
  std::vector<Register> registers;
  std::vector<Variable> shared, local;  // declared in the body; .param variables of calls count as local
  std::vector<Instruction> instructions;
  std::unordered_map<std::string, int> labels;  // name -> index of the instruction that follows, or their number
  std::unordered_map<std::string, std::vector<std::string>> branch_targets;  // tables of brx.idx
  int max_threads = 0;                                                       // .maxntid, 0 = not said
};

struct Program {
  std::vector<Variable> global, constant, shared;  // at file scope
  std::unordered_map<std::string, Function> functions;
  std::unordered_map<int, std::string> files;  // of Location::file
};

// Throws Error("PTX line 12: ...").
Program parse(const std::string& text);

// Replaces every call of a function of the program by its body, and makes local accesses of those to .param variables
// that are no arguments of the kernel. Throws Error where a function calls itself. Calls of functions without a body
// stay.
void inline_calls(const Program& program, Function* kernel);

}  // namespace lumos::ptxvm
