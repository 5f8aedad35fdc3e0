// gelu(x + bias) and its slope there in one pass, in both forms, and the gradients from the slope:
// x (n_rows, n_cols), bias (n_cols,) or None.
//
// Forward has the exponential at hand, so it keeps the derivative rather than x: backward is a
// multiplication.
#include "rows.h"

namespace mg {
namespace {

template <bool kTanh, class T>
void fwd_row(const T* x, const T* bias, T* out, T* slope, int64_t n) {
    for_lanes<T>(n, [&](int64_t i, auto tail) {
        typename Lanes<T>::V z = load(x + i, tail);
        if (bias) z = z + load(bias + i, tail);
        auto y = kTanh ? gelu_tanh_for<T>(z) : gelu_for<T>(z);
        if (slope) store(slope + i, y.slope, tail);
        store(out + i, y.value, tail);
    });
}

template <class T>
void bwd_row(const T* g, const T* slope, T* dx, typename Lanes<T>::S* dbias, int64_t n) {
    for_lanes<T>(n, [&](int64_t i, auto tail) {
        typename Lanes<T>::V d = load(g + i, tail) * load(slope + i, tail);
        store(dx + i, d, tail);
        if (dbias) store(dbias + i, load(dbias + i, tail) + d, tail);
    });
}

}  // namespace

// slope may be None, and out or slope may be x itself.
void bias_gelu_fwd(const Array& x, const Array& bias, const Array& out, const Array& slope,
                   bool tanh_form) {
    for (const Array* a : {&x, &out, &slope}) check_rows("bias_gelu_fwd", *a, x);
    int64_t n = x.shape[1];
    check_vector("bias_gelu_fwd", bias, n, x.dtype);
    for_float_dtype("bias_gelu_fwd", x.dtype, [&](auto type) {
        using T = decltype(type);
        parallel_chunks(x.shape[0], rows_per_task(4 * n), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; r++) {
                T *out_row = row<T>(out, r), *slope_row = row<T>(slope, r);
                if (tanh_form) {
                    fwd_row<true>(row<T>(x, r), bias.ptr<T>(), out_row, slope_row, n);
                } else {
                    fwd_row<false>(row<T>(x, r), bias.ptr<T>(), out_row, slope_row, n);
                }
            }
        });
    });
}

// dx = g · slope, and dbias its sum over rows: None, or of any floating dtype.
void bias_gelu_bwd(const Array& g, const Array& slope, const Array& dx, const Array& dbias) {
    for (const Array* a : {&g, &slope, &dx}) check_rows("bias_gelu_bwd", *a, slope);
    int64_t n_rows = slope.shape[0], n = slope.shape[1];
    check_vector("bias_gelu_bwd", dbias, n, dbias.dtype);
    int64_t rows = block_rows(n_rows, n), blocks = n_rows ? (n_rows + rows - 1) / rows : 0;
    for_float_dtype("bias_gelu_bwd", slope.dtype, [&](auto type) {
        using T = decltype(type);
        using S = typename Lanes<T>::S;
        Scratch<S> partial(dbias ? blocks * n + 1 : 1);
        parallel_for(blocks, [&](int64_t block) {
            S* sums = dbias ? partial.get() + block * n : nullptr;
            if (sums) std::fill_n(sums, n, S(0));
            for (int64_t r = block * rows; r < std::min(n_rows, (block + 1) * rows); r++)
                bwd_row(row<T>(g, r), row<T>(slope, r), row<T>(dx, r), sums, n);
        });
        if (!dbias) return;
        for_float_dtype("bias_gelu_bwd", dbias.dtype, [&](auto sum_type) {
            add_blocks(partial.get(), blocks, n, n, dbias.ptr<decltype(sum_type)>());
        });
    });
}

}  // namespace mg
