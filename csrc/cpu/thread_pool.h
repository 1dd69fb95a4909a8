// The threads of all operations: torch's OpenMP threads where the process has them, else a pool of our own.
//
// Every item is run by exactly one thread and kernels give each output to one item, so results do not depend on the
// number of threads. Items are handed out in increasing order; the caller takes part. When the pool is busy with
// another caller's work, the call runs on the caller's thread alone. A forked child starts a pool of our own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lumos {

using ItemFunction = void (*)(void* context, int64_t item);

// Runs function(context, i) for i in [0, num_items) on at most num_threads threads. Rethrows the first exception.
void parallel_for(int64_t num_items, int num_threads, ItemFunction function, void* context);

template <class Body>
void parallel_for(int64_t num_items, int num_threads, Body&& body) {
  parallel_for(
      num_items, num_threads, [](void* context, int64_t item) { (*static_cast<Body*>(context))(item); }, &body);
}

// Memory of the calling thread, 64-byte aligned, kept between calls and overwritten by the next request on this thread.
void* thread_scratch(size_t num_bytes);

}  // namespace lumos
