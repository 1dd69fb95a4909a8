#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // leaf 7, edx
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  if (!__builtin_cpu_supports("avx512bf16")) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::amx: return "amx";
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
      static const bool tiles = may_use_tiles();  // one permission serves all threads and forked children
      if (tiles) isas.push_back(Isa::amx);
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
