// Loads and stores, and what only tells the caches what to expect.
#include <type_traits>

#include "ptxvm/address.h"

namespace lumos::ptxvm {
namespace {

Resolve resolver(const Inst& inst) { return reinterpret_cast<Resolve>(inst.aux); }

// Values of type T into a row; Narrow is the unsigned type of a register of at most 32 bits.
template <class Narrow, class T>
void set_row(Warp& warp, const Inst& inst, int element, uint32_t mask, const T* values) {
  const auto set = [&](auto* to, auto extend) {
    for (int lane = 0; lane < kLanes; ++lane) to[lane] = mask >> lane & 1 ? extend(values[lane]) : to[lane];
  };
  if (inst.wide >> element & 1) {
    set(warp.row<uint64_t>(inst.op[element]), [](T value) { return static_cast<uint64_t>(value); });
  } else {
    set(warp.row<uint32_t>(inst.op[element]), [](T value) { return uint32_t{static_cast<Narrow>(value)}; });
  }
}

// op: kCount rows, the address.
template <class T, class Narrow, int kCount>
void load(Warp& warp, const Inst& inst, uint32_t mask) {
  constexpr int kBytes = kCount * sizeof(T);
  uint64_t addresses[kLanes];
  addresses_of(warp, inst, kCount, mask, addresses);
  LanePointers pointers;
  resolver(inst)(warp, inst, mask, inst.flags & kStrongFlag ? kStrongRead : kRead, addresses, kBytes, &pointers);
  T read[kLanes][kCount];
  if (!pointers.base) {
    std::memset(read, 0, sizeof read);
    for_lanes(mask, [&](int lane) { std::memcpy(read[lane], pointers.lanes[lane], kBytes); });
  } else if (pointers.same) {
    for (auto& lane : read) std::memcpy(lane, pointers.base, kBytes);
  } else {
    std::memcpy(read, pointers.base, sizeof read);
  }
  for (int i = 0; i < kCount; ++i) {
    T values[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) values[lane] = read[lane][i];
    set_row<Narrow>(warp, inst, i, mask, values);
  }
}

// op: kCount rows, the address.
template <class T, int kCount>
void store(Warp& warp, const Inst& inst, uint32_t mask) {
  constexpr int kBytes = kCount * sizeof(T);
  uint64_t addresses[kLanes];
  addresses_of(warp, inst, kCount, mask, addresses);
  T written[kLanes][kCount];
  for (int i = 0; i < kCount; ++i) {
    if (inst.wide >> i & 1) {
      const uint64_t* from = warp.row<uint64_t>(inst.op[i]);
      for (int lane = 0; lane < kLanes; ++lane) written[lane][i] = static_cast<T>(from[lane]);
    } else {
      const uint32_t* from = warp.row<uint32_t>(inst.op[i]);
      for (int lane = 0; lane < kLanes; ++lane) written[lane][i] = static_cast<T>(from[lane]);
    }
  }
  LanePointers pointers;
  const bool strong = inst.flags & kStrongFlag;
  if (!strong) pointers.written = written;
  resolver(inst)(warp, inst, mask, strong ? kStrongWrite : kWrite, addresses, kBytes, &pointers);
  if (pointers.base && !pointers.same) {
    std::memcpy(pointers.base, written, sizeof written);
    return;
  }
  const auto at = [&](int lane) { return pointers.base ? pointers.base : pointers.lanes[lane]; };
  for_lanes(mask, [&](int lane) { std::memcpy(at(lane), written[lane], kBytes); });
  if (strong) return;
  for_lanes(mask, [&](int lane) {
    if (std::memcmp(at(lane), written[lane], kBytes)) {
      throw Fault("race", format("another lane of the warp writes something else to the same %d bytes", kBytes), lane);
    }
  });
}

template <template <int> class Handlers>
Handler for_count(const Decoding& d, int count) {
  switch (count) {
    case 1: return Handlers<1>::run;
    case 2: return Handlers<2>::run;
    case 4: return Handlers<4>::run;
    case 8: return Handlers<8>::run;
    default: d.unknown();
  }
}

template <class T, class Narrow = uint32_t>
struct Load {
  template <int kCount>
  struct Of {
    static constexpr Handler run = load<T, Narrow, kCount>;
  };
};
template <class T>
struct Store {
  template <int kCount>
  struct Of {
    static constexpr Handler run = store<T, kCount>;
  };
};

Handler load_handler(const Decoding& d, Type type, int count, int register_bytes) {
  switch (type) {
    case Type::s8:
      return register_bytes == 2 ? for_count<Load<int8_t, uint16_t>::Of>(d, count)
                                 : for_count<Load<int8_t>::Of>(d, count);
    case Type::s16:
      return register_bytes == 2 ? for_count<Load<uint16_t>::Of>(d, count) : for_count<Load<int16_t>::Of>(d, count);
    case Type::s32: return for_count<Load<int32_t>::Of>(d, count);
    default: break;
  }
  switch (size_bytes(type)) {
    case 1: return for_count<Load<uint8_t>::Of>(d, count);
    case 2: return for_count<Load<uint16_t>::Of>(d, count);
    case 4: return for_count<Load<uint32_t>::Of>(d, count);
    case 8: return for_count<Load<uint64_t>::Of>(d, count);
    default: d.unknown();
  }
}

Handler store_handler(const Decoding& d, Type type, int count) {
  switch (size_bytes(type)) {
    case 1: return for_count<Store<uint8_t>::Of>(d, count);
    case 2: return for_count<Store<uint16_t>::Of>(d, count);
    case 4: return for_count<Store<uint32_t>::Of>(d, count);
    case 8: return for_count<Store<uint64_t>::Of>(d, count);
    default: d.unknown();
  }
}

// The rows of `values`, an operand or its elements. Returns the bytes of a register among them.
int decode_values(const Decoding& d, int values, Type type, int count) {
  if (d.num_elements(values) != count) d.wrong("wrong number of values");
  const Operand& operand = d.source.operands[values];
  int register_bytes = size_bytes(type);
  for (int i = 0; i < count; ++i) {
    const Operand& value = operand.elements.empty() ? operand : operand.elements[i];
    int bytes = size_bytes(type);
    if (value.kind == Operand::Kind::reg) {
      register_bytes = bytes = size_bytes(d.rows.type_of(value.reg));
      if (bytes < size_bytes(type)) d.wrong("a register is narrower than the type");
    }
    d.out.op[i] = d.row(value, type);
    if (bytes == 8) d.out.wide |= 1u << i;
  }
  return register_bytes;
}

void decode_access(const Decoding& d, bool loads) {
  allow_with_hints(
      d, {"global", "shared", "shared::cta", "local",   "const",   "param",   "param::entry", "param::func", "v2",
          "v4",     "v8",     "weak",        "relaxed", "acquire", "release", "volatile",     "cta",         "gpu",
          "sys",    "nc",     "ca",          "cg",      "cs",      "lu",      "cv",           "wb",          "wt"});
  if (d.source.operands.size() != (d.has("L2::cache_hint") ? 3 : 2) || d.type(1) != Type::none ||
      d.type() == Type::b128) {
    d.unknown();
  }
  const int count = d.has("v2") ? 2 : d.has("v4") ? 4 : d.has("v8") ? 8 : 1;
  const int address = loads ? 1 : 0;
  const Space space = decode_space(d, address);
  const int register_bytes = decode_values(d, 1 - address, d.type(), count);
  d.out.run = loads ? load_handler(d, d.type(), count, register_bytes) : store_handler(d, d.type(), count);
  decode_address(d, address, count);
  d.out.aux = reinterpret_cast<uint64_t>(resolve_in(space));
  if (d.has("volatile") || d.has("relaxed") || d.has("acquire") || d.has("release")) decode_order(d);
  d.out.cls = space == Space::shared                              ? loads ? Class::shared_load : Class::shared_store
              : space == Space::local                             ? Class::local
              : space == Space::param || space == Space::constant ? Class::constant
              : loads                                             ? Class::global_load
                                                                  : Class::global_store;
}

void decode_load(const Decoding& d) { decode_access(d, true); }
void decode_store(const Decoding& d) { decode_access(d, false); }

void decode_hint(const Decoding& d) {
  allow_with_hints(d, {"global", "local", "L1", "L2"});
  d.out.run = [](Warp&, const Inst&, uint32_t) {};
  d.out.cls = Class::move;
}

// createpolicy: policies are numbers that nobody looks at.
void decode_policy(const Decoding& d) {
  allow_with_hints(d, {"fractional", "range", "cvt", "global", "L2", "L2::evict_unchanged"});
  d.out.op[0] = d.row(0, Type::b64);
  d.out.run = [](Warp& warp, const Inst& inst, uint32_t mask) {
    for_lanes(mask, [&](int lane) { warp.row<uint64_t>(inst.op[0])[lane] = 0; });
  };
  d.out.cls = Class::move;
}

}  // namespace

const NamedDecoder kMemoryDecoders[] = {{"ld", decode_load},        {"ldu", decode_load},
                                        {"st", decode_store},       {"prefetch", decode_hint},
                                        {"prefetchu", decode_hint}, {"applypriority", decode_hint},
                                        {"discard", decode_hint},   {"createpolicy", decode_policy},
                                        {nullptr, nullptr}};

}  // namespace lumos::ptxvm
