// Runs a CUDA kernel on the CPU, in order to test what it means (not its speed, nor its races): the
// threads of a block are contexts that take turns and wait for each other at barriers and shuffles;
// blocks run one after another, so __shared__ is static.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(n)
using std::max;
using std::min;

struct Dim {
    unsigned x, y, z;
};
inline Dim threadIdx, blockIdx, blockDim, gridDim;
inline float __expf(float x) { return std::exp(x); }
inline float __int_as_float(int bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

namespace host {

struct Barrier {
    unsigned expected = 0, arrived = 0, generation = 0;
};
inline ucontext_t scheduler;
inline std::vector<ucontext_t> contexts;
inline unsigned current;
inline bool progressed;
inline Barrier block_barrier;
inline std::vector<Barrier> warp_barriers;
inline std::vector<unsigned long long> slots;  // two sets, in turn, of one slot a thread
inline std::vector<unsigned> turn;
inline std::function<void()> body;

inline void wait(Barrier& b) {
    unsigned mine = b.generation;
    progressed = true;
    if (++b.arrived == b.expected) {
        b.arrived = 0;
        b.generation++;
        return;
    }
    while (b.generation == mine) swapcontext(&contexts[current], &scheduler);
}

template <class V>
V exchange(V value, unsigned lane) {
    unsigned me = threadIdx.x, n = blockDim.x, set = turn[me]++ & 1;
    std::memcpy(&slots[set * n + me], &value, sizeof(V));
    wait(warp_barriers[me / 32]);
    V other;
    std::memcpy(&other, &slots[set * n + me / 32 * 32 + lane], sizeof(V));
    return other;
}

inline void thread_main() { body(); }

inline void run_block() {
    unsigned n = blockDim.x;
    constexpr size_t kStack = 256 << 10;
    static std::vector<char> stacks;
    stacks.resize(n * kStack);
    contexts.assign(n, {});
    block_barrier = {n};
    warp_barriers.assign((n + 31) / 32, {32});
    slots.assign(2 * n, 0);
    turn.assign(n, 0);
    std::vector<char> done(n, 0);
    static std::vector<char>* done_now;
    done_now = &done;
    auto call = body;
    body = [call] {
        call();
        (*done_now)[current] = 1;
        progressed = true;
    };
    for (unsigned t = 0; t < n; t++) {
        getcontext(&contexts[t]);
        contexts[t].uc_stack.ss_sp = &stacks[t * kStack];
        contexts[t].uc_stack.ss_size = kStack;
        contexts[t].uc_link = &scheduler;
        makecontext(&contexts[t], thread_main, 0);
    }
    for (unsigned left = n; left > 0;) {
        progressed = false;
        left = 0;
        for (current = 0; current < n; current++) {
            if (done[current]) continue;
            left++;
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &contexts[current]);
        }
        if (left > 0 && !progressed) {
            std::fprintf(stderr, "deadlock: threads wait at different barriers\n");
            std::abort();
        }
    }
    body = call;
}

template <class... Args, size_t... I>
void launch(void (*kernel)(Args...), const unsigned* grid, unsigned threads, void** args,
            std::index_sequence<I...>) {
    body = [&] { kernel(*static_cast<std::remove_cv_t<Args>*>(args[I])...); };
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++) run_block();
}

}  // namespace host

inline void __syncthreads() { host::wait(host::block_barrier); }
template <class V>
V __shfl_sync(unsigned, V value, int lane) {
    return host::exchange(value, static_cast<unsigned>(lane));
}
template <class V>
V __shfl_xor_sync(unsigned, V value, int mask) {
    return host::exchange(value, (threadIdx.x % 32) ^ static_cast<unsigned>(mask));
}

#define HOST_ENTRY(kernel)                                                                  \
    template <class... Args>                                                                \
    static void host_start(void (*f)(Args...), const unsigned* g, unsigned t, void** args) { \
        host::launch(f, g, t, args, std::index_sequence_for<Args...>{});                    \
    }                                                                                       \
    extern "C" void host_launch(const unsigned* grid, unsigned threads, void** args) {      \
        host_start(kernel, grid, threads, args);                                            \
    }
