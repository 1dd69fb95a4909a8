// What has been done to a granule of memory, as far as a later access could race with it.
//
// The history of a granule is a number: a node of a persistent list whose nodes are the accesses that no later one has
// made irrelevant (FastTrack's last write and reads). Granules that went through the same accesses share their list, so
// a table of granules is one uint32_t each, and the step "history, access -> history" can be remembered: see Steps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "ptxvm/instruction.h"

namespace lumos::ptxvm {

// One bit each. Strong are loads and stores that are volatile, relaxed, acquire or release; atomic ones are strong,
// too.
enum Kind : uint8_t { kRead = 1, kWrite = 2, kStrongRead = 4, kStrongWrite = 8, kAtomic = 16 };
constexpr int kKinds = 5;
const char* kind_name(Kind kind);
constexpr bool is_write(Kind kind) { return kind & (kWrite | kStrongWrite | kAtomic); }

// Two accesses conflict if one of them writes and one of them is not strong.
constexpr uint8_t conflicts_of(Kind kind) {
  return kind == kWrite        ? kRead | kWrite | kStrongRead | kStrongWrite | kAtomic
         : kind == kRead       ? kWrite | kStrongWrite | kAtomic
         : kind == kStrongRead ? kWrite
                               : kRead | kWrite;
}

struct PastAccess {
  uint32_t before;  // the history it came upon, 0 = none
  uint32_t agent;   // warp or block
  uint32_t clock;   // of the agent, when it did it
  Kind kind;
  uint8_t kinds;  // of all from here on
};

class Histories {
 public:
  explicit Histories(uint32_t first) : first_(first) {}
  uint32_t next() const { return first_ + uint32_t(nodes_.size()); }
  // Forgets all of them; the next one gets the number `first`.
  void restart(uint32_t first) {
    first_ = first;
    nodes_.clear();
  }

  // The history after an access of `kind` by `agent` at `clock`, or 0 where it races with *conflict.
  // ordered(agent, clock): whether what that agent did at that clock comes before the access. Histories below `oldest`
  // have nothing of this agent, and are not searched for what could be dropped.
  template <class Ordered>
  uint32_t after(uint32_t history, Kind kind, uint32_t agent, uint32_t clock, uint32_t oldest, const Ordered& ordered,
                 PastAccess* conflict);

  // The history with one more access in front, which is compared with nothing.
  uint32_t with(uint32_t history, Kind kind, uint32_t agent, uint32_t clock) {
    const PastAccess& last = node(history);
    if (last.agent == agent && last.clock == clock && last.kind == kind) return history;
    return push(history, agent, clock, kind);
  }

 private:
  const PastAccess& node(uint32_t history) const { return nodes_[history - first_]; }
  uint32_t push(uint32_t before, uint32_t agent, uint32_t clock, Kind kind) {
    const auto kinds = static_cast<uint8_t>(kind | (before ? node(before).kinds : 0));
    nodes_.push_back({before, agent, clock, kind, kinds});
    return next() - 1;
  }

  uint32_t first_;
  std::vector<PastAccess> nodes_;
  std::vector<uint32_t> kept_;  // while after() runs
};

// Remembers steps of one agent while its clock and what it is ordered after stay the same.
class Steps {
 public:
  Steps() { forget(); }
  void forget() { std::memset(steps_, 0xff, sizeof steps_); }
  struct Step {
    uint32_t from, to;
  };
  Step& of(Kind kind, uint32_t history) { return steps_[__builtin_ctz(kind)][history % kSteps]; }

 private:
  static constexpr int kSteps = 8;
  Step steps_[kKinds][kSteps];
};

template <class Ordered>
uint32_t Histories::after(uint32_t history, Kind kind, uint32_t agent, uint32_t clock, uint32_t oldest,
                          const Ordered& ordered, PastAccess* conflict) {
  kept_.clear();
  uint32_t rest = history;  // this and what is before it stays as it is
  size_t num_kept = 0;      // of kept_: those with a dropped one behind them
  for (uint32_t at = history; at != 0; at = node(at).before) {
    const PastAccess& past = node(at);
    if (at < oldest && !(past.kinds & conflicts_of(kind))) break;
    const bool own = past.agent == agent;
    if (own && past.clock == clock && (past.kind == kind || past.kind == kWrite)) return history;
    const bool before = own || ordered(past.agent, past.clock);
    if (!before && (past.kind & conflicts_of(kind))) {
      *conflict = past;
      return 0;
    }
    if (before && (past.kind == kind || kind == kWrite)) {
      num_kept = kept_.size();
      rest = past.before;
    } else {
      kept_.push_back(at);
    }
  }
  for (size_t i = num_kept; i-- > 0;) {
    const PastAccess past = node(kept_[i]);
    rest = push(rest, past.agent, past.clock, past.kind);
  }
  return push(rest, agent, clock, kind);
}

// Replaces the states of granules of 1 << granule_log2 bytes by after(state, granule, lane): those of the rows that lie
// at the offsets of the lanes of `mask`. Most granules have the state of the one before them, so that is asked once.
template <int kGranules, class After>
inline void update_rows(uint32_t* states, uint32_t granule_log2, uint32_t mask, const uint64_t* offsets,
                        const After& after) {
  uint32_t from[kGranules], to[kGranules];
  bool any = false;
  for_lanes(mask, [&](int lane) {
    uint32_t* row = states + (offsets[lane] >> granule_log2);
    if (any && !std::memcmp(row, from, sizeof from)) {
      std::memcpy(row, to, sizeof to);
      return;
    }
    any = true;
    for (int i = 0; i < kGranules; ++i) {
      const uint32_t state = row[i];
      if (i == 0 || state != from[0]) {
        std::fill(from, from + kGranules, state);
        std::fill(to, to + kGranules, after(state, row + i, lane));
      }
      row[i] = to[0];
    }
  });
}

template <class After>
inline void update_granules(uint32_t* states, uint32_t granule_log2, uint32_t mask, const uint64_t* offsets,
                            uint32_t row_bytes, const After& after) {
  switch (row_bytes >> granule_log2) {
    case 0:  // the rest of the granule is not accessed on its own
    case 1: return update_rows<1>(states, granule_log2, mask, offsets, after);
    case 2: return update_rows<2>(states, granule_log2, mask, offsets, after);
    case 4: return update_rows<4>(states, granule_log2, mask, offsets, after);
    case 8: return update_rows<8>(states, granule_log2, mask, offsets, after);
    case 16: return update_rows<16>(states, granule_log2, mask, offsets, after);
    case 32: return update_rows<32>(states, granule_log2, mask, offsets, after);
    default: return update_rows<64>(states, granule_log2, mask, offsets, after);
  }
}

}  // namespace lumos::ptxvm
