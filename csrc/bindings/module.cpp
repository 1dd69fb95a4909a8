// lumos_engine._C: the C++ operations, without torch and without numpy.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace lumos {

#define LUMOS_OP(name) void register_##name(pybind11::module_& module);
#include "bindings/ops.def"
#undef LUMOS_OP
#ifdef LUMOS_PTXVM
#define LUMOS_MODULE _C_ptxvm
void register_ptxvm(pybind11::module_& module);
#else
#define LUMOS_MODULE _C
#endif
#ifndef LUMOS_WITH_CUDA
#define LUMOS_CUDA_OPS ""
#endif

// Functions below whose CUDA kernels are linked: the build names them, separated by commas.
static std::vector<std::string> cuda_kernels() {
  std::vector<std::string> names;
  std::istringstream ops(LUMOS_CUDA_OPS);
  for (std::string name; std::getline(ops, name, ',');) names.push_back(name);
  return names;
}

}  // namespace lumos

PYBIND11_MODULE(LUMOS_MODULE, module, pybind11::mod_gil_not_used()) {
  module.doc() = "C++ operations of lumos_engine. Use lumos_engine.ops: it checks arguments and says what is wrong.";
  module.def("available_isas", [] {
    std::vector<std::string> names;
    for (lumos::Isa isa : lumos::available_isas()) names.emplace_back(lumos::isa_name(isa));
    return names;
  });
  module.def("cuda_kernels", &lumos::cuda_kernels);
  module.def("cpu_isa", [] { return lumos::isa_name(lumos::active_isa()); });
  module.def("set_cpu_isa", [](const std::string& name) { lumos::set_isa(name.c_str()); });
#define LUMOS_OP(name) lumos::register_##name(module);
#include "bindings/ops.def"
#undef LUMOS_OP
#ifdef LUMOS_PTXVM
  lumos::register_ptxvm(module);
#endif
}
