// The mask rule, written once for the host and the device.
//
// `key` and `query` are indices of tokens in their own, common sequence. The five integers of a query are
// (sink_end, history_begin, history_end, span_begin, span_end). Keys before sink_end or inside the history are seen unless
// they are hidden; keys inside the span (the query's own frame or text token) are always seen.
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
