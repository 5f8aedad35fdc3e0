// softmax, log_softmax and logsumexp of rows: (n_rows, n_cols), unit column stride, any row stride.
//
// The maximum is taken first (Milakov and Gimelshein 2018 name the one-pass form; with the row in
// cache the second read is free, and there is no rescaling to lose accuracy by). A maximum that is
// not finite makes the whole row NaN; exp_nonpositive leaves that to be said here.
#include "rows.h"

namespace mg {
namespace {

template <class S>
S or_nan(S value, S top) {
    return std::isfinite(top) ? value : std::numeric_limits<S>::quiet_NaN();
}

// The exponentials wait in `kept` (n,), which may be out itself.
template <class T>
void softmax_row(const T* x, typename Lanes<T>::S* kept, T* out, int64_t n, bool past,
                 const NextRow& next) {
    using V = typename Lanes<T>::V;
    using S = typename Lanes<T>::S;
    S highest = max_row(x, n);
    V top = splat<V>(highest);
    auto sum = sum_row<T>(n, [&](int64_t i, auto tail) {
        ask(next, i);
        V e = keep_first(exp_nonpositive(load(x + i, tail) - top), tail, 0.0);
        store(kept + i, e, tail);
        return e;
    });
    V scale = splat<V>(or_nan(S(1) / sum, highest));
    for_lanes<T>(n, past, [&](int64_t i, auto tail) {
        store(out + i, V(load(kept + i, tail)) * scale, tail);
    });
}

template <class T>
typename Lanes<T>::S log_sum(const T* x, int64_t n, typename Lanes<T>::S top) {
    using V = typename Lanes<T>::V;
    V shift = splat<V>(top);
    auto sum = sum_row<T>(n, [&](int64_t i, auto tail) {
        return keep_first(exp_nonpositive(load(x + i, tail) - shift), tail, 0.0);
    });
    return or_nan(std::log(sum), top);
}

// body(T{}, begin, end, past) for chunks of the rows of `out`, made from x.
template <class Body>
void for_row_blocks(const char* kernel, const Array& x, const Array& out, Body&& body) {
    for_float_dtype(kernel, out.dtype, [&](auto type) {
        if (out.shape[1] == 0) return;
        for_row_chunks(
            x, out, [&](int64_t begin, int64_t end, bool past) { body(type, begin, end, past); });
    });
}

template <class Body>
void for_rows(const char* kernel, const Array& x, const Array& out, Body&& body) {
    for_row_blocks(kernel, x, out, [&](auto type, int64_t begin, int64_t end, bool past) {
        for (int64_t r = begin; r < end; r++) body(type, r, past);
    });
}

}  // namespace

void softmax_fwd(const Array& x, const Array& out) {
    check_rows("softmax_fwd", x, x);
    check_rows("softmax_fwd", out, x);
    for_row_blocks("softmax_fwd", x, out, [&](auto type, int64_t begin, int64_t end, bool past) {
        using T = decltype(type);
        using S = typename Lanes<T>::S;
        int64_t n = x.shape[1];
        // Half types would be rounded twice, and what goes past the caches is not read again.
        bool in_place = std::is_same_v<T, S> && !past;
        Scratch<S> wide(in_place ? 1 : n);
        for (int64_t r = begin; r < end; r++) {
            T* to = row<T>(out, r);
            S* kept = in_place ? reinterpret_cast<S*>(to) : wide.get();
            softmax_row(row<T>(x, r), kept, to, n, past, next_row(x, r, past));
        }
    });
}

// dx = y (g - Σ g y)
void softmax_bwd(const Array& g, const Array& y, const Array& dx) {
    for (const Array* a : {&g, &y, &dx}) check_rows("softmax_bwd", *a, y);
    for_rows("softmax_bwd", g, dx, [&](auto type, int64_t r, bool past) {
        using T = decltype(type);
        using V = typename Lanes<T>::V;
        const T *gr = row<T>(g, r), *yr = row<T>(y, r);
        T* out = row<T>(dx, r);
        V inner = splat<V>(sum_row<T>(y.shape[1], [&](int64_t i, auto tail) {
            return load(gr + i, tail) * load(yr + i, tail);
        }));
        NextRow next[] = {next_row(g, r, past), next_row(y, r, past)};
        for_lanes<T>(y.shape[1], past, [&](int64_t i, auto tail) {
            for (const NextRow& ahead : next) ask(ahead, i);
            store(out + i, V(load(yr + i, tail)) * (load(gr + i, tail) - inner), tail);
        });
    });
}

void log_softmax_fwd(const Array& x, const Array& out) {
    check_rows("log_softmax_fwd", x, x);
    check_rows("log_softmax_fwd", out, x);
    for_rows("log_softmax_fwd", x, out, [&](auto type, int64_t r, bool past) {
        using T = decltype(type);
        using V = typename Lanes<T>::V;
        const T* xr = row<T>(x, r);
        T* to = row<T>(out, r);
        auto top = max_row(xr, x.shape[1]);
        V shift = splat<V>(top), total = splat<V>(log_sum(xr, x.shape[1], top));
        NextRow next = next_row(x, r, past);
        for_lanes<T>(x.shape[1], past, [&](int64_t i, auto tail) {
            ask(next, i);
            store(to + i, (load(xr + i, tail) - shift) - total, tail);
        });
    });
}

// dx = g - exp(y) Σ g
void log_softmax_bwd(const Array& g, const Array& y, const Array& dx) {
    for (const Array* a : {&g, &y, &dx}) check_rows("log_softmax_bwd", *a, y);
    for_rows("log_softmax_bwd", g, dx, [&](auto type, int64_t r, bool past) {
        using T = decltype(type);
        using V = typename Lanes<T>::V;
        const T *gr = row<T>(g, r), *yr = row<T>(y, r);
        T* out = row<T>(dx, r);
        V total = splat<V>(
            sum_row<T>(y.shape[1], [&](int64_t i, auto tail) { return load(gr + i, tail); }));
        NextRow next[] = {next_row(g, r, past), next_row(y, r, past)};
        for_lanes<T>(y.shape[1], past, [&](int64_t i, auto tail) {
            for (const NextRow& ahead : next) ask(ahead, i);
            store(out + i, load(gr + i, tail) - exp(V(load(yr + i, tail))) * total, tail);
        });
    });
}

// out (n_rows,); of a row of -infinity, -infinity
void logsumexp_fwd(const Array& x, const Array& out) {
    check_rows("logsumexp_fwd", x, x);
    check_vector("logsumexp_fwd", out, x.shape[0], x.dtype);
    for_rows("logsumexp_fwd", x, x, [&](auto type, int64_t r, bool) {
        using T = decltype(type);
        auto top = max_row(row<T>(x, r), x.shape[1]);
        auto value = std::isinf(top) ? top : top + log_sum(row<T>(x, r), x.shape[1], top);
        set_value(out.ptr<T>() + r, value);
    });
}

}  // namespace mg
