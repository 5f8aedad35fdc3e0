// Atomic operations, locks, blocks that wait for blocks, asynchronous copies.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void atomics(const int* x, int* ints, unsigned* words, float* floats,
                                   double* doubles, unsigned long long* longs, __half2* halves,
                                   __nv_bfloat162* bfloats, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int v = x[i];
    atomicAdd(ints + 0, v);
    atomicSub(ints + 1, v);
    atomicMin(ints + 2, v);
    atomicMax(ints + 3, v);
    atomicExch(ints + 4, 17);
    atomicCAS(ints + 5, 0, 23);
    atomicAnd(words + 0, ~(1u << (v & 31)));
    atomicOr(words + 1, 1u << (v & 31));
    atomicXor(words + 2, 1u << (v & 31));
    atomicInc(words + 3, 6);
    atomicDec(words + 4, 6);
    atomicMin(words + 5, static_cast<unsigned>(v));
    atomicMax(words + 6, static_cast<unsigned>(v));
    atomicAdd(floats + (i & 3), 0.25f * v);
    atomicExch(floats + 4, 1.5f);
    atomicAdd(doubles, 0.125 * v);
    atomicAdd(longs + 0, static_cast<unsigned long long>(v));
    atomicMax(longs + 1, static_cast<unsigned long long>(v) << 33);
    atomicCAS(longs + 2, 0ull, 5ull);
    atomicAdd(halves + (i & 7), __floats2half2_rn(1.0f, 0.5f));
    atomicAdd(bfloats + (i & 7), __floats2bfloat162_rn(1.0f, 2.0f));
}

// The value that an atomic returns: every thread takes a ticket.
extern "C" __global__ void tickets(int* next, int* taken, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) taken[atomicAdd(next, 1)] = 1;
}

extern "C" __global__ void histogram(const unsigned char* x, unsigned* out, int n) {
    __shared__ unsigned mine[64];
    for (int b = threadIdx.x; b < 64; b += blockDim.x) mine[b] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(mine + x[i] % 64, 1u);
    __syncthreads();
    for (int b = threadIdx.x; b < 64; b += blockDim.x) atomicAdd(out + b, mine[b]);
}

// A maximum of floats by compare-and-swap.
extern "C" __global__ void float_max(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int* at = reinterpret_cast<int*>(out);
    int seen = *at;
    while (__int_as_float(seen) < x[i]) {
        int before = atomicCAS(at, seen, __float_as_int(x[i]));
        if (before == seen) break;
        seen = before;
    }
}

// A lock that lanes of one warp fight for: the one inside must get on although the others spin.
extern "C" __global__ void spin_lock(int* lock, int* count, int* order) {
    while (atomicCAS(lock, 0, 1) != 0) {
    }
    __threadfence();
    volatile int* shared_count = count;
    int mine = *shared_count;
    order[mine] = blockIdx.x * blockDim.x + threadIdx.x;
    *shared_count = mine + 1;
    __threadfence();
    atomicExch(lock, 0);
}

// The same with the way out inside of the loop.
extern "C" __global__ void spin_lock_flag(int* lock, int* count) {
    bool done = false;
    while (!done) {
        if (atomicCAS(lock, 0, 1) == 0) {
            volatile int* shared_count = count;
            *shared_count = *shared_count + 1;
            __threadfence();
            done = true;
            atomicExch(lock, 0);
        }
    }
}

// The block that finishes last adds up what all of them left (threadFenceReduction).
extern "C" __global__ void last_block_sums(const float* x, float* parts, float* out,
                                           unsigned* finished, int n) {
    __shared__ float warp_sums[4];
    __shared__ bool last;
    float sum = 0.0f;
    for (int i = blockIdx.x * 128 + threadIdx.x; i < n; i += gridDim.x * 128) sum += x[i];
    for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = warp_sums[0] + warp_sums[1] + warp_sums[2] + warp_sums[3];
        __threadfence();
        last = atomicInc(finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float total = 0.0f;
        volatile float* seen = parts;
        for (int b = 0; b < gridDim.x; b++) total += seen[b];
        *out = total;
    }
}

// Every block waits for the one before it: sums along the grid in order.
extern "C" __global__ void chained_scan(const int* x, int* out, volatile int* state, int* next) {
    __shared__ int rank, before;
    __shared__ int sums[64];
    if (threadIdx.x == 0) rank = atomicAdd(next, 1);
    __syncthreads();
    int t = threadIdx.x, mine = x[rank * 64 + t];
    sums[t] = mine;
    for (int o = 1; o < 64; o *= 2) {
        __syncthreads();
        int other = t >= o ? sums[t - o] : 0;
        __syncthreads();
        sums[t] += other;
    }
    __syncthreads();
    if (t == 0) {
        int seen = 0;
        if (rank > 0) {
            while ((seen = state[rank - 1]) < 0) {
            }
        }
        before = seen;
        __threadfence();
        state[rank] = seen + sums[63];
    }
    __syncthreads();
    out[rank * 64 + t] = before + sums[t];
}

// The first of two blocks waits for the second: both must be resident.
extern "C" __global__ void waits_for_later(volatile int* flag, int* out) {
    if (blockIdx.x == gridDim.x - 1) {
        *flag = 41;
        out[blockIdx.x] = 1;
    } else {
        while (*flag == 0) {
        }
        out[blockIdx.x] = *flag + 1;
    }
}

// Rows through a ring of three slots filled by cp.async, two rows ahead.
extern "C" __global__ void __launch_bounds__(64)
    ring_sums(const float4* x, float4* out, int n_rows) {  // x (n_rows, 64); out (64,)
    __shared__ float4 ring[3][64];
    int t = threadIdx.x;
    auto fetch = [&](int row) {
        if (row < n_rows) {
            // From the neighbour's place, so that a wait alone does not do.
            auto to = static_cast<unsigned>(__cvta_generic_to_shared(&ring[row % 3][t ^ 33]));
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to),
                         "l"(x + row * 64 + (t ^ 33))
                         : "memory");
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    float4 sum = {0, 0, 0, 0};
    fetch(0);
    fetch(1);
    for (int row = 0; row < n_rows; row++) {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        fetch(row + 2);
        float4 v = ring[row % 3][t];
        sum.x += v.x;
        sum.y += v.y;
        sum.z += v.z;
        sum.w += v.w;
    }
    out[t] = sum;
}

// cp.async of 4 and 8 bytes, with fewer source bytes than destination bytes: the rest is zeroed.
extern "C" __global__ void partial_copies(const int* x, int* out, int valid_bytes) {
    __shared__ int slot[32 * 4];
    int t = threadIdx.x;
    auto at = [&](int word) {
        return static_cast<unsigned>(__cvta_generic_to_shared(slot + word));
    };
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at(t)), "l"(x + t) : "memory");
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at(32 + t)), "l"(x + 32 + t),
                 "r"(t % 2 ? 0 : 4)
                 : "memory");
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(at(64 + 2 * t)),
                 "l"(x + 64 + 2 * t), "r"(valid_bytes)
                 : "memory");
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    for (int k = 0; k < 4; k++) out[k * 32 + t] = slot[(k * 32 + t) ^ 2];
}
