// Planted faults of sm_90's asynchronous operations; as faults.cu.
__device__ inline unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
#define INIT(barrier, count)                                                                \
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), \
                 "r"(count)                                                                 \
                 : "memory")
#define EXPECT(barrier, bytes)                                                                    \
    asm volatile(                                                                                 \
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), \
        "r"(bytes)                                                                                \
        : "memory")
#define COPY(to, from, bytes, barrier)                                                       \
    asm volatile(                                                                            \
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, " \
        "[%3];" ::"r"(shared_address(to)),                                                   \
        "l"(from), "r"(bytes), "r"(shared_address(&barrier))                                 \
        : "memory")
#define WAIT(barrier, parity)                                                               \
    asm volatile(                                                                           \
        "{\n.reg .pred p;\nagain:\n"                                                        \
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}\n" ::"r"( \
            shared_address(&barrier)),                                                      \
        "r"(parity)                                                                         \
        : "memory")

extern "C" __global__ void bulk_not_waited_for(const float* x, float* out) {
    __shared__ alignas(128) float tile[64];
    __shared__ unsigned long long full;
    tile[threadIdx.x] = 0.0f;
    if (threadIdx.x == 0) INIT(full, 1);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        EXPECT(full, 256);
        COPY(tile, x, 256, full);
    }
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];  // fault
    WAIT(full, 0);
}

extern "C" __global__ void wrong_parity(const float* x, float* out) {
    __shared__ alignas(128) float tile[64];
    __shared__ unsigned long long full;
    tile[threadIdx.x] = 0.0f;
    if (threadIdx.x == 0) INIT(full, 1);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        EXPECT(full, 256);
        COPY(tile, x, 256, full);
    }
    __syncthreads();
    WAIT(full, 1);
    out[threadIdx.x] = tile[threadIdx.x];  // fault
    WAIT(full, 0);
}

extern "C" __global__ void too_few_bytes(const float* x, float* out) {
    __shared__ alignas(128) float tile[64];
    __shared__ unsigned long long full;
    if (threadIdx.x == 0) {
        INIT(full, 1);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        EXPECT(full, 512);
        COPY(tile, x, 256, full);
    }
    __syncthreads();
    WAIT(full, 0);  // fault
    out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void bulk_outside(const float* x, float* out) {
    __shared__ alignas(128) float tile[128];
    __shared__ unsigned long long full;
    if (threadIdx.x == 0) {
        INIT(full, 1);
        EXPECT(full, 512);
        COPY(tile, x, 512, full);  // fault
    }
    __syncthreads();
    WAIT(full, 0);
    out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void not_a_barrier(const float* x, float* out) {
    __shared__ unsigned long long never;
    __shared__ unsigned long long other;
    if (threadIdx.x == 0) INIT(other, 1);
    __syncthreads();
    if (threadIdx.x == 0) EXPECT(never, 16);  // fault
    out[threadIdx.x] = x[threadIdx.x] + static_cast<float>(other);
}
