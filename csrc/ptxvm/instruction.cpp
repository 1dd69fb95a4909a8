#include "ptxvm/instruction.h"

namespace lumos::ptxvm {

const char* class_name(Class c) {
  static const char* const kNames[] = {
      "mma",     "matrix_load", "fp32",       "fp64",        "half",         "special",     "integer",
      "convert", "move",        "compare",    "shared_load", "shared_store", "global_load", "global_store",
      "local",   "constant",    "async_copy", "atomic",      "warp",         "barrier",     "control"};
  static_assert(sizeof kNames / sizeof *kNames == static_cast<int>(Class::count));
  return kNames[static_cast<int>(c)];
}

}  // namespace lumos::ptxvm
