#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace lumos {
namespace {

constexpr int kUnset = -1;
std::atomic<int> g_active{kUnset};

Isa parse(const std::string& name, const char* source) {
  std::string allowed;
  for (Isa isa : available_isas()) {
    if (name == isa_name(isa)) return isa;
    allowed += (allowed.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::invalid_argument(std::string(source) + " is '" + name + "'; this build and processor allow " + allowed);
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "portable";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas{Isa::portable};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    isas.push_back(Isa::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      isas.push_back(Isa::avx512);
    }
  }
#endif
  return isas;
}

Isa active_isa() {
  int isa = g_active.load(std::memory_order_relaxed);
  if (isa == kUnset) {
    const char* lowered = std::getenv("LUMOS_CPU_ISA");
    isa = static_cast<int>(lowered && *lowered ? parse(lowered, "LUMOS_CPU_ISA") : available_isas().back());
    g_active.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

void set_isa(const char* name) { g_active.store(static_cast<int>(parse(name, "isa")), std::memory_order_relaxed); }

}  // namespace lumos
