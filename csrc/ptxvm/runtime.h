// The CUDA runtime that the machine stands in for: host code compiled by nvcc calls it by the runtime's own names.
#pragma once

#include <string>

namespace lumos::ptxvm {

// What went wrong in a launch of the calling thread, empty if nothing did. As on a GPU, launches after it fail without
// being run; taking it makes them work again.
std::string take_fault();

}  // namespace lumos::ptxvm
