// The order in which blocks of key tiles add to the sums of a query tile: that of the blocks, whatever the number of
// threads. So grad_q needs neither atomics nor a second pass, and has the same bits always.
//
// Every block walks the query tiles downwards. Blocks must be started in increasing order, each on a thread of its own:
// then the first unfinished one never waits, and the others follow it a tile behind.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace lumos {

class BlockTurns {
 public:
  BlockTurns(int64_t num_heads, int64_t num_blocks, int64_t num_tiles);

 private:
  friend class BlockTurn;
  const int64_t num_blocks_;
  const std::unique_ptr<std::atomic<int64_t>[]> lowest_;  // [heads, blocks]: done with this tile and those above it
};

// The turn of one block of one key head. Done with every tile when it is destroyed.
class BlockTurn {
 public:
  BlockTurn(BlockTurns& turns, int64_t head, int64_t block);
  ~BlockTurn() { pass(0); }
  BlockTurn(const BlockTurn&) = delete;
  BlockTurn& operator=(const BlockTurn&) = delete;

  // Returns once all earlier blocks are done with `tile`.
  void wait(int64_t tile);
  // This block is done with `tile` and those above it.
  void pass(int64_t tile);

 private:
  std::atomic<int64_t>* lowest_;  // of the blocks of this head
  int64_t first_unfinished_ = 0;
  const int64_t block_;
};

}  // namespace lumos
