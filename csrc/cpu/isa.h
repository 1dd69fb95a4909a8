// Instruction sets that kernels are compiled for, and the one in use. At level amx (AVX-512 with bf16, and tiles) an
// operation runs its kernels of level avx512, except for those that it has for tiles.
#pragma once

#include <vector>

namespace lumos {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2, amx = 3 };

const char* isa_name(Isa isa);

// Instruction sets of this build that this processor runs, lowest first. amx is among them if the kernel of the
// operating system lets the process use tiles; the first call asks it.
std::vector<Isa> available_isas();

// The one in use: the highest available, or what LUMOS_CPU_ISA or set_isa names. Throws std::invalid_argument when the
// environment variable names none of available_isas().
Isa active_isa();

// Use `name` from now on (tests compare the levels of one machine). Throws std::invalid_argument for an unknown name.
void set_isa(const char* name);

}  // namespace lumos
