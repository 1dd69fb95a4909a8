// The parts of host memory that kernels may touch as global, constant and parameter memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "ptxvm/machine.h"

namespace lumos::ptxvm {

struct Buffer {
  const uint8_t* begin = nullptr;
  size_t num_bytes = 0;
  std::string name;
  bool writable = false;
  std::unique_ptr<uint32_t, decltype(&std::free)> histories{nullptr, std::free};  // of its granules: see GlobalRaces

  const uint8_t* end() const { return begin + num_bytes; }
  bool holds(uint64_t address, uint64_t bytes) const {
    const uint64_t offset = address - reinterpret_cast<uint64_t>(begin);
    return offset < num_bytes && bytes <= num_bytes - offset;
  }
};

// The kernel's arguments, until the next call: a read-only buffer.
void set_parameter_range(const void* begin, size_t num_bytes);

// The buffer that holds all of these bytes, or nullptr. slot: lookups of the same slot mostly find the same buffer.
Buffer* find_buffer(uint64_t address, uint64_t num_bytes, uint32_t slot);
// For a message: "at buffer 'q' + 4096, which has 4096 bytes", or where there is none near, the address.
std::string place_in_buffers(uint64_t address);

// Forgets what a launch recorded.
void clear_histories();

}  // namespace lumos::ptxvm
