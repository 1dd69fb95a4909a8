// Shared memory of a block: its bytes, and what was done to every granule of them.
//
// A granule has a state: untouched, waiting for the bytes of a cp.async, settled (written, and whatever was done to it
// is ordered before everything to come), or the history of its accesses since then. Warps are ordered by barriers only.
// A barrier of the whole block settles all of memory, at no cost: histories are numbered upwards, and those below a
// bound count as settled.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <vector>

#include "ptxvm/history.h"
#include "ptxvm/instruction.h"

namespace lumos::ptxvm {

class SharedMemory {
 public:
  // For the next block. granule_bytes: 1, 2 or 4; no access is narrower.
  void reset(uint32_t num_bytes, uint32_t num_warps, uint32_t granule_bytes, bool check_races);

  // A barrier has released these warps; warps that have ended count as having arrived at a barrier of the whole block.
  void synchronise(uint32_t warps);
  // Throws a Fault if the bytes of a copy have not been waited for; its lane is the thread in the block.
  void end_of_kernel() const;

  uint32_t num_bytes() const { return num_bytes_; }
  uint8_t* bytes() { return bytes_.data(); }

  // What the lanes of a plain store write, lane_bytes each, one lane's behind the other's.
  struct Written {
    const uint8_t* data = nullptr;
    const uint64_t* offsets = nullptr;
    uint32_t mask = 0;
    int lane_bytes = 0;
  };
  // Of the next access. A store that leaves every byte as another warp wrote it is then no race with that
  // store. Compilers let all warps store what all of them know; on hardware that does no harm.
  void announce(const Written& written) { written_ = written; }

  // Checks and records the accesses of these lanes to `row_bytes` each, which lie in memory and are aligned.
  void access(int warp, Kind kind, uint32_t mask, const uint64_t* offsets, uint32_t row_bytes) {
    update_granules(
        states_.data(), granule_log2_, mask, offsets, row_bytes,
        [&](uint32_t state, const uint32_t* granule, int lane) { return after(state, warp, kind, granule, lane); });
  }

  // cp.async: the source has been read, the bytes are to arrive at the wait of the lane that issued it.
  void issue_copy(int warp, const Inst& inst, uint32_t mask, const uint64_t* offsets, int num_bytes,
                  const uint8_t (*data)[16]);
  void commit_copies(int warp, uint32_t mask);
  // Completes all groups of these lanes but the last `allowed`.
  void wait_copies(int warp, uint32_t mask, uint32_t allowed);
  // As wait_copies(..., 0), and those that are in no group yet.
  void wait_all_copies(int warp, uint32_t mask) {
    commit_copies(warp, mask);
    wait_copies(warp, mask, 0);
  }

 private:
  enum State : uint32_t { kUntouched, kPending, kSettled, kFirstHistory };
  static constexpr uint32_t kMaxWarps = 32;

  // What the lanes of `mask` copy with one instruction, all into the same group.
  struct Copy {
    uint32_t mask, group;
    int32_t instruction;  // Inst::index
    int num_bytes;
    uint64_t offsets[kLanes];
    uint8_t data[kLanes][16];
    template <int kBytes>
    void arrive(uint32_t lanes, uint8_t* memory) const;
  };
  struct WarpState {
    uint32_t clock;
    std::array<uint32_t, kMaxWarps> known;  // clocks of other warps that this one is ordered after
    Steps steps;
    std::deque<Copy> copies;
    uint32_t groups[kLanes];  // committed by each lane
  };

  uint32_t after(uint32_t state, int warp, Kind kind, const uint32_t* granule, int lane) {
    if (state < oldest_ && state > kSettled) state = kSettled;
    Steps::Step& step = warps_[warp].steps.of(kind, state);
    if (step.from == state) return step.to;
    const uint32_t to = checked(state, warp, kind, granule, lane);
    if (!repeats_) step = {state, to};  // whether bytes are repeated depends on the bytes
    repeats_ = false;
    return to;
  }
  bool repeats_bytes() const;
  // What the access makes of the state of the granule; throws Fault where it may not be.
  uint32_t checked(uint32_t state, int warp, Kind kind, const uint32_t* granule, int lane);

  uint32_t num_bytes_ = 0, num_warps_ = 0, granule_log2_ = 2;
  bool check_races_ = true;
  std::vector<uint8_t> bytes_;
  std::vector<uint32_t> states_;
  std::vector<WarpState> warps_;
  Written written_;
  bool repeats_ = false;  // the last checked() found a store of the bytes that lay there
  Histories histories_{kFirstHistory};
  uint32_t oldest_ = kFirstHistory;  // histories below it count as settled
};

}  // namespace lumos::ptxvm
