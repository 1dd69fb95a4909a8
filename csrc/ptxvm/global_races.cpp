#include "ptxvm/global_races.h"

#include <algorithm>
#include <cstdlib>

#include "ptxvm/fault.h"

namespace lumos::ptxvm {
namespace {

void join(BlockClocks* to, const BlockClocks& from) {
  if (to->size() < from.size()) to->resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) (*to)[i] = std::max((*to)[i], from[i]);
}

}  // namespace

GlobalRaces::GlobalRaces(uint32_t granule_bytes) : granule_log2_(__builtin_ctz(granule_bytes)) {}

void GlobalRaces::begin_block(BlockOrder* order, int64_t block) {
  *order = {};
  order->block = static_cast<uint32_t>(block);
  order->oldest = histories_.next();
}

void GlobalRaces::access(BlockOrder* order, Kind kind, Buffer* buffer, uint32_t mask, const uint64_t* offsets,
                         uint32_t row_bytes) {
  if (!buffer->histories) {
    const size_t count = (buffer->num_bytes >> granule_log2_) + 1;
    buffer->histories.reset(static_cast<uint32_t*>(std::calloc(count, sizeof(uint32_t))));
    if (!buffer->histories) throw std::bad_alloc();
  }
  update_granules(buffer->histories.get(), granule_log2_, mask, offsets, row_bytes,
                  [&](uint32_t history, const uint32_t*, int lane) {
                    Steps::Step& step = order->steps.of(kind, history);
                    if (step.from != history) {
                      step = {history, checked(order, history, kind, *buffer, offsets[lane], lane)};
                    }
                    return step.to;
                  });
}

uint32_t GlobalRaces::checked(BlockOrder* order, uint32_t history, Kind kind, const Buffer& buffer, uint64_t offset,
                              int lane) {
  const BlockClocks& known = order->known;
  PastAccess conflict = {};
  const uint32_t next = histories_.after(
      history, kind, order->block, order->clock, order->oldest,
      [&](uint32_t other, uint32_t clock) { return other < known.size() && clock <= known[other]; }, &conflict);
  if (!next) {
    throw Fault(
        "race",
        format("%s of buffer '%s' + %llu by block %u, after a %s by block %u; no release and acquire order them",
               kind_name(kind), buffer.name.c_str(), static_cast<unsigned long long>(offset), order->block,
               kind_name(conflict.kind), conflict.agent),
        lane);
  }
  return next;
}

void GlobalRaces::fence(BlockOrder* order) {
  join(&order->known, order->observed);
  order->fenced = order->known;
  order->fenced_clock = order->clock++;
  order->steps.forget();
}

void GlobalRaces::release(BlockOrder* order, uint64_t address, bool has_fence) {
  const uint32_t clock = has_fence ? order->clock : order->fenced_clock;
  if (!clock) return;
  BlockClocks& released = released_[address];
  join(&released, has_fence ? order->known : order->fenced);
  if (released.size() <= order->block) released.resize(order->block + 1);
  released[order->block] = std::max(released[order->block], clock);
  if (!has_fence) return;
  ++order->clock;
  order->steps.forget();
}

void GlobalRaces::acquire(BlockOrder* order, uint64_t address, bool has_fence) {
  if (released_.empty()) return;
  const auto found = released_.find(address);
  if (found == released_.end()) return;
  join(has_fence ? &order->known : &order->observed, found->second);
}

}  // namespace lumos::ptxvm
