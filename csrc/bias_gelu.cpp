// gelu(x + bias) in one pass, in both forms, and its gradients: x (n_rows, n_cols), bias (n_cols,)
// or None.
#include "rows.h"

namespace mg {
namespace {

template <class T, class Tail>
MG_INLINE typename Lanes<T>::V with_bias(const T* x, const T* bias, int64_t i, Tail tail) {
    typename Lanes<T>::V v = load(x + i, tail);
    return bias ? v + load(bias + i, tail) : v;
}

template <bool kTanh, class T>
void fwd_row(const T* x, const T* bias, T* out, int64_t n) {
    for_lanes<T>(n, [&](int64_t i, auto tail) {
        auto z = with_bias(x, bias, i, tail);
        store(out + i, kTanh ? gelu_tanh(z) : gelu(z), tail);
    });
}

template <bool kTanh, class T>
void bwd_row(const T* g, const T* x, const T* bias, T* dx, typename Lanes<T>::S* dbias, int64_t n) {
    for_lanes<T>(n, [&](int64_t i, auto tail) {
        auto z = with_bias(x, bias, i, tail);
        auto d = load(g + i, tail) * (kTanh ? gelu_tanh_grad(z) : gelu_grad(z));
        store(dx + i, d, tail);
        if (dbias) store(dbias + i, load(dbias + i, tail) + d, tail);
    });
}

}  // namespace

void bias_gelu_fwd(const Array& x, const Array& bias, const Array& out, bool tanh_form) {
    check_rows("bias_gelu_fwd", x, x);
    check_rows("bias_gelu_fwd", out, x);
    int64_t n = x.shape[1];
    check_vector("bias_gelu_fwd", bias, n, x.dtype);
    for_float_dtype("bias_gelu_fwd", x.dtype, [&](auto type) {
        using T = decltype(type);
        parallel_chunks(x.shape[0], rows_per_task(4 * n), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; r++) {
                if (tanh_form) {
                    fwd_row<true>(row<T>(x, r), bias.ptr<T>(), row<T>(out, r), n);
                } else {
                    fwd_row<false>(row<T>(x, r), bias.ptr<T>(), row<T>(out, r), n);
                }
            }
        });
    });
}

void bias_gelu_bwd(const Array& g, const Array& x, const Array& bias, const Array& dx,
                   const Array& dbias, bool tanh_form) {
    for (const Array* a : {&g, &x, &dx}) check_rows("bias_gelu_bwd", *a, x);
    int64_t n_rows = x.shape[0], n = x.shape[1];
    for (const Array* v : {&bias, &dbias}) check_vector("bias_gelu_bwd", *v, n, x.dtype);
    int64_t rows = block_rows(n_rows, n), blocks = n_rows ? (n_rows + rows - 1) / rows : 0;
    for_float_dtype("bias_gelu_bwd", x.dtype, [&](auto type) {
        using T = decltype(type);
        using S = typename Lanes<T>::S;
        Scratch<S> partial(dbias ? blocks * n + 1 : 1);
        parallel_for(blocks, [&](int64_t block) {
            S* sums = dbias ? partial.get() + block * n : nullptr;
            if (sums) std::fill_n(sums, n, S(0));
            for (int64_t r = block * rows; r < std::min(n_rows, (block + 1) * rows); r++) {
                const T *gr = row<T>(g, r), *xr = row<T>(x, r);
                if (tanh_form) {
                    bwd_row<true>(gr, xr, bias.ptr<T>(), row<T>(dx, r), sums, n);
                } else {
                    bwd_row<false>(gr, xr, bias.ptr<T>(), row<T>(dx, r), sums, n);
                }
            }
        });
        if (dbias) add_blocks(partial.get(), blocks, n, n, dbias.ptr<T>());
    });
}

}  // namespace mg
