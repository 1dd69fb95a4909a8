#include "ptxvm/buffers.h"

#include <algorithm>
#include <array>

#include "ptxvm/fault.h"

namespace lumos::ptxvm {
namespace {

constexpr uint32_t kSlots = 64;

struct Buffers {
  std::vector<std::unique_ptr<Buffer>> sorted;  // by address; they do not overlap
  Buffer parameters;
  std::array<Buffer*, kSlots> last = {};  // what each slot found
};

Buffers& all() {
  static auto* const buffers = new Buffers;
  return *buffers;
}

}  // namespace

void add_buffer(const void* begin, size_t num_bytes, const std::string& name, bool writable) {
  if (!num_bytes) return;
  auto added = std::make_unique<Buffer>();
  added->begin = static_cast<const uint8_t*>(begin);
  added->num_bytes = num_bytes;
  added->name = name;
  added->writable = writable;
  auto& sorted = all().sorted;
  // Views of the same bytes become one buffer, so that accesses through either meet.
  auto it = std::find_if(sorted.begin(), sorted.end(), [&](auto& b) { return b->end() > added->begin; });
  while (it != sorted.end() && (*it)->begin < added->end()) {
    const uint8_t* const end = std::max(added->end(), (*it)->end());
    if ((*it)->num_bytes >= added->num_bytes) added->name = (*it)->name;
    added->begin = std::min(added->begin, (*it)->begin);
    added->num_bytes = static_cast<size_t>(end - added->begin);
    added->writable |= (*it)->writable;
    it = sorted.erase(it);
  }
  sorted.insert(it, std::move(added));
  all().last = {};
}

void clear_buffers() {
  all().sorted.clear();
  all().last = {};
}

void set_parameter_range(const void* begin, size_t num_bytes) {
  Buffer& parameters = all().parameters;
  parameters.begin = static_cast<const uint8_t*>(begin);
  parameters.num_bytes = num_bytes;
  parameters.name = "parameters";
  all().last = {};
}

Buffer* find_buffer(uint64_t address, uint64_t num_bytes, uint32_t slot) {
  Buffer*& last = all().last[slot % kSlots];
  if (last && last->holds(address, num_bytes)) return last;
  const auto& sorted = all().sorted;
  const auto it = std::upper_bound(sorted.begin(), sorted.end(), address, [](uint64_t a, const auto& buffer) {
    return a < reinterpret_cast<uint64_t>(buffer->begin);
  });
  Buffer* const found = it == sorted.begin() ? &all().parameters : std::prev(it)->get();
  for (Buffer* buffer : {found, &all().parameters}) {
    if (buffer->holds(address, num_bytes)) return last = buffer;
  }
  return nullptr;
}

std::string place_in_buffers(uint64_t address) {
  constexpr int64_t kNear = int64_t{1} << 32;
  const Buffer* nearest = nullptr;
  int64_t offset = 0, distance = kNear;
  auto consider = [&](const Buffer& buffer) {
    const auto from_begin = static_cast<int64_t>(address - reinterpret_cast<uint64_t>(buffer.begin));
    const auto from_end = from_begin - static_cast<int64_t>(buffer.num_bytes);
    const int64_t d = from_begin < 0 ? -from_begin : std::max<int64_t>(from_end, 0);
    if (!buffer.num_bytes || d >= distance) return;
    nearest = &buffer, offset = from_begin, distance = d;
  };
  for (const auto& buffer : all().sorted) consider(*buffer);
  consider(all().parameters);
  if (!nearest) return format("at address 0x%llx, which is in no buffer", static_cast<unsigned long long>(address));
  return format("at buffer '%s' %c %lld, which has %zu bytes", nearest->name.c_str(), offset < 0 ? '-' : '+',
                static_cast<long long>(offset < 0 ? -offset : offset), nearest->num_bytes);
}

void clear_histories() {
  for (const auto& buffer : all().sorted) buffer->histories.reset();
}

}  // namespace lumos::ptxvm
