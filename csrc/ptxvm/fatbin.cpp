// Layout, little endian, as nvcc 11 to 13 write it:
//   wrapper   u32 magic, u32 version, u64 address of the container, u64 unused          (fatbinary_section.h)
//   container u32 magic, u16 version, u16 bytes of this header, u64 bytes of the entries that follow
//   entry     u16 kind, u16 version, u32 bytes of this header, u64 bytes of the contents that follow it, u32 bytes of
//             them that are compressed data (0 = plain), ...
#include "ptxvm/fatbin.h"

#include <cstdint>
#include <cstring>

#include "ptxvm/fault.h"

namespace lumos::ptxvm {

constexpr uint32_t kWrapperMagic = 0x466243b1, kContainerMagic = 0xba55ed50;
constexpr uint16_t kKindPtx = 1;

template <class T>
static T read(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

std::string ptx_of_fat_binary(const void* fat_binary) {
  const auto* wrapper = static_cast<const uint8_t*>(fat_binary);
  if (read<uint32_t>(wrapper) != kWrapperMagic) throw Error("fat binary: wrong magic number of the wrapper");
  const auto* container = read<const uint8_t*>(wrapper + 8);
  if (read<uint32_t>(container) != kContainerMagic) throw Error("fat binary: wrong magic number of the container");

  const uint8_t* entry = container + read<uint16_t>(container + 6);
  const uint8_t* const end = entry + read<uint64_t>(container + 8);
  while (entry < end) {
    const uint8_t* contents = entry + read<uint32_t>(entry + 4);
    const uint64_t num_bytes = read<uint64_t>(entry + 8);
    if (read<uint16_t>(entry) == kKindPtx) {
      if (read<uint32_t>(entry + 16) != 0)
        throw Error("fat binary: its PTX is compressed; compile with nvcc --no-compress");
      const auto* text = reinterpret_cast<const char*>(contents);
      return std::string(text, strnlen(text, num_bytes));  // padded with zeros
    }
    entry = contents + num_bytes;
  }
  throw Error("fat binary: it holds no PTX; compile with nvcc -gencode arch=compute_80,code=compute_80");
}

}  // namespace lumos::ptxvm
