// Which keys of a tile the 32 query rows of a warp see, as each lane of forward_rows.cuh needs it: of its rows
// 16 m + 8 r + lane / 4, the keys 8 n + lane % 4 * 2 + c.
#pragma once

#include "ops/attention/tile_visibility.cuh"

namespace lumos {

struct TileMask {
  uint32_t bits[2][2][2];  // [m][r], 32 keys each: key 8 n + lane % 4 * 2 + c at bit 8 n + c
  uint32_t all[2];         // keys that every row sees, 32 each
  bool equal;              // all rows see the same

  __device__ bool sees(int m, int r, int n, int c) const { return bits[m][r][n / 4] >> (n % 4 * 8 + c) & 1; }

  // Keys 16 j to 16 j + 15.
  __device__ bool every_row_sees_all_of(int j) const {
    const uint32_t group = 0xffffu << j % 2 * 16;
    return (all[j / 2] & group) == group;
  }

  // Every row sees every key; bits stays undefined.
  __device__ void set_whole() {
    all[0] = all[1] = ~0u;
    equal = true;
  }

  // Every row sees the first num_keys keys, of which there are 1 to 64.
  __device__ void set_first(int num_keys) {
    equal = true;
    all[0] = ~0u >> max(32 - num_keys, 0);
    all[1] = num_keys > 32 ? ~0u >> (64 - num_keys) : 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) bits[i / 2][i % 2][half] = all[half] >> threadIdx.x % 4 * 2;
    }
  }

  // seen: of row `lane`. The whole warp calls it.
  __device__ void set_rows(uint64_t seen) {
    const int lane = threadIdx.x % 32;
    equal = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t word = uint32_t(seen >> 32 * half);
      all[half] = __reduce_and_sync(~0u, word);
#pragma unroll
      for (int i = 0; i < 4; ++i) bits[i / 2][i % 2][half] = __shfl_sync(~0u, word, 8 * i + lane / 4) >> lane % 4 * 2;
    }
  }
};

}  // namespace lumos
