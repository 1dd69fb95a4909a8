// The mask rule, written once for the host and the device.
//
// `key` and `query` are indices of tokens in their own, common sequence. The five integers of a query are
// (sink_end, history_begin, history_end, span_begin, span_end). Keys before sink_end or inside the history are seen
// unless they are hidden; keys inside the span (the query's own frame or text token) are always seen.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define LUMOS_HOST_DEVICE __host__ __device__
#else
#define LUMOS_HOST_DEVICE
#endif

enum { LUMOS_NUM_INTERVALS = 5 };

LUMOS_HOST_DEVICE static inline int lumos_visible(const int32_t* intervals, int32_t key, int hidden) {
  const int history = key < intervals[0] || (intervals[1] <= key && key < intervals[2]);
  return (history && !hidden) || (intervals[3] <= key && key < intervals[4]);
}

// Bits [begin, end) of 64, clipped.
LUMOS_HOST_DEVICE static inline uint64_t lumos_range_bits(int64_t begin, int64_t end) {
  const int64_t first = begin < 0 ? 0 : begin;
  const int64_t last = end > 64 ? 64 : end;
  if (first >= last) return 0;
  return (~UINT64_C(0) >> (64 - (last - first))) << first;
}

// lumos_visible for the keys key_begin .. key_begin + num_keys - 1 (at most 64), one bit each, the first in bit 0.
LUMOS_HOST_DEVICE static inline uint64_t lumos_visible_bits(const int32_t* intervals, int64_t key_begin, int num_keys,
                                                            uint64_t hidden) {
  const uint64_t history = lumos_range_bits(0 - key_begin, intervals[0] - key_begin) |
                           lumos_range_bits(intervals[1] - key_begin, intervals[2] - key_begin);
  const uint64_t span = lumos_range_bits(intervals[3] - key_begin, intervals[4] - key_begin);
  return ((history & ~hidden) | span) & lumos_range_bits(0, num_keys);
}
