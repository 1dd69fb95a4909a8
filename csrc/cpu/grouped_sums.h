// Sums over many rows without one long chain, which would round several times as much as a sum in pairs.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lumos {

// Adds the terms of rows begin .. end - 1 to sums [width]: in fp32 within groups of rows, by
// add(group_begin, group_end, group_sums), and over the groups in fp64. group_sums: [width], scratch.
template <class Add>
void add_in_groups(int64_t begin, int64_t end, int64_t group_rows, int64_t width, double* sums, float* group_sums,
                   const Add& add) {
  for (int64_t group = begin; group < end; group += group_rows) {
    std::fill_n(group_sums, width, 0.0f);
    add(group, std::min(group + group_rows, end), group_sums);
    for (int64_t i = 0; i < width; ++i) sums[i] += group_sums[i];
  }
}

}  // namespace lumos
