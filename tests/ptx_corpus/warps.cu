// What lanes, warps and blocks do together: shuffles, votes, matches, reductions, divergence.

constexpr unsigned kAll = 0xffffffffu;

extern "C" __global__ void shuffles(const int* x, int* out) {  // out (10, 32)
    int lane = threadIdx.x, v = x[lane];
    int* at = out + lane;
    at[0 * 32] = __shfl_sync(kAll, v, (lane * 7 + 3) % 32);
    at[1 * 32] = __shfl_up_sync(kAll, v, 3);
    at[2 * 32] = __shfl_down_sync(kAll, v, 5);
    at[3 * 32] = __shfl_xor_sync(kAll, v, 9);
    at[4 * 32] = __shfl_sync(kAll, v, 2, 8);
    at[5 * 32] = __shfl_up_sync(kAll, v, 2, 8);
    at[6 * 32] = __shfl_down_sync(kAll, v, 3, 16);
    at[7 * 32] = __shfl_xor_sync(kAll, v, 12, 8);  // out of the segment: keeps its value
    at[8 * 32] = __shfl_sync(kAll, v, 37);
    if (lane % 3 == 0) {
        unsigned active = __activemask();
        at[9 * 32] = __shfl_sync(active, v, lane + 3 < 32 ? lane + 3 : 0);
    } else {
        at[9 * 32] = -1;
    }
}

extern "C" __global__ void votes(const int* x, unsigned* out) {  // out (14, 32)
    int lane = threadIdx.x, v = x[lane];
    unsigned* at = out + lane;
    at[0 * 32] = __any_sync(kAll, v == x[5]);
    at[1 * 32] = __all_sync(kAll, v >= 0);
    at[2 * 32] = __ballot_sync(kAll, v & 1);
    at[3 * 32] = __match_any_sync(kAll, v & 3);
    int same;
    at[4 * 32] = __match_all_sync(kAll, v >> 10, &same);
    at[5 * 32] = same;
    at[6 * 32] = __reduce_add_sync(kAll, static_cast<unsigned>(v));
    at[7 * 32] = __reduce_max_sync(kAll, -v);
    at[8 * 32] = __reduce_min_sync(kAll, static_cast<unsigned>(v) << 24);
    at[9 * 32] = __reduce_and_sync(kAll, static_cast<unsigned>(v) | 12u);
    at[10 * 32] = __reduce_or_sync(kAll, static_cast<unsigned>(v) & 12u);
    at[11 * 32] = __reduce_xor_sync(kAll, static_cast<unsigned>(v));
    if (lane >= 20) {
        at[12 * 32] = __ballot_sync(0xfff00000u, v & 1);
        at[13 * 32] = __reduce_add_sync(0xfff00000u, static_cast<unsigned>(v));
    } else {
        at[12 * 32] = __ballot_sync(0x000fffffu, v & 2);
        at[13 * 32] = __match_any_sync(0x000fffffu, static_cast<unsigned long long>(v & 3) << 40);
    }
}

// The steps of Collatz's sequence, and the largest member; odd starts skip, large ones stop early.
extern "C" __global__ void collatz(const unsigned* start, int* steps, unsigned* largest, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned long long x = start[i], top = x;
    int count = 0;
    while (x != 1) {
        if (count >= 100) break;
        count++;
        if (x % 2 == 0) {
            x /= 2;
            continue;
        }
        x = 3 * x + 1;
        if (x > top) top = x;
    }
    steps[i] = count;
    largest[i] = static_cast<unsigned>(top);
}

// A switch, nested loops of different lengths, and an early return from the inner one.
extern "C" __global__ void branches(const int* x, int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int v = x[i], total = 0;
    switch (v % 6) {
        case 0:
            total = v * 3;
            break;
        case 1:
            total = v - 7;  // falls through
        case 2:
            total += v ^ 0x55;
            break;
        case 3:
            for (int a = 0; a < v % 13; a++)
                for (int b = 0; b < a; b++) {
                    total += a * b;
                    if (total > 200) {
                        out[i] = -total;
                        return;
                    }
                }
            break;
        case 4:
            total = __popc(v);
            break;
        default:
            total = v << (v & 7);
            break;
    }
    out[i] = total;
}

// The sum of every block's part, by a tree in shared memory whose size the launch gives.
extern "C" __global__ void block_sums(const float* x, float* out, int n) {
    extern __shared__ float partial[];
    int t = threadIdx.x;
    float sum = 0.0f;
    for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    partial[t] = sum;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) partial[t] += partial[t + half];
        __syncthreads();
    }
    if (t == 0) out[blockIdx.x] = partial[0];
}

// Inclusive sums along a block (Hillis and Steele 1986), by two buffers; and what __syncthreads
// counts.
extern "C" __global__ void block_scan(const int* x, int* out, int* counts) {
    extern __shared__ int buffer[];
    int t = threadIdx.x, n = blockDim.x, from = 0;
    const int* mine = x + blockIdx.x * n;
    buffer[t] = mine[t];
    for (int offset = 1; offset < n; offset *= 2) {
        __syncthreads();
        int* source = buffer + from * n;
        from = 1 - from;
        buffer[from * n + t] = source[t] + (t >= offset ? source[t - offset] : 0);
    }
    out[blockIdx.x * n + t] = buffer[from * n + t];
    int odd = __syncthreads_count(mine[t] & 1);
    int any = __syncthreads_or(mine[t] > 90), all = __syncthreads_and(mine[t] >= 0);
    if (t == 0) counts[blockIdx.x] = odd * 4 + (any != 0) * 2 + (all != 0);
}

// A transpose by tiles; a 2-D block, and rows of 33 so that columns touch all banks.
extern "C" __global__ void transpose(const float* x, float* out, int n_rows, int n_cols) {
    __shared__ float tile[32][33];
    int col = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
    for (int r = 0; r < 32; r += 8)
        if (row + r < n_rows && col < n_cols)
            tile[threadIdx.y + r][threadIdx.x] = x[(row + r) * n_cols + col];
    __syncthreads();
    col = blockIdx.y * 32 + threadIdx.x;
    row = blockIdx.x * 32 + threadIdx.y;
    for (int r = 0; r < 32; r += 8)
        if (row + r < n_cols && col < n_rows)
            out[(row + r) * n_rows + col] = tile[threadIdx.x][threadIdx.y + r];
}

// Two groups of warps with barriers of their own: producers fill a slot, consumers empty it.
__device__ inline void wait_at(int barrier) {
    asm volatile("barrier.sync %0, 64;" ::"r"(barrier) : "memory");
}
__device__ inline void arrive_at(int barrier) {
    asm volatile("barrier.arrive %0, 64;" ::"r"(barrier) : "memory");
}
extern "C" __global__ void __launch_bounds__(64) hand_over(const int* x, int* out, int rounds) {
    __shared__ int slot[32];
    int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        for (int r = 0; r < rounds; r++) {
            if (r > 0) wait_at(2);  // empty again
            slot[lane] = x[r * 32 + lane];
            arrive_at(1);
        }
    } else {
        for (int r = 0; r < rounds; r++) {
            wait_at(1);
            out[r * 32 + lane] = slot[31 - lane] * 2;
            if (r + 1 < rounds) arrive_at(2);
        }
    }
}
