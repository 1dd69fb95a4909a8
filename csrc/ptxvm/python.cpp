// What Python sees of the machine: lumos_engine._C_ptxvm beside the operations. See lumos_engine/testing/emulation.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "ptxvm/fault.h"
#include "ptxvm/machine.h"
#include "ptxvm/runtime.h"

namespace lumos {

namespace py = pybind11;
namespace vm = ptxvm;
using Extents = std::tuple<uint32_t, uint32_t, uint32_t>;

static vm::Dim3 dim3(const Extents& e) { return {std::get<0>(e), std::get<1>(e), std::get<2>(e)}; }
static Extents extents(const vm::Dim3& d) { return {d.x, d.y, d.z}; }

static vm::Kernel& find(vm::Module& module, const std::string& name) {
  vm::Kernel* kernel = module.find(name);
  if (!kernel) throw vm::Error("the module has no kernel '" + name + "'");
  return *kernel;
}

static std::vector<int64_t> parameters(vm::Module& module, const std::string& name) {
  const vm::Kernel& kernel = find(module, name);
  std::vector<int64_t> bytes;
  for (int i = 0; i < vm::num_parameters(kernel); ++i) bytes.push_back(vm::parameter_bytes(kernel, i));
  return bytes;
}

static void launch(vm::Module& module, const std::string& name, const Extents& grid, const Extents& block,
                   const std::vector<std::string>& arguments, uint32_t shared_bytes) {
  const std::vector<int64_t> bytes = parameters(module, name);
  if (bytes.size() != arguments.size())
    throw vm::Error(vm::format("kernel %s takes %zu arguments, not %zu", name.c_str(), bytes.size(), arguments.size()));
  std::vector<const void*> pointers;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (arguments[i].size() != size_t(bytes[i]))
      throw vm::Error(vm::format("argument %zu of kernel %s has %zu bytes; its parameter has %zu", i, name.c_str(),
                                 arguments[i].size(), size_t(bytes[i])));
    pointers.push_back(arguments[i].data());
  }
  py::gil_scoped_release release;
  vm::launch(find(module, name), {dim3(grid), dim3(block), shared_bytes}, pointers.data());
}

static py::dict record(const vm::LaunchRecord& launch) {
  py::list lines;
  for (const vm::LineCounter& line : launch.lines) {
    const vm::Counter& counter = line.counter;
    py::dict row;
    row["file"] = line.file;
    row["line"] = line.line;
    row["class"] = vm::class_name(line.cls);
    row["instructions"] = counter.instructions;
    row["lanes"] = counter.lanes;
    row["bytes"] = counter.bytes;
    row["sectors"] = counter.sectors;
    row["wavefronts"] = counter.wavefronts;
    row["ideal_wavefronts"] = counter.ideal_wavefronts;
    lines.append(row);
  }
  py::dict row;
  row["kernel"] = launch.kernel;
  row["grid"] = extents(launch.config.grid);
  row["block"] = extents(launch.config.block);
  row["dynamic_shared_bytes"] = launch.config.dynamic_shared_bytes;
  row["static_shared_bytes"] = launch.static_shared_bytes;
  row["device"] = launch.device;
  row["stream"] = reinterpret_cast<uintptr_t>(launch.stream);
  row["seconds"] = launch.seconds;
  row["lines"] = lines;
  row["synchronisations"] = launch.synchronisations;
  return row;
}

static std::vector<py::dict> synchronisations(vm::Module& module, const std::string& name) {
  std::vector<py::dict> rows;
  for (const vm::Synchronisation& found : vm::synchronisations(find(module, name))) {
    py::dict row;
    row["index"] = found.index;
    row["opcode"] = found.opcode;
    row["file"] = found.file;
    row["line"] = found.line;
    rows.push_back(row);
  }
  return rows;
}

void register_ptxvm(py::module_& module) {
  py::register_local_exception<vm::Fault>(module, "KernelFault", PyExc_RuntimeError);
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const vm::Error& wrong) {
      PyErr_SetString(PyExc_ValueError, wrong.what());
    }
  });

  py::class_<vm::Module>(module, "PtxModule", py::module_local())
      .def(py::init<const std::string&>(), py::arg("ptx"))
      .def_property_readonly("kernels", &vm::Module::kernels)
      .def("parameters", &parameters, py::arg("kernel"))
      .def("synchronisations", &synchronisations, py::arg("kernel"))
      .def("launch", &launch, py::arg("kernel"), py::arg("grid"), py::arg("block"), py::arg("arguments"),
           py::arg("shared_bytes") = 0);

  module.def(
      "add_buffer",
      [](uintptr_t pointer, size_t num_bytes, const std::string& name, bool writable) {
        vm::add_buffer(reinterpret_cast<const void*>(pointer), num_bytes, name, writable);
      },
      py::arg("pointer"), py::arg("num_bytes"), py::arg("name"), py::arg("writable") = true);
  module.def("clear_buffers", &vm::clear_buffers);
  module.def("launches", [] {
    std::vector<py::dict> rows;
    for (const vm::LaunchRecord& launch : vm::launches()) rows.push_back(record(launch));
    return rows;
  });
  module.def("clear_launches", [] { vm::launches().clear(); });

  module.def("take_fault", &vm::take_fault);

  const vm::Options defaults;
  module.def(
      "set_options",
      [](bool permute, uint64_t seed, bool check_races, bool allow_repeated_stores, bool count_traffic,
         int resident_blocks, uint64_t max_instructions, int skip_instruction, const std::string& skip_kernel) {
        vm::options() = {permute,          seed,
                         check_races,      allow_repeated_stores,
                         count_traffic,    resident_blocks,
                         max_instructions, skip_instruction,
                         skip_kernel};
      },
      "Sets every option; those that are not named get their defaults.", py::kw_only(),
      py::arg("permute") = defaults.permute, py::arg("seed") = defaults.seed,
      py::arg("check_races") = defaults.check_races, py::arg("allow_repeated_stores") = defaults.allow_repeated_stores,
      py::arg("count_traffic") = defaults.count_traffic, py::arg("resident_blocks") = defaults.resident_blocks,
      py::arg("max_instructions") = defaults.max_instructions, py::arg("skip_instruction") = defaults.skip_instruction,
      py::arg("skip_kernel") = defaults.skip_kernel);
}

}  // namespace lumos
