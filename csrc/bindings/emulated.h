// Calls of the C API in _C_ptxvm: kernels may touch the tensors among the arguments of the call that launches them and
// nothing else, and what they do wrong becomes an exception with its whole text.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "lumos/dtype.h"
#include "ptxvm/fault.h"
#include "ptxvm/machine.h"
#include "ptxvm/runtime.h"

namespace lumos {

// The bytes of a tensor argument, known from its conversion to the end of the call.
class ArgumentBytes {
 public:
  ArgumentBytes() = default;
  ArgumentBytes(const ArgumentBytes&) = delete;
  ~ArgumentBytes() {
    if (known_ && --num_known == 0) all.clear();  // the arguments of a call end together
  }

  void set(const void* data, lumos_dtype dtype, const std::vector<int64_t>& shape,
           const std::vector<int64_t>& strides) {
    constexpr int64_t kElementBytes[] = {4, 2, 2, 8, 4, 8, 1, 1};  // lumos_dtype
    int64_t num_elements = 1;
    for (size_t i = 0; i < shape.size(); ++i) {
      if (shape[i] <= 0) return;  // it has no bytes
      num_elements += (shape[i] - 1) * strides[i];
    }
    all.push_back({data, num_elements * kElementBytes[dtype]});
    known_ = true;
    ++num_known;
  }

  static void become_buffers() {
    for (size_t i = 0; i < all.size(); ++i)
      ptxvm::add_buffer(all[i].begin, all[i].num_bytes, ptxvm::format("tensor %zu of the call", i));
  }

 private:
  struct Bytes {
    const void* begin;
    int64_t num_bytes;
  };
  static inline thread_local std::vector<Bytes> all;
  static inline thread_local int num_known = 0;
  bool known_ = false;
};

// What `function` returns. Throws Fault if a launch in it failed.
template <class Function>
auto call_emulated(const Function& function) {
  static std::mutex one_machine;
  const std::lock_guard<std::mutex> lock(one_machine);
  ArgumentBytes::become_buffers();
  const auto result = function();
  ptxvm::clear_buffers();
  const std::string fault = ptxvm::take_fault();
  if (!fault.empty()) throw ptxvm::Fault("launch", fault);
  return result;
}

}  // namespace lumos
