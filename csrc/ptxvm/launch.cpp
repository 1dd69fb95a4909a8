// A launch: blocks one after the other or a few side by side, and what they counted.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>

#include "ptxvm/block.h"

namespace lumos::ptxvm {
namespace {

constexpr uint32_t kMaxSharedBytes = 163 * 1024;  // of sm_80
constexpr uint64_t kBlockQuantum = 1 << 16;       // warp instructions of a block before another resident one runs
constexpr uint64_t kPermutedBlockQuantum = 256;

void check(const Kernel& kernel, const LaunchConfig& config) {
  const uint64_t threads = uint64_t{config.block.x} * config.block.y * config.block.z;
  auto refuse = [&](const std::string& what) { throw Error(kernel.name + ": " + what); };
  if (threads == 0 || threads > 1024 || config.block.z > 64) {
    refuse(format("a block of %u x %u x %u threads; 1..1024 are allowed, 64 in z", config.block.x, config.block.y,
                  config.block.z));
  }
  if (kernel.function.max_threads && threads > static_cast<uint64_t>(kernel.function.max_threads)) {
    refuse(format("a block of %llu threads; it was compiled for at most %d", static_cast<unsigned long long>(threads),
                  kernel.function.max_threads));
  }
  if (!config.grid.x || !config.grid.y || !config.grid.z || config.grid.x > 0x7fffffffu || config.grid.y > 65535 ||
      config.grid.z > 65535) {
    refuse(format("a grid of %u x %u x %u blocks; 1..2147483647 x 65535 x 65535 are allowed", config.grid.x,
                  config.grid.y, config.grid.z));
  }
  if (uint64_t{kernel.static_shared_bytes} + config.dynamic_shared_bytes > kMaxSharedBytes) {
    refuse(format("%u + %u bytes of shared memory; at most %u are allowed", kernel.static_shared_bytes,
                  config.dynamic_shared_bytes, kMaxSharedBytes));
  }
}

// The code, without the instruction that the options leave out.
std::vector<Inst> code_of(const Kernel& kernel) {
  std::vector<Inst> code = kernel.code;
  const int skipped = options().skip_instruction;
  if (kernel.name == options().skip_kernel && skipped >= 0 && skipped < static_cast<int>(code.size())) {
    code[skipped].flow = Flow::none;
    code[skipped].run = [](Warp&, const Inst&, uint32_t) {};
  }
  return code;
}

LaunchRecord record_of(const Kernel& kernel, const LaunchConfig& config, const std::vector<Counter>& counters,
                       double seconds) {
  LaunchRecord record{kernel.name, config, kernel.static_shared_bytes, seconds, {}, {}};
  std::map<std::pair<std::pair<int, int>, Class>, LineCounter> lines;
  for (size_t i = 0; i < counters.size(); ++i) {
    if (!counters[i].instructions) continue;
    const Location& location = kernel.function.instructions[i].location;
    LineCounter& line = lines[{{location.file, location.line}, kernel.code[i].cls}];
    const auto file = kernel.files.find(location.file);
    line.file = file == kernel.files.end() ? "" : file->second;
    line.line = location.line;
    line.cls = kernel.code[i].cls;
    line.counter.instructions += counters[i].instructions;
    line.counter.lanes += counters[i].lanes;
    line.counter.bytes += counters[i].bytes;
    line.counter.sectors += counters[i].sectors;
    line.counter.wavefronts += counters[i].wavefronts;
    line.counter.ideal_wavefronts += counters[i].ideal_wavefronts;
  }
  for (auto& [key, line] : lines) record.lines.push_back(std::move(line));
  for (const Synchronisation& s : synchronisations(kernel)) {
    record.synchronisations.push_back({s.index, counters[s.index].instructions});
  }
  return record;
}

}  // namespace

Options& options() {
  static Options* const all = new Options;
  return *all;
}

std::vector<LaunchRecord>& launches() {
  static auto* const all = new std::vector<LaunchRecord>;
  return *all;
}

int num_parameters(const Kernel& kernel) { return static_cast<int>(kernel.parameter_places.size()); }
int64_t parameter_bytes(const Kernel& kernel, int i) { return kernel.parameter_places.at(i).second; }

void launch(Kernel& kernel, const LaunchConfig& config, const void* const* arguments) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  check(kernel, config);
  for (size_t i = 0; i < kernel.parameter_places.size(); ++i) {
    const auto [offset, num_bytes] = kernel.parameter_places[i];
    std::memcpy(kernel.parameters.data() + offset, arguments[i], num_bytes);
  }
  for (const auto& [name, variable] : kernel.variables) {
    const auto* begin = reinterpret_cast<const void*>(variable.address);
    if (!find_buffer(variable.address, variable.num_bytes, 0)) {
      add_buffer(begin, variable.num_bytes, name, variable.space == Space::global);
    }
  }
  set_parameter_range(kernel.parameters.data(), kernel.parameters.size());
  const auto begin = std::chrono::steady_clock::now();
  const std::vector<Inst> code = code_of(kernel);
  std::vector<Counter> counters(code.size());
  const int64_t num_blocks = int64_t{config.grid.x} * config.grid.y * config.grid.z;
  GlobalRaces races(kernel.global_granule);
  clear_histories();
  GlobalRaces* const checked = options().check_races && num_blocks > 1 ? &races : nullptr;

  Schedule schedule{options().seed, options().permute};
  std::vector<int64_t> order;
  if (schedule.permute) {
    order.resize(num_blocks);
    std::iota(order.begin(), order.end(), 0);
    for (int64_t i = num_blocks; i > 1; --i) std::swap(order[i - 1], order[schedule.next() % i]);
  }
  std::vector<std::unique_ptr<Block>> resident;
  for (int64_t i = 0; i < std::min<int64_t>(num_blocks, std::max(1, options().resident_blocks)); ++i) {
    resident.push_back(std::make_unique<Block>(kernel, code, config, counters.data()));
  }
  int64_t next = 0;
  std::vector<Block*> running;
  auto start = [&](Block* block) {
    block->start(schedule.permute ? order[next] : next, checked);
    ++next;
  };
  for (auto& block : resident) {
    start(block.get());
    running.push_back(block.get());
  }
  const uint64_t quantum = schedule.permute ? kPermutedBlockQuantum : kBlockQuantum;
  for (size_t turn = 0; !running.empty();) {
    const size_t i = schedule.permute ? schedule.below(static_cast<uint32_t>(running.size())) : turn++ % running.size();
    if (!running[i]->run(&schedule, quantum)) continue;
    if (next < num_blocks) {
      start(running[i]);
    } else {
      running.erase(running.begin() + i);
    }
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  launches().push_back(record_of(kernel, config, counters, seconds.count()));
}

std::vector<Synchronisation> synchronisations(const Kernel& kernel) {
  std::vector<Synchronisation> found;
  for (size_t i = 0; i < kernel.function.instructions.size(); ++i) {
    const Instruction& instruction = kernel.function.instructions[i];
    const std::string& name = instruction.name;
    const bool of_copies = name == "cp" && (instruction.has("commit_group") || instruction.has("wait_group") ||
                                            instruction.has("wait_all"));
    if (name != "bar" && name != "barrier" && name != "membar" && name != "fence" && !of_copies) continue;
    const auto file = kernel.files.find(instruction.location.file);
    found.push_back({static_cast<int>(i), instruction.opcode(), file == kernel.files.end() ? "" : file->second,
                     instruction.location.line});
  }
  return found;
}

}  // namespace lumos::ptxvm
