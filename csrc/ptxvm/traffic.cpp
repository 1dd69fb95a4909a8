#include "ptxvm/traffic.h"

#include <algorithm>

namespace lumos::ptxvm {

Shape shape_of(uint32_t mask, const uint64_t* addresses, int lane_bytes) {
  if (mask != kAllLanes) return Shape::scattered;
  uint64_t contiguous = 0, same = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    contiguous |= addresses[lane] ^ (addresses[0] + lane * lane_bytes);
    same |= addresses[lane] ^ addresses[0];
  }
  return !contiguous ? Shape::contiguous : !same ? Shape::same : Shape::scattered;
}

void count_sectors(Shape shape, uint32_t mask, const uint64_t* addresses, Counter* counter) {
  constexpr int kSectorBytes = 32;
  if (shape == Shape::contiguous) {
    counter->sectors += addresses[kLanes - 1] / kSectorBytes - addresses[0] / kSectorBytes + 1;
    return;
  }
  uint64_t sectors[kLanes];
  int count = 0;
  bool ascend = true;
  for_lanes(shape == Shape::same ? 1 : mask, [&](int lane) {
    const uint64_t sector = addresses[lane] / kSectorBytes;
    if (count && sectors[count - 1] == sector) return;
    ascend = ascend && (!count || sectors[count - 1] < sector);
    sectors[count++] = sector;
  });
  if (!ascend) {
    std::sort(sectors, sectors + count);
    count = static_cast<int>(std::unique(sectors, sectors + count) - sectors);
  }
  counter->sectors += count;
}

void count_wavefronts(Shape shape, uint32_t mask, const uint64_t* offsets, int lane_bytes, Counter* counter) {
  const int unit_log2 = __builtin_ctz(std::max(4, lane_bytes)), num_banks = 128 >> unit_log2;
  for (int first = 0; first < kLanes; first += num_banks) {
    const uint32_t group = mask & (kAllLanes >> (kLanes - num_banks) << first);
    if (!group) continue;
    uint32_t words[kLanes][kLanes];  // [banks][distinct ones]
    uint8_t counts[kLanes] = {};
    int most = 1;
    if (shape == Shape::scattered) {
      for_lanes(group, [&](int lane) {
        const auto word = static_cast<uint32_t>(offsets[lane] >> unit_log2), bank = word & (num_banks - 1);
        const int count = counts[bank];
        for (int i = 0; i < count; ++i) {
          if (words[bank][i] == word) return;
        }
        words[bank][count] = word;
        counts[bank] = static_cast<uint8_t>(count + 1);
        most = std::max(most, count + 1);
      });
    }
    counter->wavefronts += most;
    ++counter->ideal_wavefronts;
  }
}

}  // namespace lumos::ptxvm
