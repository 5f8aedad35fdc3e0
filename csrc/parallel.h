// Parallel loops and scratch memory for kernels. Task boundaries come from shapes alone, never from
// the number of threads, so results are the same bits at any thread count.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

#include "core_api.h"

namespace mg {

extern const CoreApi* core;  // set once when the module is imported (bindings.cpp)

// body(task) for each task in [0, n_tasks).
template <class Body>
inline void parallel_for(int64_t n_tasks, Body&& body) {
    if (n_tasks == 1) return body(int64_t{0});
    if (n_tasks <= 0) return;
    using Plain = std::remove_reference_t<Body>;
    core->parallel(
        n_tasks, [](void* context, int64_t task) { (*static_cast<Plain*>(context))(task); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

// body(begin, end) over consecutive chunks of [0, n), each of `grain` items but the last.
template <class Body>
inline void parallel_chunks(int64_t n, int64_t grain, Body&& body) {
    grain = std::max<int64_t>(grain, 1);
    parallel_for((n + grain - 1) / grain,
                 [&](int64_t task) { body(task * grain, std::min(n, (task + 1) * grain)); });
}

// About this much work per task (in elements touched) repays the hand-over to another thread
// (2 to 5 microseconds between spinning threads, against about 8 elements a nanosecond).
constexpr int64_t kTaskElements = 32768;

inline int64_t rows_per_task(int64_t n_cols) {
    return std::max<int64_t>(1, kTaskElements / std::max<int64_t>(n_cols, 1));
}

// Things that several tasks need: the first to come makes one, and others wait until it is there.
class OnceEach {
  public:
    explicit OnceEach(int64_t n) : states_(static_cast<size_t>(n)) {}

    template <class Make>
    void run(int64_t i, Make&& make) {
        std::atomic<int>& state = states_[static_cast<size_t>(i)];
        int seen = kNone;
        if (state.compare_exchange_strong(seen, kBegun, std::memory_order_acquire)) {
            make();
            state.store(kThere, std::memory_order_release);
        } else {
            while (state.load(std::memory_order_acquire) != kThere) std::this_thread::yield();
        }
    }

  private:
    enum { kNone, kBegun, kThere };
    std::vector<std::atomic<int>> states_;
};

// A block from the pool, given back at the end of the scope.
template <class T>
class Scratch {
  public:
    explicit Scratch(int64_t n)
        : data_(static_cast<T*>(core->allocate(sizeof(T) * static_cast<size_t>(n)))) {}
    ~Scratch() { core->release(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    T* get() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

  private:
    T* data_;
};

}  // namespace mg
