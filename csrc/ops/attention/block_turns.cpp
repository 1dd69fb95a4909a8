#include "ops/attention/block_turns.h"

#include <thread>

namespace lumos {

BlockTurns::BlockTurns(int64_t num_heads, int64_t num_blocks, int64_t num_tiles)
    : num_blocks_(num_blocks), lowest_(new std::atomic<int64_t>[num_heads * num_blocks]) {
  for (int64_t i = 0; i < num_heads * num_blocks; ++i) lowest_[i].store(num_tiles, std::memory_order_relaxed);
}

BlockTurn::BlockTurn(BlockTurns& turns, int64_t head, int64_t block)
    : lowest_(turns.lowest_.get() + head * turns.num_blocks_), block_(block) {}

void BlockTurn::wait(int64_t tile) {
  for (int64_t block = first_unfinished_; block < block_; ++block) {
    int64_t lowest;
    while ((lowest = lowest_[block].load(std::memory_order_acquire)) > tile) std::this_thread::yield();
    if (lowest == 0 && block == first_unfinished_) ++first_unfinished_;
  }
}

void BlockTurn::pass(int64_t tile) { lowest_[block_].store(tile, std::memory_order_release); }

}  // namespace lumos
