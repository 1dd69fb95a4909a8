// What stops a kernel, and what a text cannot be.
#pragma once

#include <stdexcept>
#include <string>

namespace lumos::ptxvm {

// The text or the call is not usable: bad PTX, unknown opcode, wrong arguments.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A kernel did what it must not do. Handlers throw it with the lane; run() adds kernel, source line, block and thread.
struct Fault : std::runtime_error {
  // kind: "out of bounds", "misaligned", "uninitialised", "race", "barrier divergence", "deadlock", "unfinished copy",
  // "undefined shuffle", "trap", "not implemented".
  Fault(std::string kind, std::string message, int lane = -1)
      : std::runtime_error(message), kind(std::move(kind)), lane(lane) {}
  std::string kind;
  int lane;              // -1 = all lanes that were active; of an unfinished copy: the thread of the block
  int instruction = -1;  // Inst::index, where it is not the one that was running
};

std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

}  // namespace lumos::ptxvm
