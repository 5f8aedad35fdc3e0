// What sm_90 adds: mbarriers, bulk copies, tensor maps, wgmma.
#include <cuda_fp16.h>

__device__ inline unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
__device__ inline void init(unsigned long long* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}
__device__ inline void expect(unsigned long long* barrier, int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}
__device__ inline void arrive(unsigned long long* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
}
__device__ inline void wait(unsigned long long* barrier, int parity) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@p bra done;\n"
        "bra again;\n"
        "done:\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}
__device__ inline void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Rows by cp.async.bulk through a ring of two, every slot with a barrier that says full and one
// that says empty: warp 0 loads, warps 1 and 2 add up.
extern "C" __global__ void __launch_bounds__(96)
    bulk_sums(const float* x, float* out, int n_rows) {  // x (n_rows, 64), out (64,)
    __shared__ alignas(128) float ring[2][64];
    __shared__ unsigned long long full[2], empty[2];
    if (threadIdx.x == 0) {
        for (int s = 0; s < 2; s++) {
            init(full + s, 1);
            init(empty + s, 64);
        }
        fence_async();
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        if (threadIdx.x == 0)
            for (int row = 0; row < n_rows; row++) {
                int slot = row % 2;
                wait(empty + slot, row / 2 % 2 ^ 1);  // a fresh barrier lets the first pass
                expect(full + slot, 256);
                asm volatile(
                    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                    "256, [%2];" ::"r"(shared_address(ring[slot])),
                    "l"(x + row * 64), "r"(shared_address(full + slot))
                    : "memory");
            }
        return;
    }
    int t = threadIdx.x - 32;
    float sum = 0.0f;
    for (int row = 0; row < n_rows; row++) {
        wait(full + row % 2, row / 2 % 2);
        sum += ring[row % 2][t];
        arrive(empty + row % 2);
    }
    out[t] = sum;
}

// A block's result to global memory by a bulk copy.
extern "C" __global__ void __launch_bounds__(64) bulk_store(const float* x, float* out) {
    __shared__ alignas(128) float row[64];
    row[threadIdx.x] = 2 * x[blockIdx.x * 64 + threadIdx.x];
    fence_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 256;" ::"l"(
                         out + blockIdx.x * 64),
                     "r"(shared_address(row))
                     : "memory");
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
}

// A tensor map of a row-major (n_rows, n_cols) array of halves, made in shared memory and copied to
// `map` (128 bytes of global memory, 128-aligned) by one warp. swizzle: 0 none, 1 32, 2 64, 3 128.
__device__ inline void make_map(unsigned char* map, void* built, const __half* x, int n_rows,
                                int n_cols, int box_rows, int box_cols, int swizzle) {
    int lane = threadIdx.x % 32;
    reinterpret_cast<unsigned*>(built)[lane] = 0;
    __syncwarp();
    unsigned at = shared_address(built);
    if (lane == 0) {
#define REPLACE32(field, ordinal, value)                                                 \
    asm volatile("tensormap.replace.tile." field ".shared::cta.b1024.b32 [%0], " ordinal \
                 "%1;" ::"r"(at),                                                        \
                 "r"(value)                                                              \
                 : "memory")
        asm volatile(
            "tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(at),
            "l"(x)
            : "memory");
        asm volatile("tensormap.replace.tile.rank.shared::cta.b1024.b32 [%0], 1;" ::"r"(at)
                     : "memory");
        REPLACE32("box_dim", "0, ", box_cols);
        REPLACE32("box_dim", "1, ", box_rows);
        REPLACE32("global_dim", "0, ", n_cols);
        REPLACE32("global_dim", "1, ", n_rows);
        REPLACE32("element_stride", "0, ", 1);
        REPLACE32("element_stride", "1, ", 1);
        asm volatile(
            "tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], 0, %1;" ::"r"(at),
            "l"(static_cast<unsigned long long>(n_cols) * 2)
            : "memory");
        asm volatile("tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [%0], 6;" ::"r"(at)
                     : "memory");
        asm volatile(
            "tensormap.replace.tile.interleave_layout.shared::cta.b1024.b32 [%0], 0;" ::"r"(at)
            : "memory");
        asm volatile("tensormap.replace.tile.fill_mode.shared::cta.b1024.b32 [%0], 0;" ::"r"(at)
                     : "memory");
#define SWIZZLE(mode)                                                                    \
    asm volatile("tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [%0], " mode \
                 ";" ::"r"(at)                                                           \
                 : "memory")
        if (swizzle == 0) SWIZZLE("0");
        if (swizzle == 1) SWIZZLE("1");
        if (swizzle == 2) SWIZZLE("2");
        if (swizzle == 3) SWIZZLE("3");
    }
    __syncwarp();
    asm volatile(
        "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
        "[%0], [%1], 128;" ::"l"(map),
        "r"(at)
        : "memory");
    asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
}

__device__ inline void load_box(void* to, const unsigned char* map, int col, int row,
                                unsigned long long* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
        "{%2, %3}], [%4];" ::"r"(shared_address(to)),
        "l"(map), "r"(col), "r"(row), "r"(shared_address(barrier))
        : "memory");
}

// A box of a matrix, parts of it outside, with each swizzle, as it lies in shared memory; then its
// double back by TMA. One warp. x (n_rows, n_cols), box (8, 16 << swizzle) for swizzle >= 1.
extern "C" __global__ void __launch_bounds__(32)
    boxes(const __half* x, __half* seen, __half* out, unsigned char* maps, int n_rows, int n_cols,
          int row, int col, int swizzle) {
    __shared__ alignas(1024) __half box[8 * 64];
    __shared__ alignas(128) unsigned char built[128];
    __shared__ unsigned long long full;
    int width = swizzle == 0 ? 64 : 8 << swizzle;
    make_map(maps, built, x, n_rows, n_cols, 8, width, swizzle);
    make_map(maps + 128, built, out, n_rows, n_cols, 8, width, swizzle);
    if (threadIdx.x == 0) {
        init(&full, 1);
        fence_async();
        expect(&full, 8 * width * 2);
        load_box(box, maps, col, row, &full);
    }
    __syncwarp();
    wait(&full, 0);
    for (int e = threadIdx.x; e < 8 * width; e += 32) {
        seen[e] = box[e];
        box[e] = __hmul(box[e], __float2half(2.0f));
    }
    fence_async();
    __syncwarp();
    if (threadIdx.x == 0) {
        asm volatile(
            "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(
                maps + 128),
            "r"(col), "r"(row), "r"(shared_address(box))
            : "memory");
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
}

// ---- wgmma: m64n64k16, float sums ----

__device__ inline unsigned long long descriptor(const void* at, int leading, int stride, int mode) {
    auto part = [](unsigned long long bytes) { return (bytes & 0x3ffff) >> 4; };
    return part(shared_address(at)) | part(leading) << 16 | part(stride) << 32 |
           static_cast<unsigned long long>(mode) << 62;
}

template <int kTransA, int kTransB>
__device__ inline void wgmma(float (&d)[32], unsigned long long a, unsigned long long b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"
        "%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, %34, %35;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
          "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
          "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "n"(kTransA), "n"(kTransB));
}
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}
__device__ inline void store_tile(float* c, int n, const float (&d)[32]) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    for (int e = 0; e < 32; e++) {
        int row = warp * 16 + lane / 4 + e / 2 % 2 * 8, col = e / 4 * 8 + lane % 4 * 2 + e % 2;
        c[row * n + col] = d[e];
    }
}

// c = a bᵀ, a (m, k), b (n, k): tiles of 64 x 64 x 64 by TMA with a swizzle of 128 bytes, two
// stages; the first warp's first lane loads ahead of the four warps that multiply.
extern "C" __global__ void __launch_bounds__(128)
    wgmma_tma(const __half* a, const __half* b, float* c, unsigned char* maps, int m, int n,
              int k) {
    extern __shared__ unsigned char dynamic[];
    auto* tiles = reinterpret_cast<__half*>((reinterpret_cast<unsigned long long>(dynamic) + 1023) /
                                            1024 * 1024);  // 2 x (a, b)
    __shared__ alignas(128) unsigned char built[128];
    __shared__ unsigned long long full[2];
    maps += (blockIdx.y * gridDim.x + blockIdx.x) * 256;
    if (threadIdx.x < 32) {
        make_map(maps, built, a, m, k, 64, 64, 3);
        make_map(maps + 128, built, b, n, k, 64, 64, 3);
    }
    if (threadIdx.x == 0) {
        init(full, 1);
        init(full + 1, 1);
        fence_async();
    }
    __syncthreads();
    int n_steps = k / 64;
    auto load = [&](int step) {
        if (threadIdx.x == 0 && step < n_steps) {
            __half* to = tiles + step % 2 * 2 * 4096;
            expect(full + step % 2, 16384);
            load_box(to, maps, step * 64, blockIdx.x * 64, full + step % 2);
            load_box(to + 4096, maps + 128, step * 64, blockIdx.y * 64, full + step % 2);
        }
    };
    float d[32] = {};
    load(0);
    for (int step = 0; step < n_steps; step++) {
        load(step + 1);
        wait(full + step % 2, step / 2 % 2);
        const __half* A = tiles + step % 2 * 2 * 4096;
        const __half* B = A + 4096;
        wgmma_fence();
        for (int part = 0; part < 4; part++)  // 16 halves, 32 bytes, along a row
            wgmma<0, 0>(d, descriptor(A + part * 16, 16, 1024, 1),
                        descriptor(B + part * 16, 16, 1024, 1));
        wgmma_commit();
        wgmma_wait();
        __syncthreads();  // all warps have read the stage
    }
    store_tile(c + blockIdx.x * 64 * n + blockIdx.y * 64, n, d);
}

// One tile of 64 x 64 x 16 whose operands threads put into shared memory without a swizzle, in core
// matrices of 8 rows of 16 bytes. K-major: leading = from one core matrix to the next along k,
// stride = to the next along m or n.
extern "C" __global__ void __launch_bounds__(128)
    wgmma_plain(const __half* a, const __half* b, float* c) {      // a, b (64, 16)
    __shared__ alignas(1024) __half A[2][8][8][8], B[8][2][8][8];  // (k / 8, m / 8, m % 8, k % 8)
    for (int e = threadIdx.x; e < 64 * 16; e += 128) {
        int row = e / 16, k = e % 16;
        A[k / 8][row / 8][row % 8][k % 8] = a[e];
        B[row / 8][k / 8][row % 8][k % 8] = b[e];
    }
    fence_async();
    __syncthreads();
    float d[32] = {};
    wgmma_fence();
    wgmma<0, 0>(d, descriptor(A, 1024, 128, 0), descriptor(B, 128, 256, 0));
    wgmma_commit();
    wgmma_wait();
    store_tile(c, 64, d);
}

// a (16, 64) and b (16, 64), both with m or n contiguous, swizzled by 128 bytes by hand.
extern "C" __global__ void __launch_bounds__(128)
    wgmma_transposed(const __half* a, const __half* b, float* c) {
    __shared__ alignas(1024) __half A[16 * 64], B[16 * 64];
    for (int e = threadIdx.x; e < 16 * 64; e += 128) {
        int k = e / 64, mn = e % 64;
        int at = k * 64 + (mn / 8 ^ k % 8) * 8 + mn % 8;
        A[at] = a[e];
        B[at] = b[e];
    }
    fence_async();
    __syncthreads();
    float d[32] = {};
    wgmma_fence();
    wgmma<1, 1>(d, descriptor(A, 2048, 1024, 1), descriptor(B, 2048, 1024, 1));
    wgmma_commit();
    wgmma_wait();
    store_tile(c, 64, d);
}

// K-major with swizzles of 64 (k = 32) and 32 bytes (k = 16), by hand.
template <int kHalves, int kMode>  // halves a row; 1 << kShift rows of 16 bytes share a phase
__device__ inline void swizzled(const __half* a, const __half* b, float* c) {
    __shared__ alignas(1024) __half A[64 * kHalves], B[64 * kHalves];
    for (int e = threadIdx.x; e < 64 * kHalves; e += 128) {
        // 16-byte chunk's bits XOR the address bits three above them.
        int chunk = e / 8, mixed = chunk ^ (chunk >> 3 & (kHalves / 8 - 1));
        A[mixed * 8 + e % 8] = a[e];
        B[mixed * 8 + e % 8] = b[e];
    }
    fence_async();
    __syncthreads();
    float d[32] = {};
    wgmma_fence();
    for (int part = 0; part < kHalves / 16; part++)
        wgmma<0, 0>(d, descriptor(A + part * 16, 16, kHalves * 16, kMode),
                    descriptor(B + part * 16, 16, kHalves * 16, kMode));
    wgmma_commit();
    wgmma_wait();
    store_tile(c, 64, d);
}
extern "C" __global__ void __launch_bounds__(128)
    wgmma_swizzle64(const __half* a, const __half* b, float* c) {
    swizzled<32, 2>(a, b, c);
}
extern "C" __global__ void __launch_bounds__(128)
    wgmma_swizzle32(const __half* a, const __half* b, float* c) {
    swizzled<16, 3>(a, b, c);
}
