#include "ptxvm/shared_memory.h"

#include "ptxvm/fault.h"
#include "ptxvm/memory.h"

namespace lumos::ptxvm {

void SharedMemory::reset(uint32_t num_bytes, uint32_t num_warps, uint32_t granule_bytes, bool check_races) {
  num_bytes_ = num_bytes;
  granule_log2_ = __builtin_ctz(granule_bytes);
  check_races_ = check_races;
  bytes_.resize(num_bytes);
  states_.assign((num_bytes + granule_bytes - 1) >> granule_log2_, kUntouched);
  histories_.restart(kFirstHistory);
  oldest_ = kFirstHistory;
  warps_.resize(num_warps);
  for (WarpState& warp : warps_) {
    warp.clock = 1;
    warp.known.fill(0);
    warp.steps.forget();
    warp.copies.clear();
    std::fill(warp.groups, warp.groups + kLanes, 0);
  }
}

void SharedMemory::synchronise(uint32_t warps) {
  if (__builtin_popcount(warps) == static_cast<int>(warps_.size())) {
    for (WarpState& warp : warps_) warp.steps.forget();
    oldest_ = histories_.next();
    histories_.restart(oldest_);
    return;
  }
  std::array<uint32_t, kMaxWarps> joined = {};
  for_lanes(warps, [&](int w) {
    for (uint32_t i = 0; i < kMaxWarps; ++i) joined[i] = std::max(joined[i], warps_[w].known[i]);
    joined[w] = std::max(joined[w], warps_[w].clock);
  });
  for_lanes(warps, [&](int w) {
    warps_[w].known = joined;
    ++warps_[w].clock;
    warps_[w].steps.forget();
  });
}

uint32_t SharedMemory::checked(uint32_t state, int w, Kind kind, const uint32_t* granule, int lane) {
  const WarpState& warp = warps_[w];
  const auto place = [&] {
    const auto offset = static_cast<unsigned>(granule - states_.data()) << granule_log2_;
    return format("%s of shared memory at byte %u", kind_name(kind), offset);
  };
  if (state == kPending) {
    throw Fault("race", place() + ": the bytes of a cp.async that has not been waited for", lane);
  }
  if (state == kUntouched && kind != kWrite && kind != kStrongWrite)
    throw Fault("uninitialised", place() + ", which nobody has written", lane);
  if (!check_races_) return kSettled;
  PastAccess conflict = {};
  const uint32_t next = histories_.after(
      state < kFirstHistory ? 0 : state, kind, static_cast<uint32_t>(w), warp.clock, 0,
      [&](uint32_t other, uint32_t clock) { return clock <= warp.known[other]; }, &conflict);
  if (!next && kind == kWrite && conflict.kind == kWrite && repeats_bytes()) {
    repeats_ = true;
    return histories_.with(state, kWrite, static_cast<uint32_t>(w), warp.clock);
  }
  if (!next) {
    throw Fault("race",
                place() + format(" by warp %d, after a %s by warp %u with no barrier between them", w,
                                 kind_name(conflict.kind), conflict.agent),
                lane);
  }
  return next;
}

bool SharedMemory::repeats_bytes() const {
  bool repeats = written_.data != nullptr;
  for_lanes(written_.mask, [&](int lane) {
    const uint8_t* const written = written_.data + lane * written_.lane_bytes;
    repeats = repeats && !std::memcmp(bytes_.data() + written_.offsets[lane], written, written_.lane_bytes);
  });
  return repeats;
}

void SharedMemory::issue_copy(int w, const Inst& inst, uint32_t mask, const uint64_t* offsets, int num_bytes,
                              const uint8_t (*data)[16]) {
  announce({});
  update_granules(states_.data(), granule_log2_, mask, offsets, static_cast<uint32_t>(num_bytes),
                  [&](uint32_t state, const uint32_t* granule, int lane) -> uint32_t {
                    after(state, w, kWrite, granule, lane);
                    return kPending;
                  });
  WarpState& warp = warps_[w];
  while (mask) {
    warp.copies.emplace_back();
    Copy& copy = warp.copies.back();
    copy.group = warp.groups[__builtin_ctz(mask)];
    copy.mask = 0;
    for (int lane = 0; lane < kLanes; ++lane) copy.mask |= uint32_t{warp.groups[lane] == copy.group} << lane;
    copy.mask &= mask;
    copy.instruction = inst.index;
    copy.num_bytes = num_bytes;
    std::memcpy(copy.offsets, offsets, sizeof copy.offsets);
    std::memcpy(copy.data, data, sizeof copy.data);
    mask &= ~copy.mask;
  }
}

void SharedMemory::commit_copies(int w, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) warps_[w].groups[lane] += mask >> lane & 1;
}

template <int kBytes>
void SharedMemory::Copy::arrive(uint32_t lanes, uint8_t* memory) const {
  for_lanes(lanes, [&](int lane) { std::memcpy(memory + offsets[lane], data[lane], kBytes); });
}

void SharedMemory::wait_copies(int w, uint32_t mask, uint32_t allowed) {
  WarpState& warp = warps_[w];
  for (Copy& copy : warp.copies) {
    uint32_t arrived = 0;
    const uint64_t last = uint64_t{copy.group} + allowed;
    for (int lane = 0; lane < kLanes; ++lane) arrived |= uint32_t{last < warp.groups[lane]} << lane;
    arrived &= copy.mask & mask;
    if (!arrived) continue;
    copy.mask &= ~arrived;
    const auto arrive = copy.num_bytes == 16  ? &Copy::arrive<16>
                        : copy.num_bytes == 8 ? &Copy::arrive<8>
                                              : &Copy::arrive<4>;
    (copy.*arrive)(arrived, bytes_.data());
    update_granules(
        states_.data(), granule_log2_, arrived, copy.offsets, static_cast<uint32_t>(copy.num_bytes),
        [&](uint32_t, const uint32_t* granule, int lane) { return after(kSettled, w, kWrite, granule, lane); });
  }
  while (!warp.copies.empty() && !warp.copies.front().mask) warp.copies.pop_front();
}

void SharedMemory::end_of_kernel() const {
  for (size_t w = 0; w < warps_.size(); ++w) {
    for (const Copy& copy : warps_[w].copies) {
      if (!copy.mask) continue;
      const int lane = __builtin_ctz(copy.mask);
      Fault fault("unfinished copy",
                  format("the kernel ended without waiting for a cp.async to byte %u of shared memory",
                         static_cast<unsigned>(copy.offsets[lane])),
                  static_cast<int>(w) * kLanes + lane);
      fault.instruction = copy.instruction;
      throw fault;
    }
  }
}

}  // namespace lumos::ptxvm
