// Layer norm over rows (Ba et al. 2016), with residual add: one block a row. The mean first, then
// the variance of the centred row, recentred: E[x²] - E[x]² would lose all digits where the mean is
// large. Compile with -DELEMENT=float, __half or __nv_bfloat16.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
    layer_norm_fwd(const T* __restrict__ x,         // (n_rows, n_cols), rows x_stride apart
                   const T* __restrict__ residual,  // the same, rows residual_stride apart; or null
                   const T* __restrict__ weight,    // (n_cols,) or null
                   const T* __restrict__ bias,      // (n_cols,) or null
                   T* __restrict__ out,             // (n_rows, n_cols), rows out_stride apart
                   T* summed,                       // rows summed_stride apart; or null
                   float* mean, float* rstd,        // (n_rows,)
                   long long n_cols, long long x_stride, long long residual_stride,
                   long long out_stride, long long summed_stride, float eps,
                   int packed) {  // rows and vectors start at, and consist of, whole packs
    long long row = blockIdx.x;
    x += row * x_stride;
    out += row * out_stride;
    const T* source = x;
    if (residual) {
        residual += row * residual_stride;
        summed += row * summed_stride;
        source = summed;
    }
    auto pack = [](const T* p, long long i) { return reinterpret_cast<const Pack*>(p)[i]; };
    auto each = [&](auto one) {  // one(value of the row) for this thread's columns
        if (packed) {
            for_packs(n_cols, [&](long long i) {
                Pack p = pack(source, i);
                for (T v : p.value) one(to_float(v));
            });
        } else {
            for_columns(n_cols, [&](long long i) { one(to_float(source[i])); });
        }
    };

    if (residual) {  // each thread reads back only what it wrote itself
        if (packed) {
            for_packs(n_cols, [&](long long i) {
                Pack a = pack(x, i), b = pack(residual, i);
                for (int k = 0; k < Pack::kSize; k++)
                    a.value[k] = from_float<T>(to_float(a.value[k]) + to_float(b.value[k]));
                reinterpret_cast<Pack*>(summed)[i] = a;
            });
        } else {
            for_columns(n_cols, [&](long long i) {
                summed[i] = from_float<T>(to_float(x[i]) + to_float(residual[i]));
            });
        }
    }
    float n = static_cast<float>(n_cols), sum = 0.0f, left = 0.0f, squares = 0.0f;
    each([&](float v) { sum += v; });
    float first = block_reduce<Sum>(sum) / n;
    each([&](float v) { left += v - first; });
    left = block_reduce<Sum>(left) / n;
    each([&](float v) {
        float c = v - first - left;
        squares += c * c;
    });
    float scale = 1.0f / sqrtf(block_reduce<Sum>(squares) / n + eps);

    auto normed = [&](T v) { return (to_float(v) - first - left) * scale; };
    if (packed) {
        for_packs(n_cols, [&](long long i) {
            Pack p = pack(source, i), w, b;
            if (weight) w = pack(weight, i);
            if (bias) b = pack(bias, i);
            for (int k = 0; k < Pack::kSize; k++) {
                float y = normed(p.value[k]);
                if (weight) y *= to_float(w.value[k]);
                if (bias) y += to_float(b.value[k]);
                p.value[k] = from_float<T>(y);
            }
            reinterpret_cast<Pack*>(out)[i] = p;
        });
    } else {
        for_columns(n_cols, [&](long long i) {
            float y = normed(source[i]);
            if (weight) y *= to_float(weight[i]);
            if (bias) y += to_float(bias[i]);
            out[i] = from_float<T>(y);
        });
    }
    if (threadIdx.x == 0) {
        mean[row] = first + left;
        rstd[row] = scale;
    }
}
