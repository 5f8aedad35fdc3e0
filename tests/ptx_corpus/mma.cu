// Matrix products by mma.sync: every type, and attention with ldmatrix and cp.async.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ inline unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// One warp, c = a b for a (16, K) row-major and b (8, K) (that is, b's columns), loaded by hand.
extern "C" __global__ void mma_f16(const unsigned* a, const unsigned* b, float* c) {  // K = 16
    int row = threadIdx.x / 4, pair = threadIdx.x % 4;  // rows are 8 pairs long
    unsigned A[4] = {a[row * 8 + pair], a[(row + 8) * 8 + pair], a[row * 8 + pair + 4],
                     a[(row + 8) * 8 + pair + 4]};
    unsigned B[2] = {b[row * 8 + pair], b[row * 8 + pair + 4]};
    float D[4];
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
        "{%10,%10,%10,%10};"
        : "=f"(D[0]), "=f"(D[1]), "=f"(D[2]), "=f"(D[3])
        : "r"(A[0]), "r"(A[1]), "r"(A[2]), "r"(A[3]), "r"(B[0]), "r"(B[1]), "f"(0.0f));
    for (int e = 0; e < 4; e++) c[(row + e / 2 * 8) * 8 + pair * 2 + e % 2] = D[e];
}

// The same summed in halves, K = 8 twice.
extern "C" __global__ void mma_f16_f16(const unsigned* a, const unsigned* b, __half* c) {
    int row = threadIdx.x / 4, pair = threadIdx.x % 4;
    unsigned D[2] = {0, 0};
    for (int k = 0; k < 2; k++) {
        unsigned A[2] = {a[row * 8 + k * 4 + pair], a[(row + 8) * 8 + k * 4 + pair]};
        unsigned B = b[row * 8 + k * 4 + pair];
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0,%1},{%2,%3},{%4},{%0,%1};"
            : "+r"(D[0]), "+r"(D[1])
            : "r"(A[0]), "r"(A[1]), "r"(B));
    }
    auto* out = reinterpret_cast<unsigned*>(c);
    out[row * 4 + pair] = D[0];
    out[(row + 8) * 4 + pair] = D[1];
}

extern "C" __global__ void mma_bf16(const unsigned* a, const unsigned* b, float* c) {  // K = 16
    int row = threadIdx.x / 4, pair = threadIdx.x % 4;
    float D[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
        "{%0,%1,%2,%3};"
        : "+f"(D[0]), "+f"(D[1]), "+f"(D[2]), "+f"(D[3])
        : "r"(a[row * 8 + pair]), "r"(a[(row + 8) * 8 + pair]), "r"(a[row * 8 + pair + 4]),
          "r"(a[(row + 8) * 8 + pair + 4]), "r"(b[row * 8 + pair]), "r"(b[row * 8 + pair + 4]));
    for (int e = 0; e < 4; e++) c[(row + e / 2 * 8) * 8 + pair * 2 + e % 2] = D[e];
}

extern "C" __global__ void mma_tf32(const float* a, const float* b, float* c) {  // K = 8
    int row = threadIdx.x / 4, k = threadIdx.x % 4;
    auto tf32 = [](float x) {
        unsigned y;
        asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
        return y;
    };
    float D[4] = {};
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
        "{%0,%1,%2,%3};"
        : "+f"(D[0]), "+f"(D[1]), "+f"(D[2]), "+f"(D[3])
        : "r"(tf32(a[row * 8 + k])), "r"(tf32(a[(row + 8) * 8 + k])), "r"(tf32(a[row * 8 + k + 4])),
          "r"(tf32(a[(row + 8) * 8 + k + 4])), "r"(tf32(b[row * 8 + k])),
          "r"(tf32(b[row * 8 + k + 4])));
    for (int e = 0; e < 4; e++) c[(row + e / 2 * 8) * 8 + k * 2 + e % 2] = D[e];
}

// int8: K = 32, four to a register; a signed, b unsigned.
extern "C" __global__ void mma_s8_u8(const unsigned* a, const unsigned* b, int* c) {
    int row = threadIdx.x / 4, quad = threadIdx.x % 4;
    int D[4] = {};
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
        "{%0,%1,%2,%3};"
        : "+r"(D[0]), "+r"(D[1]), "+r"(D[2]), "+r"(D[3])
        : "r"(a[row * 8 + quad]), "r"(a[(row + 8) * 8 + quad]), "r"(a[row * 8 + quad + 4]),
          "r"(a[(row + 8) * 8 + quad + 4]), "r"(b[row * 8 + quad]), "r"(b[row * 8 + quad + 4]));
    for (int e = 0; e < 4; e++) c[(row + e / 2 * 8) * 8 + quad * 2 + e % 2] = D[e];
}

// ldmatrix with and without .trans: matrices of 8 x 8 halves through shared memory.
extern "C" __global__ void matrices(const uint4* x, unsigned* out) {  // x (32 rows of 8 halves)
    __shared__ uint4 rows[32];
    int t = threadIdx.x;
    rows[t] = x[t];
    __syncwarp();
    unsigned r[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(rows + t)));
    for (int k = 0; k < 4; k++) out[k * 32 + t] = r[k];
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(rows + t % 16)));
    for (int k = 0; k < 2; k++) out[(4 + k) * 32 + t] = r[k];
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(shared_address(rows + 24 + t % 8)));
    out[6 * 32 + t] = r[0];
}

// Attention forward, head_dim 64, causal or not: 4 warps of 16 queries, 32 keys a tile, the next
// tile on its way by cp.async. Rows of shared memory are 72 halves long, so that the eight rows of
// an 8 x 8 matrix lie in different banks. n_queries and n_keys are multiples of 64 and 32.
constexpr int kDim = 64, kRow = kDim + 8, kQueries = 64, kKeys = 32;

__device__ inline void fetch(__half* to, const __half* from, int rows) {
    for (int e = threadIdx.x; e < rows * kDim / 8; e += blockDim.x) {
        int row = e / (kDim / 8), col = e % (kDim / 8) * 8;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                         shared_address(to + row * kRow + col)),
                     "l"(from + row * kDim + col)
                     : "memory");
    }
}
__device__ inline void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <bool kTrans>
__device__ inline void load4(unsigned (&r)[4], const __half* at) {
    if (kTrans)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(at)));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(at)));
}
__device__ inline unsigned pair_of(float low, float high) {
    __half2 h = __floats2half2_rn(low, high);
    return *reinterpret_cast<unsigned*>(&h);
}

extern "C" __global__ void __launch_bounds__(128)
    attention(const __half* q, const __half* k, const __half* v, __half* out, int n_queries,
              int n_keys, float scale_log2, int causal) {  // (H, T, 64)
    extern __shared__ __half tiles[];
    __half* queries = tiles;
    __half* keys = queries + kQueries * kRow;  // two tiles
    __half* values = keys + 2 * kKeys * kRow;  // two tiles
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = blockIdx.x * kQueries;
    q += (blockIdx.y * n_queries + first) * kDim;
    out += (blockIdx.y * n_queries + first) * kDim;
    k += blockIdx.y * n_keys * kDim;
    v += blockIdx.y * n_keys * kDim;
    int n_tiles = n_keys / kKeys, shift = n_keys - n_queries;
    if (causal) n_tiles = min(n_tiles, (first + kQueries + shift + kKeys - 1) / kKeys);

    fetch(queries, q, kQueries);
    fetch(keys, k, kKeys);
    fetch(values, v, kKeys);
    commit();
    float acc[kDim / 8][4] = {}, top[2] = {-1e30f, -1e30f}, total[2] = {};
    unsigned Q[kDim / 16][4];
    for (int tile = 0; tile < n_tiles; tile++) {
        if (tile + 1 < n_tiles) {
            fetch(keys + (tile + 1) % 2 * kKeys * kRow, k + (tile + 1) * kKeys * kDim, kKeys);
            fetch(values + (tile + 1) % 2 * kKeys * kRow, v + (tile + 1) * kKeys * kDim, kKeys);
        }
        commit();
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        if (tile == 0)
            for (int d = 0; d < kDim / 16; d++)
                load4<false>(Q[d],
                             queries + (warp * 16 + lane % 16) * kRow + d * 16 + lane / 16 * 8);
        const __half* K = keys + tile % 2 * kKeys * kRow;
        const __half* V = values + tile % 2 * kKeys * kRow;
        float s[kKeys / 8][4] = {};
        for (int n = 0; n < kKeys / 8; n++)
            for (int d = 0; d < kDim / 32; d++) {
                unsigned b[4];
                load4<false>(b, K + (n * 8 + lane % 8) * kRow + d * 32 + lane / 8 * 8);
                multiply(s[n], Q[2 * d], b[0], b[1]);
                multiply(s[n], Q[2 * d + 1], b[2], b[3]);
            }
        for (int half = 0; half < 2; half++) {  // rows lane / 4 and lane / 4 + 8
            int query = first + warp * 16 + lane / 4 + half * 8;
            float higher = top[half];
            for (int n = 0; n < kKeys / 8; n++)
                for (int e = 0; e < 2; e++) {
                    float& x = s[n][half * 2 + e];
                    int key = tile * kKeys + n * 8 + lane % 4 * 2 + e;
                    x = causal && key > query + shift ? -1e30f : x * scale_log2;
                    higher = fmaxf(higher, x);
                }
            higher = fmaxf(higher, __shfl_xor_sync(0xffffffffu, higher, 1));
            higher = fmaxf(higher, __shfl_xor_sync(0xffffffffu, higher, 2));
            float shrink = exp2f(top[half] - higher);
            top[half] = higher;
            total[half] *= shrink;
            for (auto& a : acc) {
                a[half * 2] *= shrink;
                a[half * 2 + 1] *= shrink;
            }
            for (int n = 0; n < kKeys / 8; n++)
                for (int e = 0; e < 2; e++) {
                    float& x = s[n][half * 2 + e];
                    x = exp2f(x - higher);
                    total[half] += x;
                }
        }
        for (int j = 0; j < kKeys / 16; j++) {
            unsigned P[4] = {pair_of(s[2 * j][0], s[2 * j][1]), pair_of(s[2 * j][2], s[2 * j][3]),
                             pair_of(s[2 * j + 1][0], s[2 * j + 1][1]),
                             pair_of(s[2 * j + 1][2], s[2 * j + 1][3])};
            for (int d = 0; d < kDim / 16; d++) {
                unsigned b[4];
                load4<true>(b, V + (j * 16 + lane % 16) * kRow + d * 16 + lane / 16 * 8);
                multiply(acc[2 * d], P, b[0], b[1]);
                multiply(acc[2 * d + 1], P, b[2], b[3]);
            }
        }
        __syncthreads();  // the tile is read before it is overwritten
    }
    for (int half = 0; half < 2; half++) {
        float sum = total[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        int row = warp * 16 + lane / 4 + half * 8;
        for (int n = 0; n < kDim / 8; n++)
            reinterpret_cast<unsigned*>(out + row * kDim)[n * 4 + lane % 4] =
                pair_of(acc[n][half * 2] / sum, acc[n][half * 2 + 1] / sum);
    }
}
