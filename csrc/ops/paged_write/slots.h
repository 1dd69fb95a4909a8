// What the operations that write into pages share. For launchers, not for kernel files.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/error.h"

namespace lumos {

inline void require_slots(const char* op, const int64_t* slots, int64_t num_tokens, int64_t num_slots) {
  for (int64_t token = 0; token < num_tokens; ++token) {
    require(0 <= slots[token] && slots[token] < num_slots, "%s: slots[%lld] is %lld; the pages hold slots 0..%lld", op,
            static_cast<long long>(token), static_cast<long long>(slots[token]), static_cast<long long>(num_slots - 1));
  }
}

// Heads of one token: one copy where they lie side by side.
inline void copy_token(const char* from, int64_t stride_head_bytes, char* to, int64_t num_heads, int64_t head_bytes) {
  if (stride_head_bytes == head_bytes) {
    std::memcpy(to, from, num_heads * head_bytes);
    return;
  }
  for (int64_t head = 0; head < num_heads; ++head) {
    std::memcpy(to + head * head_bytes, from + head * stride_head_bytes, head_bytes);
  }
}

}  // namespace lumos
