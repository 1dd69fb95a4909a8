// A decoded instruction and the registers of a warp: what the handlers of operations see.
//
// Every operand is a row: one value for each of the 32 lanes, at a byte offset in the warp's register file. Registers
// of 8, 16 and 32 bits are rows of 32 uint32_t (upper bits zero), those of 64 bits rows of 32 uint64_t, predicates a
// single uint32_t of 32 bits. Immediates, addresses of variables and special registers are rows too, filled before the
// kernel runs; so handlers need not care what an operand is. A handler works on the lanes of `mask` only and leaves the
// rest of its destination as it was.
#pragma once

#include <cstdint>
#include <cstring>

namespace lumos::ptxvm {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

struct Warp;
struct Inst;
using Handler = void (*)(Warp& warp, const Inst& inst, uint32_t mask);

// What the counters count it as.
enum class Class : uint8_t {
  mma,
  matrix_load,
  fp32,
  fp64,
  half,
  special,
  integer,
  convert,
  move,
  compare,
  shared_load,
  shared_store,
  global_load,
  global_store,
  local,
  constant,
  async_copy,
  atomic,
  warp,
  barrier,
  control,
  count
};
const char* class_name(Class c);

// What the scheduler does itself; everything else is a handler's.
enum class Flow : uint8_t { none, branch, branch_table, exit, barrier, warp_sync, call };

struct Inst {
  static constexpr int kMaxOperands = 20;
  Handler run = nullptr;
  uint32_t op[kMaxOperands] = {};  // rows; the decoder chooses their order, destinations first
  int64_t offset = 0;              // of an address operand
  uint64_t aux = 0;                // whatever the decoder wants to tell its handler
  uint8_t count = 1;               // elements of a vector operand
  uint8_t width = 4;               // bytes of an element in memory
  uint8_t wide = 0;                // bit i: register of element i is a row of 64 bits
  uint8_t flags = 0;               // whatever the decoder wants to tell its handler
  Flow flow = Flow::none;
  Class cls = Class::integer;
  bool guard_negated = false;
  uint32_t guard = 0;        // row of the predicate, 0 = none
  uint32_t member_mask = 0;  // Flow::warp_sync: row of the lanes that must take part; 0 = all that have not ended
  int32_t target = -1;       // Flow::branch: index of an instruction
  int32_t index = 0;         // its own
  int32_t tracked = -1;      // entry in Kernel::tracked, -1 = all its registers are surely initialised
};

struct Block;

struct Warp {
  uint8_t* registers = nullptr;
  Block* block = nullptr;
  int index = 0;       // in its block
  uint32_t live = 0;   // lanes that have not ended
  uint32_t carry = 0;  // condition code of add.cc and its like, one bit a lane
  // Scheduling, see block.cpp.
  int32_t pc[kLanes];
  uint32_t waiting = 0;  // lanes that wait inside a .sync instruction for others of their warp
  int barrier = -1;      // the barrier that the whole warp waits for
  uint64_t num_executed = 0;

  template <class T>
  T* row(uint32_t offset) {
    return reinterpret_cast<T*>(registers + offset);
  }
  uint32_t& predicate(uint32_t offset) { return *row<uint32_t>(offset); }
};

template <class F>
inline void for_lanes(uint32_t mask, F&& f) {
  for (; mask; mask &= mask - 1) f(__builtin_ctz(mask));
}

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace lumos::ptxvm
