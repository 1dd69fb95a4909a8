// A thread block: its warps, its barriers, and the order in which they run.
#pragma once

#include <cstdint>
#include <vector>

#include "ptxvm/control.h"
#include "ptxvm/kernel.h"
#include "ptxvm/machine.h"

namespace lumos::ptxvm {

// splitmix64: the order of blocks and warps of a permuted schedule.
struct Schedule {
  uint64_t state = 0;
  bool permute = false;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  uint32_t below(uint32_t limit) { return static_cast<uint32_t>(next() % limit); }
};

struct Barrier {
  uint32_t expected_threads = 0;  // 0 = nobody has arrived
  bool of_all = false;            // without a number: of all threads that have not ended
  uint32_t arrived_threads = 0;
  uint32_t arrived_warps = 0;            // set of warps, for the clocks of shared memory
  uint32_t waiting_warps = 0;            // those that go on when it completes
  uint32_t num_true = 0, num_lanes = 0;  // bar.red
};

struct Block {
  static constexpr int kNumBarriers = 16;

  Block(const Kernel& kernel, const std::vector<Inst>& code, const LaunchConfig& config, Counter* counters);
  void start(int64_t linear_index, GlobalRaces* races);
  // Runs until every warp has ended or `quantum` instructions have passed; true when the block has ended.
  bool run(Schedule* schedule, uint64_t quantum);

  // For Flow::barrier; `present` = all live lanes of the warp. True if the warp may go on at once.
  bool arrive(Warp* warp, const Inst& inst, uint32_t present);

  const Kernel& kernel;
  const std::vector<Inst>& code;
  const LaunchConfig& config;
  Counter* counters;  // [instructions]
  Dim3 index;
  BlockMemory memory;
  std::vector<Warp> warps;
  Barrier barriers[kNumBarriers];

 private:
  enum class State { running, waiting, ended };
  State run_warp(Warp* warp, uint64_t quantum);
  bool synchronise(Warp* warp, const Inst& inst, int32_t pc, uint32_t arrived);
  void check_tracked(Warp* warp, const Inst& inst, uint32_t active, uint32_t mask);
  bool release_if_complete(int barrier);
  [[noreturn]] void report(const Warp& warp, int32_t pc, uint32_t mask, const Fault& fault) const;
  [[noreturn]] void report_deadlock() const;

  std::vector<uint8_t> files_;  // register files of all warps
  uint32_t initial_lanes_(int warp) const;
};

}  // namespace lumos::ptxvm
