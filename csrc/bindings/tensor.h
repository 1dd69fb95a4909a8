// Tensors as Python passes them: the tuple (data_ptr, dtype code, shape, strides in elements), or None for none. Where
// an operation runs: the tuple (GPU, stream, threads of the CPU).
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "lumos/dtype.h"
#include "lumos/status.h"
#ifdef LUMOS_PTXVM
#include "bindings/emulated.h"
#endif

namespace lumos {

struct Tensor {
  void* data = nullptr;
  lumos_dtype dtype = LUMOS_FLOAT32;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

struct Device {
  int gpu = -1;  // index; -1: the CPU
  void* stream = nullptr;
  int num_threads = 1;
};

// Throws ValueError unless `tensor` has this dtype and this shape and is contiguous; -1 stands for any extent. The
// Python side has checked already and says it better; this keeps a direct caller of _C from reading outside an array.
inline void expect(const Tensor& tensor, const char* name, lumos_dtype dtype, const std::vector<int64_t>& shape,
                   bool last_dimension_only = false) {
  bool good = tensor.dtype == dtype && tensor.shape.size() == shape.size();
  bool empty = false;  // of a tensor without elements no stride matters
  for (int64_t extent : tensor.shape) empty = empty || extent == 0;
  int64_t packed = 1;
  for (size_t i = shape.size(); good && i-- > 0;) {
    good = (shape[i] < 0 || tensor.shape[i] == shape[i]) && tensor.shape[i] >= 0;
    const bool matters = !empty && tensor.shape[i] > 1 && (!last_dimension_only || i + 1 == shape.size());
    good = good && (!matters || tensor.strides[i] == packed) && tensor.strides[i] >= 0;
    packed *= tensor.shape[i];
  }
  if (!good) throw pybind11::value_error(std::string(name) + " has the wrong dtype, shape or strides");
}

// Raises the Python exception that belongs to `status`.
inline void raise_unless_ok(const lumos_status& status) {
  switch (status.code) {
    case LUMOS_OK: return;
    case LUMOS_INVALID_ARGUMENT: throw pybind11::value_error(status.message);
    case LUMOS_UNSUPPORTED_TYPE: throw pybind11::type_error(status.message);
    case LUMOS_OUT_OF_MEMORY: PyErr_SetString(PyExc_MemoryError, status.message); throw pybind11::error_already_set();
    default: throw std::runtime_error(status.message);
  }
}

// Runs a C API function without the interpreter lock and raises what it returns.
template <class Params>
void call(lumos_status (*function)(const Params*), const Params& params) {
  lumos_status status;
  {
    pybind11::gil_scoped_release release;
#ifdef LUMOS_PTXVM
    status = call_emulated([&] { return function(&params); });
#else
    status = function(&params);
#endif
  }
  raise_unless_ok(status);
}

template <class Params>
using Launcher = lumos_status (*)(const Params*);

// The launchers of an operation with a CUDA kernel, for call_on.
#ifdef LUMOS_WITH_CUDA
#define LUMOS_LAUNCHERS(op) lumos_cpu_##op, lumos_cuda_##op
#else
#define LUMOS_LAUNCHERS(op) lumos_cpu_##op
#endif

// Runs the launcher of `device`, which stands then in `place` too, the part of `params` that says where.
template <class Params, class Place>
void call_on(const Device& device, const Params& params, Place& place, Launcher<Params> cpu,
             Launcher<Params> cuda = nullptr) {
  place.num_threads = device.num_threads;
  place.device = device.gpu;
  place.stream = device.stream;
  if (device.gpu < 0) return call(cpu, params);
  if (!cuda) throw std::runtime_error("lumos_engine was built without CUDA kernels; move the tensors to the CPU");
  call(cuda, params);
}
template <class Params>
void call_on(const Device& device, Params& params, Launcher<Params> cpu, Launcher<Params> cuda = nullptr) {
  call_on(device, params, params, cpu, cuda);
}

}  // namespace lumos

namespace pybind11::detail {

template <>
struct type_caster<lumos::Tensor> {
  PYBIND11_TYPE_CASTER(lumos::Tensor, const_name("tuple | None"));

  bool load(handle source, bool) {
    if (source.is_none()) return true;
    if (!isinstance<tuple>(source)) return false;
    const auto fields = reinterpret_borrow<tuple>(source);
    if (fields.size() != 4) return false;
    value.data = reinterpret_cast<void*>(fields[0].cast<uintptr_t>());
    value.dtype = static_cast<lumos_dtype>(fields[1].cast<int>());
    value.shape = fields[2].cast<std::vector<int64_t>>();
    value.strides = fields[3].cast<std::vector<int64_t>>();
    if (value.shape.size() != value.strides.size()) return false;
    for (size_t i = 0; i < value.shape.size(); ++i) {
      if (value.shape[i] <= 1) value.strides[i] = 0;  // nobody goes along it, so no kernel shall mind it
    }
#ifdef LUMOS_PTXVM
    bytes.set(value.data, value.dtype, value.shape, value.strides);
#endif
    return true;
  }

#ifdef LUMOS_PTXVM
  lumos::ArgumentBytes bytes;
#endif
};

template <>
struct type_caster<lumos::Device> {
  PYBIND11_TYPE_CASTER(lumos::Device, const_name("tuple"));

  bool load(handle source, bool) {
    if (!isinstance<tuple>(source)) return false;
    const auto fields = reinterpret_borrow<tuple>(source);
    if (fields.size() != 3) return false;
    value.gpu = fields[0].cast<int>();
    value.stream = reinterpret_cast<void*>(fields[1].cast<uintptr_t>());
    value.num_threads = fields[2].cast<int>();
    return true;
  }
};

}  // namespace pybind11::detail
