// One planted fault a kernel. The line to be reported carries `// fault`; of a race, either line.
// Every array has 64 elements unless the kernel says otherwise; a block has 64 threads.

__device__ inline unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

extern "C" __global__ void read_outside(const float* x, float* out) {
    int i = threadIdx.x;
    out[i] = x[i + 1];  // fault
}

extern "C" __global__ void read_before(const float* x, float* out) {
    int i = threadIdx.x;
    float before = x[i - 1];  // fault
    out[i] = before;
}

extern "C" __global__ void write_outside(const float* x, float* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = x[threadIdx.x];
    out[i] = v;  // fault
}

extern "C" __global__ void write_null(const float* x, float* out) {  // out is null
    out[threadIdx.x] = x[threadIdx.x];                               // fault
}

extern "C" __global__ void atomic_outside(const float* x, float* out) {
    atomicAdd(out + threadIdx.x * 2, x[threadIdx.x]);  // fault
}

extern "C" __global__ void write_read_only(float* x, float* out) {
    out[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = 0.0f;  // fault
}

extern "C" __global__ void misaligned_read(const float* x, float* out) {
    float4 v = *reinterpret_cast<const float4*>(x + 1 + threadIdx.x / 16 * 4);  // fault
    out[threadIdx.x] = v.x + v.w;
}

extern "C" __global__ void misaligned_shared(const float* x, float* out) {
    __shared__ alignas(16) float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    tile[threadIdx.x + 64] = 0.0f;
    __syncthreads();
    float2 v = *reinterpret_cast<float2*>(tile + (threadIdx.x | 1));  // fault
    out[threadIdx.x] = v.x + v.y;
}

extern "C" __global__ void shared_outside(const float* x, float* out) {
    __shared__ float tile[64];
    tile[threadIdx.x + (x[0] > -1e9f)] = x[threadIdx.x];  // fault
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void dynamic_outside(const float* x, float* out) {  // 128 bytes given
    extern __shared__ float tile[];
    tile[threadIdx.x] = x[threadIdx.x];  // fault
    __syncthreads();
    out[threadIdx.x] = tile[63 - threadIdx.x];
}

extern "C" __global__ void local_outside(const float* x, float* out) {
    int held[8];
    for (int k = 0; k < 8; k++) held[k] = k;
    int at = static_cast<int>(x[threadIdx.x] * 0.0f) + 4000;
    held[at] = 5;  // fault
    out[threadIdx.x] = held[(at + threadIdx.x) % 8];
}

extern "C" __global__ void uninitialised(const float* x, float* out) {
    __shared__ float tile[64];
    if (threadIdx.x < 40) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[63 - threadIdx.x];  // fault
}

extern "C" __global__ void not_waited_for(const float* x, float* out) {
    __shared__ float tile[64];
    tile[threadIdx.x] = 0.0f;
    asm volatile(
        "cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(tile + threadIdx.x)),
        "l"(x + threadIdx.x)
        : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
    out[threadIdx.x] = *static_cast<volatile float*>(tile + threadIdx.x);  // fault
    asm volatile("cp.async.wait_group 0;" ::: "memory");
}

// One group of two is waited for; a ring's slot then still holds what was there before.
extern "C" __global__ void waited_for_too_few(const float* x, float* out) {
    __shared__ float tile[2][64];
    tile[0][threadIdx.x] = tile[1][threadIdx.x] = 0.0f;
    for (int k = 0; k < 2; k++) {
        asm volatile(
            "cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(&tile[k][threadIdx.x])),
            "l"(x + threadIdx.x)
            : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    float sum = tile[0][threadIdx.x];
    sum += tile[1][threadIdx.x];  // fault
    out[threadIdx.x] = sum;
    asm volatile("cp.async.wait_all;" ::: "memory");
}

extern "C" __global__ void copies_outside(const float* x, float* out) {
    __shared__ alignas(16) float tile[256];
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(  // fault
                     shared_address(tile + threadIdx.x * 4)),
                 "l"(x + threadIdx.x * 4)
                 : "memory");
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}

// Lanes of one warp at two barriers. (Where the others had left, it would be allowed.)
extern "C" __global__ void divergent_barrier(const float* x, float* out) {
    if (threadIdx.x % 2) {
        asm volatile("bar.sync 0;" ::: "memory");  // fault
        out[threadIdx.x] = x[threadIdx.x];
    } else {
        out[threadIdx.x] = 0.0f;
        asm volatile("bar.sync 0;" ::: "memory");  // fault
    }
}

// Half of a warp at a barrier, the other half waiting for the warp.
extern "C" __global__ void half_at_barrier(const float* x, float* out) {
    if (threadIdx.x % 32 < 16) asm volatile("bar.sync 0;" ::: "memory");  // fault
    __syncwarp();                                                         // fault
    out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void barrier_counts(const float* x, float* out) {
    if (threadIdx.x < 32)
        asm volatile("bar.sync 1, 64;" ::: "memory");  // fault
    else
        asm volatile("bar.sync 1, 96;" ::: "memory");  // fault
    out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void nobody_arrives(const float* x, float* out) {
    if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;" ::: "memory");  // fault
    out[threadIdx.x] = x[threadIdx.x];
}

// Two warps, each at the barrier that the other has yet to reach.
extern "C" __global__ void crossed_barriers(const float* x, float* out) {
    if (threadIdx.x < 32) {
        asm volatile("bar.sync 1, 64;" ::: "memory");  // fault
        asm volatile("bar.sync 2, 64;" ::: "memory");
    } else {
        asm volatile("bar.sync 2, 64;" ::: "memory");  // fault
        asm volatile("bar.sync 1, 64;" ::: "memory");
    }
    out[threadIdx.x] = x[threadIdx.x];
}

// Waits for what a later block writes; the launch has more blocks than can be there at once.
extern "C" __global__ void waits_for_last(volatile int* flag, float* out) {
    if (threadIdx.x == 0) {
        if (blockIdx.x == gridDim.x - 1)
            *flag = 1;
        else
            while (*flag == 0) {  // fault
            }
        out[0] = 1.0f;
    }
}

extern "C" __global__ void lost_lock(int* lock, float* out) {
    if (threadIdx.x == 0) {
        while (atomicCAS(lock, 0, 1) != 0) {  // fault
        }
        out[blockIdx.x] = 1.0f;  // and never frees it
    }
}

extern "C" __global__ void endless(const float* x, float* out) {
    float v = x[threadIdx.x];
    while (v < 1e30f) v = v * 0.5f;  // fault
    out[threadIdx.x] = v;
}

extern "C" __global__ void read_after_write(const float* x, float* out) {
    __shared__ float tile[64];
    tile[threadIdx.x] = 0.0f;
    __syncthreads();
    tile[threadIdx.x] = x[threadIdx.x];         // fault
    out[threadIdx.x] = tile[63 - threadIdx.x];  // fault
}

extern "C" __global__ void write_after_read(const float* x, float* out) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    float v = tile[63 - threadIdx.x];  // fault
    tile[threadIdx.x] = v;             // fault
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void write_after_write(const float* x, float* out) {
    __shared__ float one;
    if (threadIdx.x % 32 == 0) one = x[threadIdx.x] + threadIdx.x;  // fault
    __syncthreads();
    out[threadIdx.x] = one;
}

// A reduction whose last steps trust the warp to move in step.
extern "C" __global__ void within_a_warp(const float* x, float* out) {
    __shared__ float sums[64];
    sums[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x < 32) sums[threadIdx.x] += sums[threadIdx.x + 32];
    __syncthreads();
    if (threadIdx.x == 40) sums[0] = 7.0f;   // fault
    if (threadIdx.x == 0) out[0] = sums[0];  // fault
}

// Lanes that the mask names are at another instruction, and stay there.
extern "C" __global__ void shuffle_absent(const float* x, float* out) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) v = __shfl_sync(0xffffffffu, v, 20);  // fault
    __syncwarp();                                                    // fault
    out[threadIdx.x] = v;
}

// A lane that its own mask leaves out.
extern "C" __global__ void not_in_mask(const float* x, float* out) {
    unsigned mask = x[threadIdx.x] > -1e9f ? 0x0000ffffu : 0xffffffffu;
    out[threadIdx.x] = __shfl_sync(mask, x[threadIdx.x], 3);  // fault
}

extern "C" __global__ void asserts_false(const float* x, float* out) {
    assert(x[threadIdx.x] > 1e9f);  // fault
    out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void traps(const float* x, float* out) {
    if (x[threadIdx.x] < 1e9f) __trap();  // fault
    out[threadIdx.x] = x[threadIdx.x];
}

__device__ __noinline__ float deep(const float* x, int i) {
    return x[i * 3];  // fault
}
extern "C" __global__ void in_a_function(const float* x, float* out) {
    out[threadIdx.x] = deep(x, threadIdx.x);
}
