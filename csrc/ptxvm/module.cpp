// Modules: the variables of a PTX text in host memory, and its kernels.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "ptxvm/kernel.h"

namespace lumos::ptxvm {

struct Module::Contents {
  struct Storage {
    std::unique_ptr<uint8_t[]> memory;
    uint8_t* begin;  // aligned
    size_t num_bytes;
  };
  Program program;
  std::map<std::string, Storage> variables;
  std::map<std::string, std::unique_ptr<Kernel>> kernels;
};

Module::Module(const std::string& ptx) : contents_(std::make_unique<Contents>()) {
  Contents& c = *contents_;
  c.program = parse(ptx);
  Symbols symbols;
  for (const auto* variables : {&c.program.global, &c.program.constant}) {
    const bool writable = variables == &c.program.global;
    for (const Variable& variable : *variables) {
      if (variable.num_bytes <= 0) continue;
      if (variable.align > 4096 || variable.num_bytes > (int64_t{1} << 32)) {
        throw Error(format("variable '%s' is too large", variable.name.c_str()));
      }
      auto memory = std::make_unique<uint8_t[]>(variable.num_bytes + variable.align);
      const auto address =
          (reinterpret_cast<uintptr_t>(memory.get()) + variable.align - 1) / variable.align * variable.align;
      auto* begin = reinterpret_cast<uint8_t*>(address);
      std::memset(begin, 0, variable.num_bytes);
      std::copy(variable.initial.begin(), variable.initial.end(), begin);
      symbols[variable.name] = {writable ? Space::global : Space::constant, address,
                                static_cast<size_t>(variable.num_bytes)};
      c.variables[variable.name] = {std::move(memory), begin, static_cast<size_t>(variable.num_bytes)};
    }
  }
  for (const auto* variables : {&c.program.global, &c.program.constant}) {
    for (const Variable& variable : *variables) {
      for (const auto& [offset, name] : variable.pointers) {
        if (c.program.functions.count(name)) continue;  // nobody can call it: indirect calls are refused
        const auto found = symbols.find(name);
        if (found == symbols.end()) throw Error(format("no variable '%s'", name.c_str()));
        uint8_t* place = c.variables.at(variable.name).begin + offset;
        uint64_t address;
        std::memcpy(&address, place, sizeof address);
        address += found->second.address;
        std::memcpy(place, &address, sizeof address);
      }
    }
  }
  for (const auto& [name, function] : c.program.functions) {
    if (function.is_kernel && function.has_body)
      c.kernels[name] = std::make_unique<Kernel>(c.program, function, symbols);
  }
}

Module::~Module() = default;

std::vector<std::string> Module::kernels() const {
  std::vector<std::string> names;
  for (const auto& [name, kernel] : contents_->kernels) names.push_back(name);
  return names;
}

Kernel* Module::find(const std::string& name) {
  const auto found = contents_->kernels.find(name);
  return found == contents_->kernels.end() ? nullptr : found->second.get();
}

void* Module::variable(const std::string& name, size_t* num_bytes) {
  const auto found = contents_->variables.find(name);
  if (found == contents_->variables.end()) return nullptr;
  if (num_bytes) *num_bytes = found->second.num_bytes;
  return found->second.begin;
}

}  // namespace lumos::ptxvm
