// A caching allocator: blocks are rounded up to size classes (eight to a doubling) and kept for
// reuse, so a training step at steady state asks the system for no memory and touches no fresh
// page.
#include "pool.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace mg {
namespace {

constexpr size_t kHeader = kAlignment;           // keeps the block's class in front of the data
constexpr size_t kHugePage = size_t{2} << 20;    // blocks from twice this size ask for huge pages
constexpr size_t kSlabLeast = size_t{64} << 10;  // and from this one on they share some
constexpr size_t kSlab = size_t{32} << 20;
constexpr size_t kKeepAlways = size_t{256} << 20;
// A header's place in a slab. All arrays of slabs begin at one place of their page: were one's a
// line further than another's, reading the other while writing this one would stall, as loads and
// stores are told apart by the lower twelve bits of their addresses.
constexpr size_t kPage = 4096;
constexpr int kSteps = 8;  // to a doubling: huge pages are resident with what a block has too much
constexpr int kClasses = kSteps * 48;
// From this size on a block is held against what the machine has free: the system promises more
// memory than there is and ends the process when it is touched.
constexpr size_t kAskFirst = size_t{1} << 30;

// Huge pages that blocks are cut from, one after the other: reading a weight of a megabyte in order
// takes a quarter longer by pages of 4 KB. Given back when none of its blocks is in use.
struct Slab {
    char *origin, *next, *end;
    int64_t in_use;
};

struct Header {
    int size_class;
    void* origin;  // of a block that is in no slab
    Slab* slab;
    Arena* arena;
};

std::mutex mutex;
using Lists = std::vector<void*>[kClasses];  // data pointers by size class
Lists cached;
std::vector<Slab*> slabs;  // the last one is cut from
int64_t pinned_bytes = 0;  // of cached blocks that free_cached left, as their slabs are in use
PoolStatistics statistics{};

}  // namespace

struct Arena {
    Lists cached;
    std::vector<void*> all;
};

namespace {

// Class c holds 256 * 2^(c/8) * (1 + (c%8)/8) bytes.
size_t class_bytes(int c) {
    return (size_t{256} << (c / kSteps)) / kSteps * static_cast<size_t>(kSteps + c % kSteps);
}

int class_of(size_t bytes) {
    if (bytes <= 256) return 0;
    int doubling = 63 - __builtin_clzll((bytes - 1) / 256);
    int c = kSteps * doubling;
    while (class_bytes(c) < bytes) c++;
    return c;
}

Header* header_of(void* data) {
    return reinterpret_cast<Header*>(static_cast<char*>(data) - kHeader);
}

// What is large is mapped, for huge pages, so that it goes back whole: the C library would keep it
// for blocks to come.
constexpr bool is_mapped(size_t bytes) {
#if defined(__linux__)
    return bytes >= kSlabLeast;
#else
    return false;
#endif
}

#if defined(__linux__)
size_t whole_pages(size_t bytes) {
    static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
}
#endif

void* from_system(size_t bytes) {
    void* origin = nullptr;
    if (is_mapped(bytes)) {
#if defined(__linux__)
        size_t size = whole_pages(bytes);
        void* at = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) return nullptr;
        auto* begin = static_cast<char*>(at);
        size_t before = (kHugePage - reinterpret_cast<uintptr_t>(at) % kHugePage) % kHugePage;
        if (before > 0) munmap(begin, before);
        munmap(begin + before + size, kHugePage - before);
        origin = begin + before;
        madvise(origin, size, MADV_HUGEPAGE);
#endif
    } else if (posix_memalign(&origin, kAlignment, bytes) != 0) {
        return nullptr;
    }
    statistics.system_allocations++;
    return origin;
}

void to_system(void* origin, [[maybe_unused]] size_t bytes) {
    if (!is_mapped(bytes)) return std::free(origin);
#if defined(__linux__)
    munmap(origin, whole_pages(bytes));
#endif
}

// Whole pages of a cached block to the system; the block stays.
void discard([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
    // From its first whole page on, less one that may lie across its end.
    uintptr_t at = reinterpret_cast<uintptr_t>(data), begin = whole_pages(at);
    size_t cut = begin - at + whole_pages(1);
    if (bytes > cut) madvise(reinterpret_cast<void*>(begin), bytes - cut, MADV_DONTNEED);
#endif
}

void free_cached() {
    statistics.cached_bytes = 0;
    for (int c = 0; c < kClasses; c++) {
        auto goes = [&](void* data) {
            Header* header = header_of(data);
            if (header->slab != nullptr && header->slab->in_use > 0) {
                discard(data, class_bytes(c));
                return false;
            }
            if (header->slab == nullptr) to_system(header->origin, class_bytes(c) + kHeader);
            return true;
        };
        auto& list = cached[c];
        list.erase(std::remove_if(list.begin(), list.end(), goes), list.end());
        list.shrink_to_fit();
        statistics.cached_bytes += static_cast<int64_t>(list.size() * class_bytes(c));
    }
    pinned_bytes = statistics.cached_bytes;
    auto idle = [](Slab* slab) {
        if (slab->in_use > 0) return false;
        to_system(slab->origin, kSlab);
        delete slab;
        return true;
    };
    slabs.erase(std::remove_if(slabs.begin(), slabs.end(), idle), slabs.end());
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

// The slab to cut `bytes` from; null where the system has none.
Slab* slab_with(size_t bytes) {
    if (slabs.empty() || static_cast<size_t>(slabs.back()->end - slabs.back()->next) < bytes) {
        slabs.reserve(slabs.size() + 1);
        auto slab = std::make_unique<Slab>();
        auto* origin = static_cast<char*>(from_system(kSlab));
        if (origin == nullptr) return nullptr;
        *slab = {origin, origin, origin + kSlab, 0};
        slabs.push_back(slab.release());
    }
    return slabs.back();
}

void* new_block(int c) {
    size_t bytes = class_bytes(c);
    if (bytes >= kAskFirst && bytes > available_bytes()) return nullptr;
    // The header needs a line of its own; large blocks put it before the aligned start's data page.
    Header header{c, nullptr, nullptr, nullptr};
    char* origin;
    if (bytes >= kSlabLeast && bytes < 2 * kHugePage) {
        header.slab = slab_with(bytes + kPage);
        if (header.slab == nullptr) return nullptr;
        origin = header.slab->next;
        header.slab->next += bytes + kPage;
    } else {
        header.origin = from_system(bytes + kHeader);
        if (header.origin == nullptr) return nullptr;
        origin = static_cast<char*>(header.origin);
    }
    void* data = origin + kHeader;
    *header_of(data) = header;
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
        int64_t idle = statistics.cached_bytes - pinned_bytes;
        if (idle > static_cast<int64_t>(kKeepAlways) && idle > statistics.live_bytes) free_cached();
        data = new_block(c);
        if (data == nullptr) {
            free_cached();
            data = new_block(c);
        }
        if (data == nullptr) throw std::bad_alloc();
    }
    if (Slab* slab = header_of(data)->slab) slab->in_use++;
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
    if (Slab* slab = header_of(data)->slab) slab->in_use--;
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
