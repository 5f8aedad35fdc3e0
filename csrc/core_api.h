// The services of minigrad._core (threads, buffer pool) as the kernel modules see them. There is
// one core and one module of kernels per instruction-set level, so they meet through a table of
// pointers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mg {

struct CoreApi {
    // Runs body(context, task) for task = 0 .. n_tasks-1, each exactly once, on some thread;
    // returns when all are done. Which thread runs a task is not fixed, so a task's result must not
    // depend on it: that, with task boundaries taken from shapes alone, gives the same bits at any
    // count.
    void (*parallel)(int64_t n_tasks, void (*body)(void*, int64_t), void* context);
    int (*num_threads)();
    void* (*allocate)(size_t bytes);  // 64-byte aligned, from the pool; throws std::bad_alloc
    void (*release)(void* block);
    int bf16_typenum;  // NumPy's number for ml_dtypes.bfloat16
    // A new uninitialised array over a block of the pool: a new reference, or null with Python's
    // error set. The types are NumPy's, which not every file that reads this has: `dtype` is a
    // PyArray_Descr, whose reference is taken.
    void* (*new_array)(int ndim, const int64_t* shape, void* dtype);
};

inline constexpr const char* kCoreApiName = "minigrad._core.api";

}  // namespace mg
