// The parts of host memory that kernels may touch as global, constant and parameter memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ptxvm/machine.h"

namespace lumos::ptxvm {

struct Buffer {
  const uint8_t* begin;
  size_t num_bytes;
  std::string name;
  bool writable;
  std::unique_ptr<uint32_t, void (*)(void*)> histories{nullptr, nullptr};  // of its granules: see GlobalRaces

  // Of bytes that touch nothing else, if there are `bytes` of them from `address` on.
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
