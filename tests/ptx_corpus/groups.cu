// Groups of lanes, a bitonic sort in a warp's registers, copies of every width, a plain product.

extern "C" __global__ void group_sums(const int* x, int* out) {  // out (3, 64)
    int i = threadIdx.x, v = x[i], sum = v;
    unsigned tile = 0xffu << (i % 32 / 8 * 8);
    for (int o = 4; o > 0; o /= 2) sum += __shfl_xor_sync(tile, sum, o, 8);
    out[i] = sum;
    out[64 + i] = __shfl_down_sync(tile, v, 2, 8) + 100 * (i / 8);
    out[128 + i] = 0;
    if (v % 3 == 0) {  // as many as are here, and how many of them before this lane
        unsigned here = __activemask(), before;
        asm("mov.u32 %0, %%lanemask_lt;" : "=r"(before));
        out[128 + i] = __popc(here) * 100 + __popc(here & before);
    }
}

extern "C" __global__ void bitonic(const float* x, float* out) {
    int lane = threadIdx.x % 32;
    float v = x[blockIdx.x * blockDim.x + threadIdx.x];
    for (int size = 2; size <= 32; size *= 2)
        for (int step = size / 2; step > 0; step /= 2) {
            float other = __shfl_xor_sync(0xffffffffu, v, step);
            bool up = (lane & size) == 0, low = (lane & step) == 0;
            v = up == low ? fminf(v, other) : fmaxf(v, other);
        }
    out[blockIdx.x * blockDim.x + threadIdx.x] = v;
}

extern "C" __global__ void widths(const unsigned char* x, unsigned char* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;  // 32 bytes a thread
    if (i >= n) return;
    auto copy = [&](auto type, int at) {
        using V = decltype(type);
        *reinterpret_cast<V*>(out + i * 32 + at) = *reinterpret_cast<const V*>(x + i * 32 + at);
    };
    copy(uchar1(), 0);
    copy(uchar1(), 1);
    copy(short1(), 2);
    copy(int1(), 4);
    copy(uchar4(), 8);
    copy(short2(), 12);
    copy(ushort4(), 16);
    copy(longlong1(), 24);
    auto* wide = reinterpret_cast<int4*>(out + (n + i) * 32);
    wide[0] = __ldg(reinterpret_cast<const int4*>(x + i * 32));
    wide[1] = __ldcs(reinterpret_cast<const int4*>(x + i * 32) + 1);
    short sum = 0;
    for (int k = 0; k < 32; k++) sum += reinterpret_cast<const signed char*>(x)[i * 32 + k];
    reinterpret_cast<short*>(out + 2 * n * 32)[i] = sum;
}

// 16 x 16 tiles of a product through shared memory, and the sum of |c| by a warp's reduction.
extern "C" __global__ void tiled_product(const float* a, const float* b, float* c, double* total,
                                         int m, int n, int k) {
    __shared__ float A[16][16], B[16][17];
    int row = blockIdx.y * 16 + threadIdx.y, col = blockIdx.x * 16 + threadIdx.x;
    float sum = 0.0f;
    for (int start = 0; start < k; start += 16) {
        int x = start + threadIdx.x, y = start + threadIdx.y;
        A[threadIdx.y][threadIdx.x] = row < m && x < k ? a[row * k + x] : 0.0f;
        B[threadIdx.y][threadIdx.x] = y < k && col < n ? b[y * n + col] : 0.0f;
        __syncthreads();
        for (int j = 0; j < 16; j++) sum += A[threadIdx.y][j] * B[j][threadIdx.x];
        __syncthreads();
    }
    if (row < m && col < n) c[row * n + col] = sum;
    double size = row < m && col < n ? fabs(static_cast<double>(sum)) : 0.0;
    for (int o = 16; o > 0; o /= 2) size += __shfl_down_sync(0xffffffffu, size, o);
    int thread = threadIdx.y * 16 + threadIdx.x;
    if (thread % 32 == 0) atomicAdd(total, size);
}
