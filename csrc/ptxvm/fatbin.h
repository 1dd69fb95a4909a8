// The PTX text inside what nvcc embeds into a host object.
#pragma once

#include <string>

namespace lumos::ptxvm {

// fat_binary: what nvcc's code hands to __cudaRegisterFatBinary. Throws Error if it is none, holds no PTX, or
// compressed PTX.
std::string ptx_of_fat_binary(const void* fat_binary);

}  // namespace lumos::ptxvm
