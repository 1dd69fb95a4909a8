// How attention is cut into items for the thread pool.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lumos {

// Blocks of consecutive tiles; the tiles of a block share each packed tile of the other side. All sizes give equal
// bits.
struct TileBlocks {
  int64_t num_tiles, block_tiles, num_blocks, num_heads;

  TileBlocks(int64_t tiles, int64_t heads, int64_t max_block_tiles, int num_threads)
      : num_tiles(tiles), num_heads(heads) {
    // Few, to reuse what is packed, yet several for each thread; as equal as can be.
    constexpr int64_t kItemsPerThread = 4;
    const int64_t wanted = kItemsPerThread * std::max(num_threads, 1) / std::max<int64_t>(heads, 1);
    const int64_t most = std::max<int64_t>(wanted, (tiles + max_block_tiles - 1) / max_block_tiles);
    block_tiles = std::max<int64_t>((tiles + most - 1) / std::max<int64_t>(most, 1), 1);
    num_blocks = (tiles + block_tiles - 1) / block_tiles;
  }

  int64_t num_items() const { return num_blocks * num_heads; }
  int64_t head(int64_t item) const { return item % num_heads; }
  // The last tiles first: under a causal layout they see the most keys.
  int64_t begin(int64_t item) const { return (num_blocks - 1 - item / num_heads) * block_tiles; }
  int64_t end(int64_t item) const { return std::min(begin(item) + block_tiles, num_tiles); }
};

}  // namespace lumos
