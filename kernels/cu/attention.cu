// Masked multi-head attention forward: softmax(q kᵀ · scale + bias, masked) v with a running
// maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022), in its plain form: products in
// float32 on the ordinary units. Compile with -DELEMENT=float, __half or __nv_bfloat16 and
// -DDIM=head_dim.
//
// A block has kRows queries of one head; each of its warps has some of them. Keys and values pass
// through shared memory kWarp at a time: in the scores lane j stands for key j, in the output it
// stands for every kWarp-th column. A row with every key masked gives zeros and lse = -inf. NaN and
// infinity in a masked key or value stop there.
#include "common.cuh"

constexpr int kWarps = 4, kRowsPerWarp = 4, kRows = kWarps * kRowsPerWarp;
constexpr int kColumns = (DIM + kWarp - 1) / kWarp;  // of the output, a lane

struct Strides {  // in elements; the last axis of q, k, v and out is contiguous
    long long b, h, i, j;
};

// Philox 4x32-10 (Salmon et al. 2011), as csrc/philox.h: key = seed, counter = (index >> 2,
// stream), word = index & 3.
__device__ inline unsigned philox_word(unsigned long long seed, unsigned long long stream,
                                       unsigned long long index) {
    unsigned long long block = index >> 2;
    unsigned c[4] = {static_cast<unsigned>(block), static_cast<unsigned>(block >> 32),
                     static_cast<unsigned>(stream), static_cast<unsigned>(stream >> 32)};
    auto k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
    for (int round = 0; round < 10; round++) {
        unsigned long long a = static_cast<unsigned long long>(c[0]) * 0xD2511F53u;
        unsigned long long b = static_cast<unsigned long long>(c[2]) * 0xCD9E8D57u;
        c[0] = static_cast<unsigned>(b >> 32) ^ c[1] ^ k0;
        c[1] = static_cast<unsigned>(b);
        c[2] = static_cast<unsigned>(a >> 32) ^ c[3] ^ k1;
        c[3] = static_cast<unsigned>(a);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    unsigned word = index & 3;
    return word < 2 ? (word == 0 ? c[0] : c[1]) : (word == 2 ? c[2] : c[3]);
}

extern "C" __global__ void __launch_bounds__(kWarps* kWarp)
    attention_fwd(const T* __restrict__ q,                 // (B, Hq, Tq, DIM)
                  const T* __restrict__ k,                 // (B, Hkv, Tk, DIM)
                  const T* __restrict__ v,                 // (B, Hkv, Tk, DIM)
                  const unsigned char* __restrict__ mask,  // (B, Hq, Tq, Tk), 0 = masked; or null
                  const T* __restrict__ bias,              // (B, Hq, Tq, Tk) or null
                  T* __restrict__ out,                     // (B, Hq, Tq, DIM)
                  float* __restrict__ lse,                 // (B, Hq, Tq), contiguous
                  const unsigned long long* __restrict__ rng,  // [seed, stream] or null
                  Strides q_at, Strides k_at, Strides v_at, Strides mask_at, Strides bias_at,
                  Strides out_at, int n_heads, int group, int n_queries, int n_keys, float scale,
                  int causal, int window, unsigned threshold, float kept) {
    __shared__ float queries[kRows][DIM];
    __shared__ float keys[kWarp][DIM + 1];  // lanes read down a column: one off the banks' number
    __shared__ float values[kWarp][DIM];
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    long long b = blockIdx.y / n_heads, h = blockIdx.y % n_heads;
    // Heavy tiles first: causal rows grow longer towards the end.
    int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
    q += b * q_at.b + h * q_at.h;
    k += b * k_at.b + h / group * k_at.h;
    v += b * v_at.b + h / group * v_at.h;

    for (int e = threadIdx.x; e < kRows * DIM; e += blockDim.x) {
        int row = e / DIM, d = e % DIM;
        bool inside = first + row < n_queries;
        queries[row][d] = inside ? to_float(q[(first + row) * q_at.i + d]) : 0.0f;
    }
    float acc[kRowsPerWarp][kColumns] = {}, top[kRowsPerWarp], total[kRowsPerWarp] = {};
    for (float& t : top) t = -infinity();

    // The keys that any query of this block may see. The last query stands at the last key.
    int shift = n_keys - n_queries, begin = 0, end = n_keys;
    if (causal) end = min(end, first + kRows + shift);
    if (window >= 0) {
        begin = max(0, first + shift - window + 1) / kWarp * kWarp;
        if (!causal) end = min(end, first + kRows + shift + window - 1);
    }
    for (int start = begin; start < end; start += kWarp) {
        __syncthreads();  // the tile before is still being read
        for (int e = threadIdx.x; e < kWarp * DIM; e += blockDim.x) {
            int j = e / DIM, d = e % DIM;
            bool inside = start + j < n_keys;
            keys[j][d] = inside ? to_float(k[(start + j) * k_at.i + d]) : 0.0f;
            values[j][d] = inside ? to_float(v[(start + j) * v_at.i + d]) : 0.0f;
        }
        __syncthreads();
        int key = start + lane;
#pragma unroll  // so that acc, top and total are registers
        for (int r = 0; r < kRowsPerWarp; r++) {
            int query = first + warp * kRowsPerWarp + r, position = query + shift;
            bool allowed = query < n_queries && key < n_keys && (!causal || key <= position);
            if (window >= 0)
                allowed = allowed && key > position - window && (causal || key < position + window);
            if (mask && allowed)
                allowed = mask[b * mask_at.b + h * mask_at.h + query * mask_at.i + key * mask_at.j];
            float s = 0.0f;
#pragma unroll 4
            for (int d = 0; d < DIM; d++) s += queries[warp * kRowsPerWarp + r][d] * keys[lane][d];
            s *= scale;
            if (bias && allowed)
                s += to_float(
                    bias[b * bias_at.b + h * bias_at.h + query * bias_at.i + key * bias_at.j]);
            if (!allowed) s = -infinity();

            float higher = Max::join(warp_reduce<Max>(s), top[r]);
            // Where nothing has been seen both are -inf, and their difference would be NaN.
            float base = higher == -infinity() ? 0.0f : higher;
            float p = __expf(s - base), shrink = __expf(top[r] - base);
            top[r] = higher;
            total[r] = total[r] * shrink + warp_reduce<Sum>(p);
            if (rng) {
                unsigned long long row = (b * n_heads + h) * n_queries + query;
                unsigned word = philox_word(rng[0], rng[1], row * n_keys + key);
                p = word >= threshold ? p * kept : 0.0f;
            }
            for (float& a : acc[r]) a *= shrink;
#pragma unroll 4
            for (int j = 0; j < kWarp; j++) {
                float weight = __shfl_sync(kAllLanes, p, j);
                if (weight == 0.0f) continue;  // and so a masked NaN stays out
                for (int c = 0; c < kColumns; c++) {
                    int d = lane + c * kWarp;
                    if (d < DIM) acc[r][c] += weight * values[j][d];
                }
            }
        }
    }

    out += b * out_at.b + h * out_at.h;
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; r++) {
        int query = first + warp * kRowsPerWarp + r;
        if (query >= n_queries) continue;
        float inverse = total[r] == 0.0f ? 0.0f : 1.0f / total[r];
        for (int c = 0; c < kColumns; c++) {
            int d = lane + c * kWarp;
            if (d < DIM) out[query * out_at.i + d] = from_float<T>(acc[r][c] * inverse);
        }
        if (lane == 0)
            lse[(b * n_heads + h) * n_queries + query] =
                total[r] == 0.0f ? -infinity() : top[r] + logf(total[r]);
    }
}
