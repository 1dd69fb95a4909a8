#include "ptxvm/block.h"

#include <algorithm>
#include <climits>

namespace lumos::ptxvm {
namespace {

// A group of lanes that runs this long while others of its warp wait for their turn, gives way: it may wait for them.
constexpr uint64_t kFairnessLimit = 20000;

uint32_t num_threads(const LaunchConfig& config) { return config.block.x * config.block.y * config.block.z; }

Dim3 position(uint64_t linear, const Dim3& extent) {
  return {static_cast<uint32_t>(linear % extent.x), static_cast<uint32_t>(linear / extent.x % extent.y),
          static_cast<uint32_t>(linear / extent.x / extent.y)};
}

uint32_t special(const std::string& name, const Block& block, int warp, int lane) {
  const Dim3 thread = position(warp * kLanes + lane, block.config.block);
  auto pick = [&](const Dim3& d) { return name.back() == 'x' ? d.x : name.back() == 'y' ? d.y : d.z; };
  if (name.rfind("%tid", 0) == 0) return pick(thread);
  if (name.rfind("%ntid", 0) == 0) return pick(block.config.block);
  if (name.rfind("%ctaid", 0) == 0) return pick(block.index);
  if (name.rfind("%nctaid", 0) == 0) return pick(block.config.grid);
  if (name == "%laneid") return lane;
  if (name == "%warpid") return warp;
  if (name == "%nwarpid") return static_cast<uint32_t>(block.warps.size());
  if (name == "%nsmid") return 1;
  if (name == "%lanemask_eq") return 1u << lane;
  if (name == "%lanemask_lt") return (1u << lane) - 1;
  if (name == "%lanemask_le") return (2u << lane) - 1;
  if (name == "%lanemask_gt") return ~((2u << lane) - 1);
  if (name == "%lanemask_ge") return ~((1u << lane) - 1);
  if (name == "%dynamic_smem_size") return block.config.dynamic_shared_bytes;
  if (name == "%total_smem_size") return block.config.dynamic_shared_bytes + block.kernel.static_shared_bytes;
  return 0;  // %smid
}

// All lanes wait inside .sync instructions, none for what another could still do. Sets the place and lanes to report.
Fault stuck(const Warp& warp, int32_t* pc, uint32_t* lanes) {
  *pc = warp.pc[__builtin_ctz(warp.waiting)];
  *lanes = 0;
  std::string others;
  for_lanes(warp.waiting, [&](int lane) {
    if (warp.pc[lane] == *pc) {
      *lanes |= 1u << lane;
    } else {
      others +=
          format("%s%d at %s", others.empty() ? "" : ", ", lane, warp.block->kernel.location(warp.pc[lane]).c_str());
    }
  });
  return Fault("deadlock", format("lanes %08x wait for others of their warp%s%s", *lanes,
                                  others.empty() ? ", which have ended" : ", which wait themselves: ", others.c_str()));
}

}  // namespace

BlockMemory& memory_of(Warp& warp) { return warp.block->memory; }

Block::Block(const Kernel& kernel, const std::vector<Inst>& code, const LaunchConfig& config, Counter* counters)
    : kernel(kernel), code(code), config(config), counters(counters) {
  const uint32_t num_warps = (num_threads(config) + kLanes - 1) / kLanes;
  warps.resize(num_warps);
  files_.resize(static_cast<size_t>(num_warps) * kernel.file_bytes + 64);
  auto* base = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(files_.data()) + 63) / 64 * 64);
  for (uint32_t w = 0; w < num_warps; ++w) {
    Warp& warp = warps[w];
    warp.registers = base + static_cast<size_t>(w) * kernel.file_bytes;
    warp.block = this;
    warp.index = static_cast<int>(w);
    for (const auto& constant : kernel.constants) {
      if (constant.row_bytes == 1) {
        warp.predicate(constant.row) = constant.bits ? kAllLanes : 0;
      } else {
        for (int lane = 0; lane < kLanes; ++lane) {
          if (constant.row_bytes == 8) {
            warp.row<uint64_t>(constant.row)[lane] = constant.bits;
          } else {
            warp.row<uint32_t>(constant.row)[lane] = static_cast<uint32_t>(constant.bits);
          }
        }
      }
    }
  }
  memory.num_warps = num_warps;
  memory.local_bytes = kernel.local_bytes;
  memory.counters = options().count_traffic ? counters : nullptr;
}

uint32_t Block::initial_lanes_(int warp) const {
  const uint32_t threads = num_threads(config) - warp * kLanes;
  return threads >= kLanes ? kAllLanes : (1u << threads) - 1;
}

void Block::start(int64_t linear_index, GlobalRaces* races) {
  index = position(linear_index, config.grid);
  memory.start(kernel.static_shared_bytes + config.dynamic_shared_bytes, kernel.shared_granule, options().check_races,
               linear_index, races);
  for (Barrier& barrier : barriers) barrier = {};
  for (Warp& warp : warps) {
    for (const auto& [name, row] : kernel.specials) {
      for (int lane = 0; lane < kLanes; ++lane) warp.row<uint32_t>(row)[lane] = special(name, *this, warp.index, lane);
    }
    for (uint32_t row : kernel.tracked_rows) warp.predicate(row) = 0;
    warp.live = initial_lanes_(warp.index);
    warp.waiting = 0;
    warp.barrier = -1;
    warp.carry = 0;
    warp.num_executed = 0;
    std::fill(warp.pc, warp.pc + kLanes, 0);
  }
}

bool Block::run(Schedule* schedule, uint64_t quantum) {
  const auto num_warps = static_cast<uint32_t>(warps.size());
  for (uint64_t spent = 0; spent < quantum;) {
    bool any_live = false, any_ran = false;
    const uint32_t first = schedule->permute ? schedule->below(num_warps) : 0;
    for (uint32_t i = 0; i < num_warps; ++i) {
      Warp& warp = warps[(first + i) % num_warps];
      any_live = any_live || warp.live;
      if (!warp.live || warp.barrier >= 0) continue;
      any_ran = true;
      const uint64_t before = warp.num_executed;
      run_warp(&warp, schedule->permute ? 1 + schedule->below(48) : quantum);
      spent += warp.num_executed - before;
      if (!warp.live) {
        for (int barrier = 0; barrier < kNumBarriers; ++barrier) release_if_complete(barrier);
      }
      if (schedule->permute) break;
    }
    if (!any_live) {
      try {
        memory.end_of_block();
      } catch (const Fault& fault) {
        const int lane = fault.lane % kLanes;
        report(warps[fault.lane / kLanes], fault.instruction, 1u << lane, Fault(fault.kind, fault.what(), lane));
      }
      return true;
    }
    if (!any_ran) report_deadlock();
  }
  return false;
}

Block::State Block::run_warp(Warp* pointer, uint64_t quantum) {
  Warp& warp = *pointer;
  int32_t pc = 0;
  uint32_t active = 0, mask = 0;
  uint64_t executed = 0;
  const Inst* const instructions = code.data();
  const uint64_t limit = options().max_instructions;
  int32_t give_way_after = -1;  // choose the group behind this place, once
  auto leave = [&](State state) {
    warp.num_executed += executed;
    if (limit && warp.num_executed > limit) {
      throw Fault("deadlock",
                  format("a warp executed more than %llu instructions", static_cast<unsigned long long>(limit)));
    }
    return state;
  };
  try {
    for (;;) {
      // The lanes with the smallest place run, until they reach the place of others or part.
      const uint32_t runnable = warp.live & ~warp.waiting;
      if (!runnable) {
        if (!warp.live) return leave(State::ended);
        // Lanes that have ended since may be those that the others wait for.
        bool ran = false;
        for (uint32_t rest = warp.waiting; rest && !ran;) {
          pc = warp.pc[__builtin_ctz(rest)];
          mask = 0;
          for_lanes(rest, [&](int lane) { mask |= warp.pc[lane] == pc ? 1u << lane : 0; });
          rest &= ~mask;
          const bool on = synchronise(&warp, instructions[pc], pc, mask);
          if (instructions[pc].flow == Flow::barrier && on) return leave(State::waiting);
          ran = warp.waiting != (warp.waiting | mask);
        }
        if (!ran) throw stuck(warp, &pc, &mask);
        continue;
      }
      pc = INT_MAX;
      for_lanes(runnable, [&](int lane) {
        if (warp.pc[lane] > give_way_after) pc = std::min(pc, warp.pc[lane]);
      });
      if (pc == INT_MAX) for_lanes(runnable, [&](int lane) { pc = std::min(pc, warp.pc[lane]); });
      int32_t others = INT_MAX;
      active = 0;
      for_lanes(runnable, [&](int lane) {
        if (warp.pc[lane] == pc) {
          active |= 1u << lane;
        } else if (warp.pc[lane] > pc) {
          others = std::min(others, warp.pc[lane]);
        }
      });
      const bool alone = active == runnable;
      const uint64_t turn_end = executed + (alone ? UINT64_MAX / 2 : kFairnessLimit);
      give_way_after = -1;
      auto stay_at = [&](uint32_t lanes, int32_t place) { for_lanes(lanes, [&](int lane) { warp.pc[lane] = place; }); };
      for (bool together = true; together;) {
        if (executed >= quantum) {
          stay_at(active, pc);
          return leave(State::running);
        }
        if (executed >= turn_end) {
          stay_at(active, pc);
          give_way_after = pc;
          break;
        }
        const Inst& inst = instructions[pc];
        mask = active;
        if (inst.guard) {
          const uint32_t predicate = warp.predicate(inst.guard);
          mask &= inst.guard_negated ? ~predicate : predicate;
        }
        ++executed;
        Counter& counter = counters[pc];
        ++counter.instructions;
        counter.lanes += __builtin_popcount(mask);
        if (inst.tracked >= 0) check_tracked(&warp, inst, active, mask);
        switch (inst.flow) {
          case Flow::none:
          case Flow::call:
            if (mask) inst.run(warp, inst, mask);
            ++pc;
            break;
          case Flow::branch:
            if (mask == active) {
              pc = inst.target;
              if (pc > others) together = false;
            } else if (!mask) {
              ++pc;
            } else {
              stay_at(mask, inst.target);
              stay_at(active & ~mask, pc + 1);
              together = false;
              continue;
            }
            break;
          case Flow::branch_table: {
            const auto& table = kernel.branch_tables[inst.aux];
            const uint32_t* choice = warp.row<uint32_t>(inst.op[0]);
            for_lanes(mask, [&](int lane) {
              if (choice[lane] >= table.size()) {
                throw Fault("out of bounds", format("entry %u of a branch table of %zu", choice[lane], table.size()),
                            lane);
              }
              warp.pc[lane] = table[choice[lane]];
            });
            stay_at(active & ~mask, pc + 1);
            together = false;
            continue;
          }
          case Flow::exit:
            warp.live &= ~mask;
            active &= ~mask;
            if (!active) {
              together = false;
              continue;
            }
            ++pc;
            break;
          case Flow::warp_sync:
          case Flow::barrier: {
            if (!mask) {
              ++pc;
              break;
            }
            stay_at(active & ~mask, pc + 1);
            const bool on = synchronise(&warp, inst, pc, mask);
            if (inst.flow == Flow::barrier && on) return leave(State::waiting);
            if (on && mask == active && !warp.waiting && alone) {
              ++pc;
              break;
            }
            together = false;
            continue;
          }
        }
        if (pc >= others) together = false;
        if (!together) stay_at(active, pc);
      }
    }
  } catch (const Fault& fault) {
    report(warp, pc, mask, fault);
  }
}

// Lanes `arrived` of the warp came to a .sync instruction. Lanes wait until all that must take part are there; then the
// instruction runs and they stand behind it. True if it ran; for a barrier: if the warp has to wait for other warps
// now.
bool Block::synchronise(Warp* warp, const Inst& inst, int32_t pc, uint32_t arrived) {
  const uint32_t* masks = inst.member_mask ? warp->row<uint32_t>(inst.member_mask) : nullptr;
  if (arrived == kAllLanes && inst.flow == Flow::warp_sync) {  // the usual case: all lanes, and all of them named
    uint32_t named = kAllLanes;
    for (int lane = 0; masks && lane < kLanes; ++lane) named &= masks[lane];
    if (named == kAllLanes) {
      inst.run(*warp, inst, arrived);
      std::fill(warp->pc, warp->pc + kLanes, pc + 1);
      return true;
    }
  }
  for_lanes(arrived, [&](int lane) { warp->pc[lane] = pc; });
  bool ran = false;
  for (uint32_t rest = arrived; rest;) {
    const uint32_t members = masks ? masks[__builtin_ctz(rest)] : warp->live;
    uint32_t present = 0, outside = 0;
    for_lanes(rest | (warp->waiting & warp->live), [&](int lane) {
      if (warp->pc[lane] != pc || (masks && masks[lane] != members)) return;
      present |= 1u << lane;
      if (!(members >> lane & 1)) outside |= 1u << lane;
    });
    if (outside) {
      throw Fault("barrier divergence", format("it names lanes %08x, but lanes %08x execute it", members, outside),
                  __builtin_ctz(outside));
    }
    rest &= ~present;
    if ((present & members & warp->live) != (members & warp->live)) {
      warp->waiting |= present;
      continue;
    }
    warp->waiting &= ~present;
    for_lanes(present, [&](int lane) { warp->pc[lane] = pc + 1; });
    if (inst.flow == Flow::barrier) return !arrive(warp, inst, present);
    inst.run(*warp, inst, present);
    ran = true;
  }
  return ran && inst.flow != Flow::barrier;
}

void Block::check_tracked(Warp* warp, const Inst& inst, uint32_t active, uint32_t mask) {
  const Tracked& uses = kernel.tracked[inst.tracked];
  const uint32_t guarded = uses.guard ? warp->predicate(uses.guard) & active : active;
  if (guarded != active) {
    throw Fault("uninitialised", "the predicate that guards it was never set", __builtin_ctz(active & ~guarded));
  }
  uint32_t set = mask;
  for (uint32_t row : uses.reads) set &= warp->predicate(row);
  if (set != mask && !uses.propagates) {
    throw Fault("uninitialised", "a register that was never set is read", __builtin_ctz(mask & ~set));
  }
  for (uint32_t row : uses.writes) warp->predicate(row) = (warp->predicate(row) & ~mask) | set;
}

void Block::report(const Warp& warp, int32_t pc, uint32_t mask, const Fault& fault) const {
  const int lane = fault.lane >= 0 ? fault.lane : mask ? __builtin_ctz(mask) : 0;
  const Dim3 thread = position(warp.index * kLanes + lane, config.block);
  const Instruction& instruction = kernel.function.instructions[pc];
  throw Fault(fault.kind,
              format("%s: %s; kernel %s, %s (%s), block (%u, %u, %u), thread (%u, %u, %u)", fault.kind.c_str(),
                     fault.what(), kernel.name.c_str(), kernel.location(pc).c_str(), instruction.opcode().c_str(),
                     index.x, index.y, index.z, thread.x, thread.y, thread.z));
}

void Block::report_deadlock() const {
  const Warp& warp = *std::find_if(warps.begin(), warps.end(), [](const Warp& w) { return w.barrier >= 0; });
  const Barrier& barrier = barriers[warp.barrier];
  const int32_t pc = warp.pc[__builtin_ctz(warp.live)] - 1;
  const auto num_ended = std::count_if(warps.begin(), warps.end(), [](const Warp& w) { return !w.live; });
  report(warp, pc, warp.live,
         Fault("barrier divergence",
               format("barrier %d waits for %u threads, %u have come; %ld of %zu warps have ended", warp.barrier,
                      barrier.expected_threads, barrier.arrived_threads, static_cast<long>(num_ended), warps.size())));
}

bool Block::arrive(Warp* warp, const Inst& inst, uint32_t present) {
  const int lane = __builtin_ctz(present);
  const uint32_t id = warp->row<uint32_t>(inst.op[kBarrierId])[lane];
  if (id >= kNumBarriers) throw Fault("barrier divergence", format("barrier %u; there are %d", id, kNumBarriers), lane);
  const uint32_t all = static_cast<uint32_t>(warps.size()) * kLanes;
  const uint32_t expected = inst.op[kBarrierCount] ? warp->row<uint32_t>(inst.op[kBarrierCount])[lane] : all;
  if (expected == 0 || expected % kLanes || expected > all) {
    throw Fault("barrier divergence",
                format("it waits for %u threads of %u; the number must be a multiple of 32", expected, all), lane);
  }
  Barrier& barrier = barriers[id];
  if (barrier.expected_threads && barrier.expected_threads != expected) {
    throw Fault("barrier divergence",
                format("barrier %u waits for %u threads, this warp says %u", id, barrier.expected_threads, expected),
                lane);
  }
  if (barrier.arrived_warps >> warp->index & 1) {
    throw Fault("barrier divergence", format("this warp has come to barrier %u already", id), lane);
  }
  const auto kind = static_cast<BarrierKind>(inst.aux);
  barrier.expected_threads = expected;
  barrier.of_all = !inst.op[kBarrierCount];
  barrier.arrived_threads += kLanes;
  barrier.arrived_warps |= 1u << warp->index;
  if (kind == BarrierKind::reduce_and || kind == BarrierKind::reduce_or || kind == BarrierKind::reduce_popc) {
    const uint32_t value = warp->predicate(inst.op[kBarrierValue]);
    barrier.num_true += __builtin_popcount((inst.flags ? ~value : value) & present);
    barrier.num_lanes += __builtin_popcount(present);
  }
  if (kind != BarrierKind::arrive) {
    barrier.waiting_warps |= 1u << warp->index;
    warp->barrier = static_cast<int>(id);
  }
  return release_if_complete(static_cast<int>(id)) || kind == BarrierKind::arrive;
}

bool Block::release_if_complete(int id) {
  Barrier& barrier = barriers[id];
  uint32_t expected = barrier.expected_threads, ended = 0;
  for (const Warp& warp : warps) {
    if (!barrier.of_all || warp.live) continue;
    expected -= kLanes;
    ended |= 1u << warp.index;
  }
  if (!barrier.arrived_warps || barrier.arrived_threads < expected) return false;
  memory.shared.synchronise(barrier.arrived_warps | ended);
  for_lanes(barrier.waiting_warps, [&](int w) {
    Warp& released = warps[w];
    released.barrier = -1;
    const Inst& its = code[released.pc[__builtin_ctz(released.live)] - 1];
    const auto its_kind = static_cast<BarrierKind>(its.aux);
    if (its_kind == BarrierKind::reduce_popc) {
      for_lanes(released.live, [&](int l) { released.row<uint32_t>(its.op[0])[l] = barrier.num_true; });
    } else if (its_kind == BarrierKind::reduce_and || its_kind == BarrierKind::reduce_or) {
      const bool result =
          its_kind == BarrierKind::reduce_or ? barrier.num_true > 0 : barrier.num_true == barrier.num_lanes;
      released.predicate(its.op[0]) = result ? kAllLanes : 0;
    }
  });
  barrier = {};
  return true;
}

}  // namespace lumos::ptxvm
