// Cache lines of rows that a kernel comes to soon. Where heads of tokens are rows of a few hundred bytes, the
// processor's own prefetching starts anew on every page, and does not fetch what is only written: that costs a third of
// the time.
#pragma once

#include "cpu/simd.h"

namespace lumos::LUMOS_ISA {

// The rows [tokens, heads] of one tensor, in the order of memory. Runs beyond the last token: nothing faults there.
class RowsAhead {
 public:
  template <class T>
  RowsAhead(const T* rows, int64_t stride_token, int64_t stride_head, int64_t num_heads, int64_t head_dim)
      : token_(reinterpret_cast<uintptr_t>(rows)),
        row_(token_),
        token_bytes_(stride_token * sizeof(T)),
        head_bytes_(stride_head * sizeof(T)),
        row_bytes_(head_dim * sizeof(T)),
        num_heads_(num_heads) {
    constexpr int64_t kAheadBytes = 2048;
    for (int64_t fetched = 0; fetched < kAheadBytes; fetched += row_bytes_) next();
  }

  // Once for each row that the kernel takes up.
  LUMOS_INLINE void next() {
    for (int64_t i = 0; i < row_bytes_; i += 64) __builtin_prefetch(reinterpret_cast<const void*>(row_ + i));
    row_ += head_bytes_;
    if (++head_ == num_heads_) {
      head_ = 0;
      row_ = token_ += token_bytes_;
    }
  }

 private:
  uintptr_t token_, row_;  // of the next row
  const int64_t token_bytes_, head_bytes_, row_bytes_, num_heads_;
  int64_t head_ = 0;
};

}  // namespace lumos::LUMOS_ISA
