#include "cpu/thread_pool.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace lumos {
namespace {

constexpr int kMaxThreads = 256;
constexpr size_t kHugePage = size_t{2} << 20;

struct Job {
  ItemFunction function;
  void* context;
  int64_t num_items;
  std::atomic<int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;

  void work() {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < num_items;) {
      try {
        function(context, item);
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(num_items, std::memory_order_relaxed);
      }
    }
  }
};

class ThreadPool {
 public:
  std::mutex busy;

  void run(Job& job, int num_threads) {
    const int num_workers = num_threads - 1;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(workers_.size()) < num_workers) {
        workers_.emplace_back([this] { loop(); });
        workers_.back().detach();  // workers sleep until the process ends
      }
      job_ = &job;
      seats_ = num_workers;
    }
    if (num_workers == 1) {
      wake_.notify_one();
    } else {
      wake_.notify_all();
    }
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    seats_ = 0;  // a worker that has not started by now finds nothing left to do
    job_ = nullptr;
    done_.wait(lock, [this] { return active_ == 0; });
  }

 private:
  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return seats_ > 0; });
      --seats_;
      ++active_;
      Job* job = job_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  int seats_ = 0;   // workers still wanted for job_
  int active_ = 0;  // workers inside job_
};

// The OpenMP runtime that torch brought into the process, if any: GOMP_parallel runs body(context) on num_threads
// threads. Its threads wait for work by spinning, so a second pool beside them shares their cores for some
// milliseconds.
using OpenMpTeam = void (*)(void (*body)(void*), void* context, unsigned num_threads, unsigned flags);

OpenMpTeam find_openmp_team() { return reinterpret_cast<OpenMpTeam>(dlsym(RTLD_DEFAULT, "GOMP_parallel")); }

// In a forked child its threads are gone and it would wait for them for ever.
std::atomic<bool> g_forked{false};

// Never destroyed: detached workers may outlive static destructors. Replaced in a forked child, where no worker exists.
std::atomic<ThreadPool*> g_pool{nullptr};

void forget_pool_in_child() {
  g_pool.store(new ThreadPool);
  g_forked.store(true);
}

// When the library is loaded, since torch's threads may have run before the first call of ours.
[[maybe_unused]] const int g_fork_handler = pthread_atfork(nullptr, nullptr, forget_pool_in_child);

ThreadPool& pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (!g_pool.load()) g_pool.store(new ThreadPool);
  });
  return *g_pool.load();
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

}  // namespace

void parallel_for(int64_t num_items, int num_threads, ItemFunction function, void* context) {
  num_threads = static_cast<int>(std::min<int64_t>({num_items, num_threads, kMaxThreads}));
  if (num_threads > 1) {
    ThreadPool& shared = pool();
    std::unique_lock<std::mutex> lock(shared.busy, std::try_to_lock);
    if (lock.owns_lock()) {
      Job job;
      job.function = function;
      job.context = context;
      job.num_items = num_items;
      static const OpenMpTeam team = find_openmp_team();
      if (team && !g_forked.load()) {
        team([](void* shared_job) { static_cast<Job*>(shared_job)->work(); }, &job, static_cast<unsigned>(num_threads),
             0);
      } else {
        shared.run(job, num_threads);
      }
      if (job.error) std::rethrow_exception(job.error);
      return;
    }
  }
  for (int64_t item = 0; item < num_items; ++item) function(context, item);
}

void* thread_scratch(size_t num_bytes) {
  thread_local std::unique_ptr<void, Free> memory;
  thread_local size_t capacity = 0;
  if (num_bytes > capacity) {
    const size_t unit = num_bytes < kHugePage / 2 ? 4096 : kHugePage, rounded = (num_bytes + unit - 1) / unit * unit;
    capacity = 0;
    memory.reset();
    memory.reset(std::aligned_alloc(unit, rounded));
    if (!memory) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (unit == kHugePage) madvise(memory.get(), rounded, MADV_HUGEPAGE);  // a request: small pages work as well
#endif
    capacity = rounded;
  }
  return memory.get();
}

}  // namespace lumos
