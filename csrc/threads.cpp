// One set of threads for every kernel. A parallel region gives every thread, the calling one too,
// an equal share of the task numbers in a row, and whoever ends takes what is left of the others'.
// So from kernel to kernel a thread mostly finds what it wrote itself, in the caches of its own
// core. Workers spin briefly between regions (a training step launches a kernel every few tens of
// microseconds) and then sleep.
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "denormals.h"
#include "pool.h"

namespace mg {
namespace {

constexpr auto kSpin = std::chrono::microseconds(300);

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr int kNoLimit = 1 << 20;

// Whole processors of a quota of `quota` microseconds in every `period`.
int processors_of(long long quota, long long period) {
    if (quota <= 0 || period <= 0) return kNoLimit;
    return static_cast<int>(std::clamp<long long>(quota / period, 1, kNoLimit));
}

// The limit that one folder of cgroup v2 (cpu.max, "max 100000" where there is none) or v1 sets.
int folder_limit(const std::string& folder) {
    long long quota = 0, period = 0;
    std::ifstream v2(folder + "/cpu.max");
    if (v2 >> quota >> period) return processors_of(quota, period);
    std::ifstream v1(folder + "/cpu.cfs_quota_us"), v1_period(folder + "/cpu.cfs_period_us");
    if (v1 >> quota && v1_period >> period) return processors_of(quota, period);
    return kNoLimit;
}

// Of a group and all above it, up to `root`: the least counts.
int path_limit(const std::string& root, std::string path) {
    int least = folder_limit(root);
    while (path.size() > 1) {
        least = std::min(least, folder_limit(root + path));
        path.resize(path.rfind('/'));
    }
    return least;
}

int default_threads() {
    if (const char* text = std::getenv("MINIGRAD_NUM_THREADS")) {
        int n = std::atoi(text);
        if (n >= 1) return n;
        std::fprintf(stderr, "minigrad: MINIGRAD_NUM_THREADS=%s is no positive number; ignored\n",
                     text);
    }
    int n = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) n = CPU_COUNT(&set);
#endif
    return std::max(1, std::min(n, cgroup_limit("/sys/fs/cgroup", "/proc/self/cgroup")));
}

class Threads {
  public:
    explicit Threads(int n) : shares_(static_cast<size_t>(n)) {
        try {
            for (int i = 1; i < n; i++) workers_.emplace_back([this, i] { work(i); });
        } catch (const std::exception& error) {
            int n_started = count();
            stop();
            throw std::runtime_error("the system starts " + std::to_string(n_started) + " of " +
                                     std::to_string(n) + " threads (" + error.what() +
                                     "); ask for fewer by mg.set_num_threads or "
                                     "MINIGRAD_NUM_THREADS");
        }
    }

    ~Threads() { stop(); }

    int count() const { return static_cast<int>(workers_.size()) + 1; }

    void run(int64_t n_tasks, void (*body)(void*, int64_t), void* context) {
        body_ = body;
        context_ = context;
        n_shares_ = std::min(n_tasks, static_cast<int64_t>(shares_.size()));
        for (int64_t i = 0, begin = 0; i < n_shares_; i++) {
            Share& share = shares_[static_cast<size_t>(i)];
            share.next.store(begin, std::memory_order_relaxed);
            begin += n_tasks / n_shares_ + (i < n_tasks % n_shares_ ? 1 : 0);
            share.end = begin;
        }
        // Opens the region: a new number, the open bit, nobody inside. Workers join by adding one.
        uint64_t region = (state_.load(std::memory_order_relaxed) & ~kLowBits) + kRegion;
        state_.store(region | kOpen, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) > 0) {
            std::lock_guard<std::mutex> lock(sleep_mutex_);
            wake_.notify_all();
        }
        take_tasks(0);
        // Closes it: late workers stay out, those inside are waited for.
        state_.fetch_and(~kOpen, std::memory_order_acq_rel);
        while (state_.load(std::memory_order_acquire) & kInside) pause();
    }

  private:
    struct alignas(64) Share {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };

    static constexpr uint64_t kInside = 0xffff, kOpen = 0x10000, kLowBits = 0x1ffff;
    static constexpr uint64_t kRegion = 0x20000;

    void stop() {
        {
            std::lock_guard<std::mutex> lock(sleep_mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }

    void take_tasks(int64_t own) {
        for (int64_t i = own; i < own + n_shares_; i++) {
            Share& share = shares_[static_cast<size_t>(i % n_shares_)];
            while (share.next.load(std::memory_order_relaxed) < share.end) {
                int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
                if (task < share.end) body_(context_, task);
            }
        }
    }

    // Whether a region is open that is not the one last seen.
    bool opened(uint64_t seen) const {
        uint64_t state = state_.load(std::memory_order_seq_cst);
        return (state & kOpen) && (state & ~kLowBits) != seen;
    }

    bool join(uint64_t& seen) {
        uint64_t state = state_.load(std::memory_order_acquire);
        while ((state & kOpen) && (state & ~kLowBits) != seen) {
            if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) {
                seen = state & ~kLowBits;
                return true;
            }
        }
        return false;
    }

    void work(int64_t own) {
        FlushDenormals flush;
        uint64_t seen = 0;
        auto idle_since = std::chrono::steady_clock::now();
        for (;;) {
            if (join(seen)) {
                take_tasks(own);
                state_.fetch_sub(1, std::memory_order_acq_rel);
                idle_since = std::chrono::steady_clock::now();
                continue;
            }
            // The clock is looked at less often: it takes longer than a look for work.
            for (int i = 0; i < 64 && !opened(seen); i++) pause();
            if (std::chrono::steady_clock::now() - idle_since < kSpin) continue;
            std::unique_lock<std::mutex> lock(sleep_mutex_);
            sleepers_.fetch_add(1, std::memory_order_seq_cst);
            wake_.wait(lock, [&] { return stop_ || opened(seen); });
            sleepers_.fetch_sub(1, std::memory_order_seq_cst);
            if (stop_) return;
            idle_since = std::chrono::steady_clock::now();
        }
    }

    void (*body_)(void*, int64_t) = nullptr;
    void* context_ = nullptr;
    std::vector<Share> shares_;  // of thread i, the calling one 0
    int64_t n_shares_ = 0;       // of them in use: no more than tasks
    alignas(64) std::atomic<uint64_t> state_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::mutex sleep_mutex_;
    std::condition_variable wake_;
    bool stop_ = false;
    std::vector<std::thread> workers_;
};

// Both are leaked in a forked child, where the workers do not exist and the mutex may be held.
std::mutex* region = new std::mutex;
Threads* threads = nullptr;

Threads& started() {
    if (threads == nullptr) threads = new Threads(default_threads());
    return *threads;
}

thread_local bool inside_region = false;

}  // namespace

void parallel_run(int64_t n_tasks, void (*body)(void*, int64_t), void* context) {
    // Nested regions, and a second Python thread while the first is inside one, run where they are.
    if (!inside_region && region->try_lock()) {
        std::lock_guard<std::mutex> lock(*region, std::adopt_lock);
        Threads& team = started();
        if (team.count() > 1) {
            inside_region = true;
            team.run(n_tasks, body, context);
            inside_region = false;
            return;
        }
    }
    for (int64_t task = 0; task < n_tasks; task++) body(context, task);
}

// /proc/self/cgroup has lines "hierarchy:controllers:path"; v2's names no controllers, v1's are
// mounted in a folder called after them. Within a container the path may be one that is not mounted
// there: then the root's files are the container's.
int cgroup_limit(const std::string& root, const std::string& own) {
    int least = folder_limit(root);
    std::ifstream lines(own);
    for (std::string line; std::getline(lines, line);) {
        size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        std::string controllers = line.substr(first + 1, second - first - 1);
        std::string path = line.substr(second + 1);
        if (controllers.empty())
            least = std::min(least, path_limit(root, path));
        else if (("," + controllers + ",").find(",cpu,") != std::string::npos)
            for (const std::string& mounted : {controllers, std::string("cpu")})
                least = std::min(least, path_limit(root + "/" + mounted, path));
    }
    return least;
}

int num_threads() {
    std::lock_guard<std::mutex> lock(*region);
    return started().count();
}

void set_num_threads(int n) {
    if (n < 1 || n > 4096)
        throw std::invalid_argument("set_num_threads: expected 1 to 4096, got " +
                                    std::to_string(n));
    std::lock_guard<std::mutex> lock(*region);
    auto* made = new Threads(n);  // before those that run are given up: it may throw
    delete threads;
    threads = made;
}

void install_fork_handler() {
    // A child must not find the pool's lock held by a thread that it does not have.
    pthread_atfork(pool_lock, pool_unlock, [] {
        pool_unlock();
        region = new std::mutex;
        threads = nullptr;
    });
}

}  // namespace mg
