#include "ptxvm/memory.h"

#include <algorithm>

#include "ptxvm/buffers.h"
#include "ptxvm/fault.h"
#include "ptxvm/traffic.h"

namespace lumos::ptxvm {
namespace {

// Calls f(mask, offsets, row_bytes) with fewer and wider rows where the lanes of an access lie at the same or at
// contiguous bytes, aligned to their sum. f throws with a lane of its mask.
template <class F>
void in_rows(Shape shape, uint32_t mask, const uint64_t* offsets, int lane_bytes, const F& f) {
  if (shape == Shape::same) return f(1u, offsets, static_cast<uint32_t>(lane_bytes));
  constexpr int kRowBytes = 64;
  const int num_rows = kLanes * lane_bytes / kRowBytes;
  if (shape == Shape::scattered || !num_rows) return f(mask, offsets, static_cast<uint32_t>(lane_bytes));
  uint64_t rows[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = offsets[0] + i * kRowBytes;
  try {
    f(num_rows == kLanes ? kAllLanes : (1u << num_rows) - 1, rows, uint32_t{kRowBytes});
  } catch (const Fault&) {
    f(mask, offsets, static_cast<uint32_t>(lane_bytes));  // which lane it was
    throw;
  }
}

void count_bytes(const BlockMemory& memory, const Inst& inst, uint32_t mask, int lane_bytes) {
  if (memory.counters) memory.counters[inst.index].bytes += __builtin_popcount(mask) * lane_bytes;
}

void check_alignment(uint32_t mask, Kind kind, const uint64_t* addresses, int lane_bytes, const char* memory) {
  uint64_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= addresses[lane];
  if (!(bits & (lane_bytes - 1))) return;
  for_lanes(mask, [&](int lane) {
    if (!(addresses[lane] & (lane_bytes - 1))) return;
    throw Fault("misaligned",
                format("%s of %d bytes at address 0x%llx of %s memory", kind_name(kind), lane_bytes,
                       static_cast<unsigned long long>(addresses[lane]), memory),
                lane);
  });
}

void set_pointers(Shape shape, uint32_t mask, uint8_t* begin, const uint64_t* offsets, LanePointers* pointers) {
  pointers->base = shape == Shape::scattered ? nullptr : begin + offsets[0];
  pointers->same = shape == Shape::same;
  if (pointers->base) return;
  for_lanes(mask, [&](int lane) { pointers->lanes[lane] = begin + offsets[lane]; });
}

void order_blocks(BlockMemory& memory, const Inst& inst, uint32_t mask, Kind kind, const uint64_t* addresses) {
  GlobalRaces& races = *memory.global_races;
  for_lanes(mask, [&](int lane) {
    if (is_write(kind)) races.release(&memory.order, addresses[lane], inst.flags & kReleaseFlag);
    if (kind != kStrongWrite) {
      races.acquire(&memory.order, addresses[lane], inst.flags & kAcquireFlag);
    }
  });
}

void resolve_global(Warp& warp, const Inst& inst, uint32_t mask, Kind kind, const uint64_t* addresses, int lane_bytes,
                    LanePointers* pointers) {
  BlockMemory& memory = memory_of(warp);
  // To other blocks, an access whose scope is this block is a plain one.
  if (inst.flags & kBlockScopeFlag) kind = is_write(kind) ? kWrite : kRead;
  const Shape shape = shape_of(mask, addresses, lane_bytes);
  uint64_t low = addresses[0], high = addresses[0];
  if (shape == Shape::contiguous) {
    high = addresses[kLanes - 1];
  } else if (shape == Shape::scattered) {
    for (int lane = 1; lane < kLanes; ++lane) {
      low = std::min(low, addresses[lane]);
      high = std::max(high, addresses[lane]);
    }
  }
  Buffer* buffer = find_buffer(low, high - low + lane_bytes, static_cast<uint32_t>(inst.index));
  const bool writes = is_write(kind);
  if (!buffer || (writes && !buffer->writable)) {
    // Either some lane is wrong, or the lanes are in several buffers and take turns.
    for_lanes(mask, [&](int lane) {
      buffer = find_buffer(addresses[lane], lane_bytes, static_cast<uint32_t>(inst.index));
      if (buffer && (buffer->writable || !writes)) return;
      throw Fault("out of bounds",
                  format("%s of %d bytes %s%s", kind_name(kind), lane_bytes, place_in_buffers(addresses[lane]).c_str(),
                         buffer ? " and is read-only" : ""),
                  lane);
    });
    LanePointers one;
    for_lanes(mask, [&](int lane) {
      uint64_t address[kLanes];
      std::fill(address, address + kLanes, addresses[lane]);
      resolve_global(warp, inst, 1u << lane, kind, address, lane_bytes, &one);
      pointers->lanes[lane] = one.lanes[lane];
    });
    return;
  }
  check_alignment(mask, kind, addresses, lane_bytes, "global");
  auto* const begin = const_cast<uint8_t*>(buffer->begin);
  uint64_t offsets[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) offsets[lane] = addresses[lane] - reinterpret_cast<uint64_t>(begin);
  if (memory.global_races && buffer->writable) {
    in_rows(shape, mask, offsets, lane_bytes, [&](uint32_t rows, const uint64_t* places, uint32_t row_bytes) {
      memory.global_races->access(&memory.order, kind, buffer, rows, places, row_bytes);
    });
    if (kind != kRead && kind != kWrite) order_blocks(memory, inst, mask, kind, addresses);
  }
  count_bytes(memory, inst, mask, lane_bytes);
  if (memory.counters && inst.cls != Class::constant)
    count_sectors(shape, mask, addresses, &memory.counters[inst.index]);
  set_pointers(shape, mask, begin, offsets, pointers);
}

void resolve_shared(Warp& warp, const Inst& inst, uint32_t mask, Kind kind, const uint64_t* addresses, int lane_bytes,
                    LanePointers* pointers) {
  SharedMemory& shared = memory_of(warp).shared;
  uint64_t offsets[kLanes];
  const Shape shape = shared_offsets(warp, inst, mask, kind, addresses, lane_bytes, offsets);
  if (options().allow_repeated_stores) {
    shared.announce({static_cast<const uint8_t*>(pointers->written), offsets, mask, lane_bytes});
  }
  in_rows(shape, mask, offsets, lane_bytes, [&](uint32_t rows, const uint64_t* places, uint32_t row_bytes) {
    shared.access(warp.index, kind, rows, places, row_bytes);
  });
  count_bytes(memory_of(warp), inst, mask, lane_bytes);
  set_pointers(shape, mask, shared.bytes(), offsets, pointers);
}

void resolve_local(Warp& warp, const Inst& inst, uint32_t mask, Kind kind, const uint64_t* addresses, int lane_bytes,
                   LanePointers* pointers) {
  BlockMemory& memory = memory_of(warp);
  pointers->base = nullptr;
  check_alignment(mask, kind, addresses, lane_bytes, "local");
  for_lanes(mask, [&](int lane) {
    const uint64_t offset = addresses[lane];
    if (offset >= memory.local_bytes || offset + lane_bytes > memory.local_bytes) {
      throw Fault("out of bounds",
                  format("%s of %d bytes at byte %d of local memory, which has %u bytes", kind_name(kind), lane_bytes,
                         static_cast<int32_t>(offset), memory.local_bytes),
                  lane);
    }
    const size_t place = (size_t(warp.index) * kLanes + lane) * memory.local_bytes + offset;
    uint8_t* const written = memory.local_written.data() + place;
    if (kind == kWrite || kind == kStrongWrite) {
      std::fill(written, written + lane_bytes, 1);
    } else if (std::find(written, written + lane_bytes, 0) != written + lane_bytes) {
      throw Fault("uninitialised",
                  format("read of local memory at byte %llu, which the thread has not written",
                         static_cast<unsigned long long>(offset)),
                  lane);
    }
    pointers->lanes[lane] = memory.local.data() + place;
  });
  count_bytes(memory, inst, mask, lane_bytes);
}

void resolve_generic(Warp& warp, const Inst& inst, uint32_t mask, Kind kind, const uint64_t* addresses, int lane_bytes,
                     LanePointers* pointers) {
  const auto resolve_window = [&](uint64_t window, uint32_t lanes, LanePointers* to) {
    uint64_t within[kLanes];
    const uint64_t first = addresses[__builtin_ctz(lanes)];
    for (int lane = 0; lane < kLanes; ++lane) {
      within[lane] = (lanes >> lane & 1 ? addresses[lane] : first) - window;
    }
    const Resolve resolve = window == kSharedWindow  ? resolve_shared
                            : window == kLocalWindow ? resolve_local
                                                     : resolve_global;
    resolve(warp, inst, lanes, kind, within, lane_bytes, to);
  };
  for (uint32_t rest = mask; rest;) {
    uint64_t window = addresses[__builtin_ctz(rest)] & kWindowMask;
    if (window != kSharedWindow && window != kLocalWindow) window = 0;
    uint32_t lanes = 0;
    for_lanes(rest, [&](int lane) { lanes |= uint32_t{(addresses[lane] & kWindowMask) == window} << lane; });
    if (!lanes) lanes = rest;  // no address at all: out of bounds of global memory
    if (lanes == mask) return resolve_window(window, lanes, pointers);
    LanePointers some;
    some.written = pointers->written;
    resolve_window(window, lanes, &some);
    for_lanes(lanes, [&](int lane) { pointers->lanes[lane] = some.lanes[lane]; });
    pointers->base = nullptr;
    rest &= ~lanes;
  }
}

}  // namespace

void BlockMemory::start(uint32_t shared_bytes, uint32_t shared_granule_bytes, bool check_races, int64_t block,
                        GlobalRaces* races) {
  shared.reset(shared_bytes, num_warps, shared_granule_bytes, check_races);
  local.resize(size_t{num_warps} * kLanes * local_bytes);
  local_written.assign(local.size(), 0);
  global_races = races;
  if (races) races->begin_block(&order, block);
}

Resolve resolve_in(Space space) {
  return space == Space::generic  ? resolve_generic
         : space == Space::shared ? resolve_shared
         : space == Space::local  ? resolve_local
                                  : resolve_global;
}

Shape shared_offsets(Warp& warp, const Inst& inst, uint32_t mask, Kind kind, const uint64_t* addresses, int lane_bytes,
                     uint64_t* offsets) {
  BlockMemory& memory = memory_of(warp);
  const uint64_t end = memory.shared.num_bytes();
  uint64_t largest = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    offsets[lane] = addresses[lane] - kSharedBegin;
    largest = std::max(largest, offsets[lane]);
  }
  if (largest >= end || largest + lane_bytes > end) {
    for_lanes(mask, [&](int lane) {
      if (offsets[lane] < end && offsets[lane] + lane_bytes <= end) return;
      throw Fault("out of bounds",
                  format("%s of %d bytes at byte %lld of shared memory, which has %llu bytes", kind_name(kind),
                         lane_bytes, static_cast<long long>(offsets[lane]), static_cast<unsigned long long>(end)),
                  lane);
    });
  }
  check_alignment(mask, kind, addresses, lane_bytes, "shared");
  const Shape shape = shape_of(mask, addresses, lane_bytes);
  if (memory.counters) count_wavefronts(shape, mask, offsets, lane_bytes, &memory.counters[inst.index]);
  return shape;
}

void matrix_rows(Warp& warp, const Inst& inst, Access access, const uint64_t* addresses, int count,
                 uint8_t** pointers) {
  constexpr int kRowBytes = 16;
  SharedMemory& shared = memory_of(warp).shared;
  const Kind kind = access == Access::read ? kRead : kWrite;
  const uint32_t mask = kAllLanes >> (kLanes - count);
  uint64_t used[kLanes], offsets[kLanes];
  std::copy(addresses, addresses + count, used);
  std::fill(used + count, used + kLanes, addresses[0]);
  shared_offsets(warp, inst, mask, kind, used, kRowBytes, offsets);
  shared.announce({});
  shared.access(warp.index, kind, mask, offsets, kRowBytes);
  count_bytes(memory_of(warp), inst, mask, kRowBytes);
  for (int i = 0; i < count; ++i) pointers[i] = shared.bytes() + offsets[i];
}

}  // namespace lumos::ptxvm
