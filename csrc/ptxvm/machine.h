// The machine: modules of PTX, buffers that kernels may touch, launches and what they counted.
//
// There is one machine in a process, and one launch at a time runs in it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ptxvm/instruction.h"

namespace lumos::ptxvm {

struct Options {
  bool permute = false;  // run blocks and warps in an order drawn from `seed`, switching between warps at random
  uint64_t seed = 0;
  bool check_races = true;             // in shared memory between warps, in global memory between blocks
  bool allow_repeated_stores = false;  // of a warp that stores to shared memory what another warp has stored there
  bool count_traffic = true;           // sectors and wavefronts; instructions are always counted
  int resident_blocks = 1;             // blocks that run side by side; more than one where blocks wait for each other
  uint64_t max_instructions = 200000000;  // a warp that executes more is stopped with a Fault; 0 = no limit
  int skip_instruction = -1;              // index of an instruction to leave out, and of which kernel: see skip_kernel
  std::string skip_kernel;
};
Options& options();

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

struct LaunchConfig {
  Dim3 grid, block;
  uint32_t dynamic_shared_bytes = 0;
};

struct Kernel;  // kernel.h

class Module {
 public:
  explicit Module(const std::string& ptx);  // throws Error
  ~Module();
  std::vector<std::string> kernels() const;
  Kernel* find(const std::string& name);                       // nullptr if it has none of that name
  void* variable(const std::string& name, size_t* num_bytes);  // global or constant variable; nullptr if it has none
 private:
  struct Contents;
  std::unique_ptr<Contents> contents_;
};

// Bytes of host memory that kernels may touch as global memory.
void add_buffer(const void* begin, size_t num_bytes, const std::string& name, bool writable = true);
void clear_buffers();

// arguments: one pointer for each parameter of the kernel. Throws Error for a call that no GPU would take and Fault for
// what the kernel did wrong.
void launch(Kernel& kernel, const LaunchConfig& config, const void* const* arguments);
int num_parameters(const Kernel& kernel);
int64_t parameter_bytes(const Kernel& kernel, int i);

struct Counter {
  uint64_t instructions = 0;                      // warp instructions
  uint64_t lanes = 0;                             // active lanes, summed over them
  uint64_t bytes = 0;                             // asked for in memory
  uint64_t sectors = 0;                           // of 32 bytes, touched in global memory by each instruction
  uint64_t wavefronts = 0, ideal_wavefronts = 0;  // of shared memory
};

struct LineCounter {
  std::string file;
  int line = 0;
  Class cls = Class::count;
  Counter counter;
};

struct LaunchRecord {
  std::string kernel;
  LaunchConfig config;
  uint32_t static_shared_bytes = 0;
  double seconds = 0;
  std::vector<LineCounter> lines;                          // one a source line and class
  std::vector<std::pair<int, uint64_t>> synchronisations;  // Synchronisation::index, how often a warp executed it
  int device = 0;                                          // current when it was launched
  const void* stream = nullptr;                            // that it was launched on
};
std::vector<LaunchRecord>& launches();  // since the list was last cleared

// The synchronising instructions of a kernel: barriers, waits, commits, fences. For tools that leave one out.
struct Synchronisation {
  int index;  // of Options::skip_instruction
  std::string opcode, file;
  int line;
};
std::vector<Synchronisation> synchronisations(const Kernel& kernel);

}  // namespace lumos::ptxvm
