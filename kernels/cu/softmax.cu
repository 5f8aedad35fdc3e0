// softmax over rows: one block a row, read twice (a running maximum and sum, then the quotients;
// Milakov and Gimelshein 2018) and written once. Compile with -DELEMENT=float, __half or
// __nv_bfloat16.
#include "common.cuh"

struct Running {
    float top = -infinity(), total = 0.0f;

    __device__ void add(float x) {
        if (x == -infinity()) return;  // adds nothing, and -inf - -inf would be NaN
        if (x <= top) {
            total += __expf(x - top);
        } else {  // higher than before, or NaN, which the sum keeps
            total = (top == -infinity() ? 0.0f : total * __expf(top - x)) + (x == x ? 1.0f : x);
            top = x == x ? x : top;
        }
    }
};

extern "C" __global__ void __launch_bounds__(256)
    softmax_fwd(const T* __restrict__ x,  // (n_rows, n_cols), rows x_stride apart
                T* __restrict__ out,      // (n_rows, n_cols), rows out_stride apart
                long long n_cols, long long x_stride, long long out_stride,
                int packed) {  // rows start at, and consist of, whole packs
    x += blockIdx.x * x_stride;
    out += blockIdx.x * out_stride;
    auto* x_packs = reinterpret_cast<const Pack*>(x);
    auto* out_packs = reinterpret_cast<Pack*>(out);

    Running seen;
    if (packed) {
        for_packs(n_cols, [&](long long i) {
            Pack p = x_packs[i];
            for (T v : p.value) seen.add(to_float(v));
        });
    } else {
        for_columns(n_cols, [&](long long i) { seen.add(to_float(x[i])); });
    }
    float top = block_reduce<Max>(seen.top);
    // Nothing but -inf: the total stays 0, and 0 / 0 is the NaN wanted.
    float mine = seen.top == -infinity() ? seen.total : seen.total * __expf(seen.top - top);
    float base = top == -infinity() ? 0.0f : top;
    float scale = 1.0f / block_reduce<Sum>(mine);

    if (packed) {
        for_packs(n_cols, [&](long long i) {
            Pack p = x_packs[i];
            for (T& v : p.value) v = from_float<T>(__expf(to_float(v) - base) * scale);
            out_packs[i] = p;
        });
    } else {
        for_columns(n_cols, [&](long long i) {
            out[i] = from_float<T>(__expf(to_float(x[i]) - base) * scale);
        });
    }
}
