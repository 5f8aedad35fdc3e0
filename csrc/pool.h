// The buffer pool and the threads: what there must be one of in a process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mg {

// ---- buffer pool (pool.cpp) ----

constexpr size_t kAlignment = 64;

// The memory of one recorded step. Blocks taken for it come back to it, not to the pool, so that
// the recording uses them again in the order in which the step freed them, and replays may write
// into them at any time.
struct Arena;
Arena* arena_create();
void arena_destroy(Arena* arena);  // blocks still in use go to the pool when they are released
bool arena_owns(const Arena* arena, void* block);

// From the arena, or from the pool where there is none; throws std::bad_alloc when the system has
// no more.
void* pool_allocate(size_t bytes, Arena* arena = nullptr);
void pool_release(void* block);
void pool_lock();  // around a fork
void pool_unlock();
// Gives cached blocks back to the system; of those that share huge pages with one in use, the
// memory alone.
void pool_trim();

struct PoolStatistics {
    int64_t live_bytes, cached_bytes, peak_bytes, system_allocations;
};
PoolStatistics pool_statistics();
void pool_reset_peak();

// ---- threads (threads.cpp) ----

void parallel_run(int64_t n_tasks, void (*body)(void*, int64_t), void* context);
int num_threads();
// The container's limit in whole processors (at least 1; a large number where there is none), from
// the mounted groups at `root` and the process's own in `own`.
int cgroup_limit(const std::string& root, const std::string& own);
void set_num_threads(int n);
void install_fork_handler();

}  // namespace mg
