// A caching allocator: blocks are rounded up to size classes (four to a doubling) and kept for
// reuse, so a training step at steady state asks the system for no memory and touches no fresh
// page.
#include "pool.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mg {
namespace {

constexpr size_t kHeader = kAlignment;         // keeps the block's class in front of the data
constexpr size_t kHugePage = size_t{2} << 20;  // blocks from twice this size ask for huge pages
constexpr size_t kKeepAlways = size_t{256} << 20;
constexpr int kClasses = 4 * 48;
// From this size on a block is held against what the machine has free: the system promises more
// memory than there is and ends the process when it is touched.
constexpr size_t kAskFirst = size_t{1} << 30;

struct Header {
    int size_class;
    void* origin;
    Arena* arena;
};

std::mutex mutex;
using Lists = std::vector<void*>[kClasses];  // data pointers by size class
Lists cached;
PoolStatistics statistics{};

}  // namespace

struct Arena {
    Lists cached;
    std::vector<void*> all;
};

namespace {

// Class c holds 256 * 2^(c/4) * (1 + (c%4)/4) bytes.
size_t class_bytes(int c) {
    return (size_t{256} << (c / 4)) / 4 * (4 + static_cast<size_t>(c % 4));
}

int class_of(size_t bytes) {
    if (bytes <= 256) return 0;
    int doubling = 63 - __builtin_clzll((bytes - 1) / 256);
    int c = 4 * doubling;
    while (class_bytes(c) < bytes) c++;
    return c;
}

Header* header_of(void* data) {
    return reinterpret_cast<Header*>(static_cast<char*>(data) - kHeader);
}

void free_cached() {
    for (auto& list : cached) {
        for (void* data : list) std::free(header_of(data)->origin);
        list.clear();
        list.shrink_to_fit();
    }
    statistics.cached_bytes = 0;
}

// What the machine and the container have left, as far as they say.
size_t available_bytes() {
    size_t least = SIZE_MAX;
#if defined(__linux__)
    std::string word;
    size_t kib = 0;
    for (std::ifstream info("/proc/meminfo"); info >> word;)
        if (word == "MemAvailable:" && info >> kib) least = kib << 10;
    size_t limit = 0, used = 0;
    std::ifstream max("/sys/fs/cgroup/memory.max"), current("/sys/fs/cgroup/memory.current");
    if (max >> limit && current >> used) least = std::min(least, limit > used ? limit - used : 0);
#endif
    return least;
}

void* system_allocate(int c) {
    size_t bytes = class_bytes(c);
    if (bytes >= kAskFirst && bytes > available_bytes()) return nullptr;
    size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
    // The header needs a line of its own; large blocks put it before the aligned start's data page.
    void* origin = nullptr;
    if (posix_memalign(&origin, alignment, bytes + kHeader) != 0) return nullptr;
#if defined(__linux__)
    if (alignment == kHugePage) madvise(origin, bytes, MADV_HUGEPAGE);
#endif
    void* data = static_cast<char*>(origin) + kHeader;
    *header_of(data) = {c, origin, nullptr};
    statistics.system_allocations++;
    return data;
}

}  // namespace

void* pool_allocate(size_t bytes, Arena* arena) {
    if (bytes > (size_t{1} << 46)) throw std::bad_alloc();
    int c = class_of(bytes);
    auto size = static_cast<int64_t>(class_bytes(c));
    std::lock_guard<std::mutex> lock(mutex);
    void* data;
    if (arena != nullptr && !arena->cached[c].empty()) {
        data = arena->cached[c].back();
        arena->cached[c].pop_back();
        return data;
    }
    if (!cached[c].empty()) {
        data = cached[c].back();
        cached[c].pop_back();
        statistics.cached_bytes -= size;
    } else {
        // Many shapes must not mean many caches: once more lies idle than is in use, start afresh.
        if (statistics.cached_bytes > static_cast<int64_t>(kKeepAlways) &&
            statistics.cached_bytes > statistics.live_bytes)
            free_cached();
        data = system_allocate(c);
        if (data == nullptr) {
            free_cached();
            data = system_allocate(c);
        }
        if (data == nullptr) throw std::bad_alloc();
    }
    if (arena != nullptr) {
        header_of(data)->arena = arena;
        arena->all.push_back(data);
    }
    statistics.live_bytes += size;  // an arena's blocks count as in use as long as it has them
    if (statistics.live_bytes > statistics.peak_bytes)
        statistics.peak_bytes = statistics.live_bytes;
    return data;
}

namespace {

void release(void* data) {  // with the lock held
    int c = header_of(data)->size_class;
    auto size = static_cast<int64_t>(class_bytes(c));
    cached[c].push_back(data);
    statistics.live_bytes -= size;
    statistics.cached_bytes += size;
}

}  // namespace

void pool_release(void* data) {
    std::lock_guard<std::mutex> lock(mutex);
    Header* header = header_of(data);
    if (header->arena != nullptr)
        header->arena->cached[header->size_class].push_back(data);
    else
        release(data);
}

Arena* arena_create() { return new Arena; }

void arena_destroy(Arena* arena) {
    std::lock_guard<std::mutex> lock(mutex);
    for (void* data : arena->all) header_of(data)->arena = nullptr;
    for (auto& list : arena->cached)
        for (void* data : list) release(data);
    delete arena;
}

bool arena_owns(const Arena* arena, void* block) {
    std::lock_guard<std::mutex> lock(mutex);
    return header_of(block)->arena == arena;
}

void pool_lock() { mutex.lock(); }

void pool_unlock() { mutex.unlock(); }

void pool_trim() {
    std::lock_guard<std::mutex> lock(mutex);
    free_cached();
}

PoolStatistics pool_statistics() {
    std::lock_guard<std::mutex> lock(mutex);
    return statistics;
}

void pool_reset_peak() {
    std::lock_guard<std::mutex> lock(mutex);
    statistics.peak_bytes = statistics.live_bytes;
}

}  // namespace mg
