// The functions of the CUDA runtime that host code compiled with `nvcc --cudart none` calls, answered by the machine.
//
// They have the runtime's names and binary interface, written down here because the machine is built without a toolkit
// too. They are exported for test code that a process loads beside the extension; the extension itself is linked with
// -Bsymbolic, so that its own calls never reach a real runtime that torch has brought along.
#include "ptxvm/runtime.h"

#include <algorithm>
#include <list>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ptxvm/fatbin.h"
#include "ptxvm/fault.h"
#include "ptxvm/kernel.h"
#include "ptxvm/machine.h"

namespace lumos::ptxvm {
namespace {

// cudaError_t
enum Status : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kInvalidConfiguration = 9,
  kInvalidDeviceFunction = 98,
  kInvalidDevice = 101,
  kLaunchFailure = 719
};

// The GPU that the machine says it is: compute capability 8.0. Two of them, so that a launcher which forgets the device
// of its tensors can be caught.
constexpr int kNumDevices = 2;
constexpr int kSharedBytesPerSm = 164 * 1024, kReservedSharedBytes = 1024, kSharedBytes = 48 * 1024;
constexpr int kSharedBytesOptIn = kSharedBytesPerSm - kReservedSharedBytes;
constexpr int kThreadsPerSm = 2048, kBlocksPerSm = 32;

// Of a cudaDeviceAttr; -1 for those that no launcher asks for.
int device_attribute(int attribute) {
  switch (attribute) {
    case 1:                                 // threads of a block
    case 2:                                 // along x
    case 3: return 1024;                    // along y
    case 4: return 64;                      // along z
    case 5: return 0x7fffffff;              // blocks of a grid along x
    case 6:                                 // along y
    case 7: return 65535;                   // along z
    case 8: return kSharedBytes;            // shared memory of a block, unless it asks for more
    case 10: return kLanes;                 // threads of a warp
    case 12:                                // registers of a block
    case 82: return 65536;                  // of a multiprocessor
    case 16: return 108;                    // multiprocessors
    case 38: return 40 << 20;               // bytes of the second-level cache
    case 39: return kThreadsPerSm;          // threads of a multiprocessor
    case 75: return 8;                      // compute capability, major
    case 76: return 0;                      // and minor
    case 81: return kSharedBytesPerSm;      // shared memory of a multiprocessor
    case 97: return kSharedBytesOptIn;      // of a block that asks for it
    case 106: return kBlocksPerSm;          // blocks of a multiprocessor
    case 111: return kReservedSharedBytes;  // shared memory that every block takes beside its own
    default: return -1;
  }
}

struct Binary {
  const void* fat_binary;
  std::unique_ptr<Module> module;  // parsed at the first launch, so that an import is quick and cannot fail
};

struct Entry {
  Binary* binary = nullptr;
  std::string name;
  // Set by cudaFuncSetAttribute for the current device alone; -1 = not set.
  int64_t max_dynamic_shared_bytes[kNumDevices] = {-1, -1};

  Kernel& kernel() {
    if (!binary->module) binary->module = std::make_unique<Module>(ptx_of_fat_binary(binary->fat_binary));
    Kernel* found = binary->module->find(name);
    if (!found) throw Error("the PTX of the fat binary has no kernel '" + name + "'");
    return *found;
  }
};

// Never destroyed: host code unregisters its binaries while the process ends.
std::list<Binary>& binaries() {
  static auto& list = *new std::list<Binary>;
  return list;
}
std::unordered_map<const void*, Entry>& entries() {  // by the address of the host's stub
  static auto& map = *new std::unordered_map<const void*, Entry>;
  return map;
}

struct CallConfiguration {
  Dim3 grid, block;
  size_t shared_bytes;
  void* stream;
};

thread_local int current_device = 0;
thread_local int last_error = kSuccess;
thread_local std::string fault;
thread_local std::vector<CallConfiguration> configurations;

int remember(int status) {
  if (status != kSuccess) last_error = status;
  return status;
}

Entry* find(const void* stub) {
  const auto found = entries().find(stub);
  return found == entries().end() ? nullptr : &found->second;
}

// Runs `body`, which returns a Status, and remembers what it throws.
template <class Body>
int guarded(Entry* entry, Body&& body) {
  if (!entry) return remember(kInvalidDeviceFunction);
  try {
    return remember(body(entry->kernel()));
  } catch (const Fault& found) {
    fault = found.what();
    return remember(kLaunchFailure);
  } catch (const std::exception& found) {
    fault = found.what();
    return remember(kInvalidValue);
  }
}

int launch_entry(Entry* entry, const Dim3& grid, const Dim3& block, void** arguments, size_t shared_bytes,
                 const void* stream) {
  if (!fault.empty()) return remember(kLaunchFailure);
  return guarded(entry, [&](Kernel& kernel) {
    const int64_t asked = entry->max_dynamic_shared_bytes[current_device];
    const int64_t allowed = asked >= 0 ? asked : kSharedBytes - int64_t(kernel.static_shared_bytes);
    if (int64_t(shared_bytes) > allowed)
      throw Error(format("%s: %zu bytes of dynamic shared memory; device %d allows it %lld, see cudaFuncSetAttribute",
                         entry->name.c_str(), shared_bytes, current_device, static_cast<long long>(allowed)));
    launch(kernel, {grid, block, uint32_t(shared_bytes)}, arguments);
    launches().back().device = current_device;
    launches().back().stream = stream;
    return kSuccess;
  });
}

}  // namespace

std::string take_fault() {
  last_error = kSuccess;
  return std::exchange(fault, {});
}

}  // namespace lumos::ptxvm

using namespace lumos::ptxvm;

#pragma GCC visibility push(default)
extern "C" {

void** __cudaRegisterFatBinary(void* fat_binary) {
  binaries().push_back({fat_binary, nullptr});
  return reinterpret_cast<void**>(&binaries().back());
}

void __cudaRegisterFatBinaryEnd(void**) {}

void __cudaUnregisterFatBinary(void** handle) {
  for (auto entry = entries().begin(); entry != entries().end();)
    entry = static_cast<void*>(entry->second.binary) == handle ? entries().erase(entry) : std::next(entry);
  binaries().remove_if([&](const Binary& binary) { return static_cast<const void*>(&binary) == handle; });
}

void __cudaRegisterFunction(void** handle, const char* stub, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
  Entry entry;
  entry.binary = reinterpret_cast<Binary*>(handle);
  entry.name = name;
  entries()[stub] = entry;
}

// Variables live in the module; nothing copies to or from them.
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

char __cudaInitModule(void**) { return 1; }

int __cudaGetKernel(void** kernel, const void* stub) {
  *kernel = find(stub);
  return *kernel ? kSuccess : remember(kInvalidDeviceFunction);
}

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared_bytes, void* stream) {
  configurations.push_back({grid, block, shared_bytes, stream});
  return 0;
}

int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared_bytes, void** stream) {
  if (configurations.empty()) return remember(kInvalidConfiguration);
  const CallConfiguration& last = configurations.back();
  *grid = last.grid;
  *block = last.block;
  *shared_bytes = last.shared_bytes;
  *stream = last.stream;
  configurations.pop_back();
  return kSuccess;
}

int __cudaLaunchKernel(void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared_bytes, void* stream) {
  return launch_entry(static_cast<Entry*>(kernel), grid, block, arguments, shared_bytes, stream);
}

int cudaLaunchKernel(const void* stub, Dim3 grid, Dim3 block, void** arguments, size_t shared_bytes, void* stream) {
  return launch_entry(find(stub), grid, block, arguments, shared_bytes, stream);
}

int cudaFuncSetAttribute(const void* stub, int attribute, int value) {
  constexpr int kMaxDynamicSharedBytes = 8, kPreferredSharedCarveout = 9;
  Entry* entry = find(stub);
  return guarded(entry, [&](const Kernel& kernel) {
    if (attribute == kPreferredSharedCarveout) return value >= -1 && value <= 100 ? kSuccess : kInvalidValue;
    const int64_t allowed = kSharedBytesOptIn - int64_t(kernel.static_shared_bytes);
    if (attribute != kMaxDynamicSharedBytes || value < 0 || value > allowed) return kInvalidValue;
    entry->max_dynamic_shared_bytes[current_device] = value;
    return kSuccess;
  });
}

// An upper bound: the machine does not know how many registers a GPU would take.
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* num_blocks, const void* stub, int block_threads,
                                                           size_t shared_bytes, unsigned) {
  return guarded(find(stub), [&](const Kernel& kernel) {
    if (block_threads < 1) return kInvalidValue;
    const size_t used = kernel.static_shared_bytes + shared_bytes + kReservedSharedBytes;
    *num_blocks = std::min({kBlocksPerSm, kThreadsPerSm / block_threads, int(kSharedBytesPerSm / used)});
    return kSuccess;
  });
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* num_blocks, const void* stub, int block_threads,
                                                  size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(num_blocks, stub, block_threads, shared_bytes, 0);
}

int cudaGetLastError() { return std::exchange(last_error, kSuccess); }
int cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorString(int status) {
  switch (status) {
    case kSuccess: return "no error";
    case kInvalidValue: return "invalid argument";
    case kInvalidConfiguration: return "invalid configuration argument";
    case kInvalidDeviceFunction: return "invalid device function";
    case kInvalidDevice: return "invalid device ordinal";
    case kLaunchFailure: return "unspecified launch failure";
    default: return "unrecognized error code";
  }
}

int cudaGetDeviceCount(int* count) {
  *count = kNumDevices;
  return kSuccess;
}

int cudaGetDevice(int* device) {
  *device = current_device;
  return kSuccess;
}

int cudaSetDevice(int device) {
  if (device < 0 || device >= kNumDevices) return remember(kInvalidDevice);
  current_device = device;
  return kSuccess;
}

int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  if (device < 0 || device >= kNumDevices) return remember(kInvalidDevice);
  *value = device_attribute(attribute);
  return *value < 0 ? remember(kInvalidValue) : kSuccess;
}

}  // extern "C"
#pragma GCC visibility pop
