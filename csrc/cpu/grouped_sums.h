// Sums over many rows without one long chain, which would round several times as much as a sum in pairs.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lumos {

// Adds the terms of rows begin .. end - 1 to sums [width]: first within groups of rows, one after the other, by
// add(group_begin, group_end, group_sums), then the groups. group_sums: [width], scratch.
template <class Add>
void add_in_groups(int64_t begin, int64_t end, int64_t width, float* sums, float* group_sums, const Add& add) {
  constexpr int64_t kGroupRows = 8;
  for (int64_t group = begin; group < end; group += kGroupRows) {
    std::fill_n(group_sums, width, 0.0f);
    add(group, std::min(group + kGroupRows, end), group_sums);
    for (int64_t i = 0; i < width; ++i) sums[i] += group_sums[i];
  }
}

}  // namespace lumos
