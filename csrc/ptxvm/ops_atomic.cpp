// Atomic operations and fences.
#include <cmath>

#include "ptxvm/address.h"
#include "ptxvm/half.h"

namespace lumos::ptxvm {
namespace {

// Each makes the new value out of the old one and the operands.
struct Add {
  template <class T>
  T operator()(T old, T b, T) const {
    return old + b;
  }
};
struct Min {
  template <class T>
  T operator()(T old, T b, T) const {
    return b < old ? b : old;
  }
};
struct Max {
  template <class T>
  T operator()(T old, T b, T) const {
    return b > old ? b : old;
  }
};
struct Increment {
  template <class T>
  T operator()(T old, T b, T) const {
    return old >= b ? 0 : old + 1;
  }
};
struct Decrement {
  template <class T>
  T operator()(T old, T b, T) const {
    return old == 0 || old > b ? b : old - 1;
  }
};
struct And {
  template <class T>
  T operator()(T old, T b, T) const {
    return old & b;
  }
};
struct Or {
  template <class T>
  T operator()(T old, T b, T) const {
    return old | b;
  }
};
struct Xor {
  template <class T>
  T operator()(T old, T b, T) const {
    return old ^ b;
  }
};
struct Exchange {
  template <class T>
  T operator()(T, T b, T) const {
    return b;
  }
};
struct CompareAndSwap {
  template <class T>
  T operator()(T old, T b, T c) const {
    return old == b ? c : old;
  }
};

// Global memory takes subnormal floats for zeros, shared memory does not.
template <bool kFlush>
struct AddFloat {
  static float flushed(float x) { return kFlush && std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }
  uint32_t operator()(uint32_t old, uint32_t b, uint32_t) const {
    const float sum = flushed(flushed(bits_as<float>(old)) + flushed(bits_as<float>(b)));
    return std::isnan(sum) ? 0x7fffffffu : bits_as<uint32_t>(sum);
  }
};
struct AddDouble {
  uint64_t operator()(uint64_t old, uint64_t b, uint64_t) const {
    return bits_as<uint64_t>(bits_as<double>(old) + bits_as<double>(b));
  }
};
// The sum as a float is exact enough that rounding it is rounding the sum.
template <class F>
struct AddNarrow {
  uint16_t operator()(uint16_t old, uint16_t b, uint16_t) const {
    const float sum = widen<F>(old) + widen<F>(b);
    return static_cast<uint16_t>(std::isnan(sum) ? F::nan : narrow<F, Rounding::nearest_even>(sum));
  }
};
template <class F>
struct AddPacked {
  uint32_t operator()(uint32_t old, uint32_t b, uint32_t) const {
    const AddNarrow<F> add;
    const uint32_t low = add(static_cast<uint16_t>(old), static_cast<uint16_t>(b), 0);
    const uint32_t high = add(static_cast<uint16_t>(old >> 16), static_cast<uint16_t>(b >> 16), 0);
    return low | high << 16;
  }
};

// op: the old value, the address, b, c. Lanes take their turns in their order.
template <class F, class T>
void atomic(Warp& warp, const Inst& inst, uint32_t mask) {
  using Cell = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  uint64_t addresses[kLanes];
  addresses_of(warp, inst, 1, mask, addresses);
  LanePointers pointers;
  reinterpret_cast<Resolve>(inst.aux)(warp, inst, mask, kAtomic, addresses, sizeof(T), &pointers);
  const Cell *b = warp.row<Cell>(inst.op[2]), *c = warp.row<Cell>(inst.op[3]);
  Cell before[kLanes];
  for_lanes(mask, [&](int lane) {
    uint8_t* const place =
        !pointers.base ? pointers.lanes[lane] : pointers.base + (pointers.same ? 0 : lane * sizeof(T));
    T old;
    std::memcpy(&old, place, sizeof old);
    const T next = F()(old, static_cast<T>(b[lane]), static_cast<T>(c[lane]));
    std::memcpy(place, &next, sizeof next);
    before[lane] = static_cast<Cell>(old);
  });
  Cell* const to = warp.row<Cell>(inst.op[0]);
  for_lanes(mask, [&](int lane) { to[lane] = before[lane]; });
}

struct Operation {
  const char* name;
  Type type;
  Handler run;
};
constexpr Operation kOperations[] = {
    {"add", Type::u32, atomic<Add, uint32_t>},
    {"add", Type::s32, atomic<Add, uint32_t>},
    {"add", Type::u64, atomic<Add, uint64_t>},
    {"add", Type::s64, atomic<Add, uint64_t>},
    {"add", Type::f32, atomic<AddFloat<true>, uint32_t>},
    {"add", Type::f64, atomic<AddDouble, uint64_t>},
    {"add", Type::f16, atomic<AddNarrow<Half>, uint16_t>},
    {"add", Type::bf16, atomic<AddNarrow<Bfloat>, uint16_t>},
    {"add", Type::f16x2, atomic<AddPacked<Half>, uint32_t>},
    {"add", Type::bf16x2, atomic<AddPacked<Bfloat>, uint32_t>},
    {"min", Type::u32, atomic<Min, uint32_t>},
    {"min", Type::s32, atomic<Min, int32_t>},
    {"min", Type::u64, atomic<Min, uint64_t>},
    {"min", Type::s64, atomic<Min, int64_t>},
    {"max", Type::u32, atomic<Max, uint32_t>},
    {"max", Type::s32, atomic<Max, int32_t>},
    {"max", Type::u64, atomic<Max, uint64_t>},
    {"max", Type::s64, atomic<Max, int64_t>},
    {"inc", Type::u32, atomic<Increment, uint32_t>},
    {"dec", Type::u32, atomic<Decrement, uint32_t>},
    {"and", Type::b32, atomic<And, uint32_t>},
    {"and", Type::b64, atomic<And, uint64_t>},
    {"or", Type::b32, atomic<Or, uint32_t>},
    {"or", Type::b64, atomic<Or, uint64_t>},
    {"xor", Type::b32, atomic<Xor, uint32_t>},
    {"xor", Type::b64, atomic<Xor, uint64_t>},
    {"exch", Type::b32, atomic<Exchange, uint32_t>},
    {"exch", Type::b64, atomic<Exchange, uint64_t>},
    {"cas", Type::b16, atomic<CompareAndSwap, uint16_t>},
    {"cas", Type::b32, atomic<CompareAndSwap, uint32_t>},
    {"cas", Type::b64, atomic<CompareAndSwap, uint64_t>},
};

const Operation* find_operation(const Decoding& d) {
  for (const Operation& operation : kOperations) {
    if (operation.type == d.type() && d.has(operation.name)) return &operation;
  }
  return nullptr;
}

void decode_atomic(const Decoding& d) {
  allow_with_hints(
      d, {"global", "shared", "shared::cta", "relaxed", "acquire", "release", "acq_rel", "cta",  "gpu", "sys",  "add",
          "min",    "max",    "inc",         "dec",     "and",     "or",      "xor",     "exch", "cas", "noftz"});
  const Operation* const operation = find_operation(d);
  const bool returns = d.source.name == "atom", swaps = d.has("cas");
  if (!operation || d.type(1) != Type::none || (!returns && (swaps || d.has("exch")))) d.unknown();
  const int bytes = size_bytes(operation->type), address = returns ? 1 : 0, num_values = swaps ? 2 : 1;
  if (static_cast<int>(d.source.operands.size()) != address + 1 + num_values + d.has("L2::cache_hint")) d.unknown();
  const Space space = decode_space(d, address);
  d.out.run =
      operation->type == Type::f32 && space == Space::shared ? atomic<AddFloat<false>, uint32_t> : operation->run;
  d.out.cls = Class::atomic;
  d.out.aux = reinterpret_cast<uint64_t>(resolve_in(space));
  decode_order(d);
  const auto value = [&](int i) {
    const Operand& operand = d.source.operands[i];
    if (operand.kind == Operand::Kind::reg && (size_bytes(d.rows.type_of(operand.reg)) == 8) != (bytes == 8)) {
      d.wrong("the size of a register does not fit");
    }
    return d.row(operand, operation->type);
  };
  d.out.op[0] = returns ? value(0) : d.rows.scratch(bytes == 8 ? 8 : 4);
  decode_address(d, address, 1);
  d.out.op[2] = value(address + 1);
  d.out.op[3] = value(address + num_values);
}

void fence(Warp& warp, const Inst&, uint32_t) {
  BlockMemory& memory = memory_of(warp);
  if (memory.global_races) memory.global_races->fence(&memory.order);
}

// Within the block, fences order nothing that barriers do not.
void decode_fence(const Decoding& d) {
  d.allow({"cta", "gl", "gpu", "sys", "sc", "acq_rel", "acquire", "release"});
  const bool wide = d.has("gl") || d.has("gpu") || d.has("sys");
  if (!wide && !d.has("cta")) d.unknown();
  d.out.run = wide ? fence : [](Warp&, const Inst&, uint32_t) {};
  d.out.cls = Class::barrier;
}

}  // namespace

const NamedDecoder kAtomicDecoders[] = {{"atom", decode_atomic},
                                        {"red", decode_atomic},
                                        {"membar", decode_fence},
                                        {"fence", decode_fence},
                                        {nullptr, nullptr}};

}  // namespace lumos::ptxvm
