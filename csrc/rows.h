// What row kernels share: one loop for vectors of float32 (which serve float32, bfloat16 and
// float16) and for double scalars, checks of their arrays, and sums that stay accurate over long
// rows.
#pragma once

#include <array>

#include "parallel.h"
#include "simd.h"
#include "vmath.h"

namespace mg {

// How a row of T is computed on: the lane type, the scalar of statistics, and lanes per step.
template <class T>
struct Lanes {
    using V = vf;
    using S = float;
    static constexpr int N = VL;
    static constexpr DType statistics = DType::f32;
};
template <>
struct Lanes<double> {
    using V = double;
    using S = double;
    static constexpr int N = 1;
    static constexpr DType statistics = DType::f64;
};

MG_INLINE double load(const double* p) { return *p; }
MG_INLINE double load(const double* p, int64_t) { return *p; }
MG_INLINE void store(double* p, double v) { *p = v; }
MG_INLINE void store(double* p, double v, int64_t) { *p = v; }
MG_INLINE double sum_lanes(double v) { return v; }
MG_INLINE double max_lanes(double v) { return v; }
MG_INLINE double keep_first(double v, int64_t, double) { return v; }
MG_INLINE double exp_nonpositive(double x) { return std::exp(x); }

template <class T>
MG_INLINE typename Lanes<T>::S value_at(const T* p) {
    if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
        return to_float(*p);
    } else {
        return *p;
    }
}

template <class T>
MG_INLINE void set_value(T* p, typename Lanes<T>::S value) {
    if constexpr (std::is_same_v<T, bf16>) {
        *p = to_bf16(value);
    } else if constexpr (std::is_same_v<T, f16>) {
        *p = to_f16(value);
    } else {
        *p = value;
    }
}

// A whole step of lanes, where the last step of a row gets a count.
struct Whole {};
template <class T>
MG_INLINE auto load(const T* p, Whole) {
    return load(p);
}
template <class T, class V>
MG_INLINE void store(T* p, V v, Whole) {
    store(p, v);
}
template <class V>
MG_INLINE V keep_first(V v, Whole, double) {
    return v;
}

// One whose results are stored past the caches.
struct Streamed : Whole {};
template <class T, class V>
MG_INLINE void store(T* p, V v, Streamed) {
    stream(p, v);
}

// The tail for what is stored beside such results, and read again soon.
template <class Tail>
MG_INLINE Tail kept(Tail tail) {
    return tail;
}
MG_INLINE Whole kept(Streamed) { return {}; }

// body(i, Step{}) for whole steps over n elements of T, then body(i, count) for the rest.
template <class T, class Step = Whole, class Body>
MG_INLINE void for_lanes(int64_t n, Body&& body) {
    constexpr int N = Lanes<T>::N;
    int64_t i = 0;
    for (; i + N <= n; i += N) body(i, Step{});
    if (i < n) body(i, n - i);
}

// The same where results may go past the caches.
template <class T, class Body>
MG_INLINE void for_lanes(int64_t n, bool past, Body&& body) {
    if constexpr (kStreams && Lanes<T>::N > 1)
        if (past) return for_lanes<T, Streamed>(n, body);
    for_lanes<T>(n, body);
}

// Sums in blocks of this many steps, so that the error does not grow with the length of a row, and
// in four interleaved chains, as one would wait for each of its additions.
constexpr int64_t kSumBlock = 64, kChains = 4;

// K sums over a row at once: Σ term(i, tail)[k], lanes beyond the end counted as 0 (term must give
// 0 there).
template <class T, int K, class Term>
MG_INLINE std::array<typename Lanes<T>::S, K> sum_rows(int64_t n, Term&& term) {
    using V = typename Lanes<T>::V;
    constexpr int64_t N = Lanes<T>::N;
    V total[K] = {};
    auto add = [](V(&to)[K], const std::array<V, K>& from) {
        for (int k = 0; k < K; k++) to[k] += from[k];
    };
    int64_t i = 0;
    for (; i + kChains * N <= n;) {
        int64_t end = std::min(n, i + kSumBlock * N);
        V chains[kChains][K] = {};
        for (; i + kChains * N <= end; i += kChains * N)
            for (int64_t c = 0; c < kChains; c++) add(chains[c], term(i + c * N, Whole{}));
        for (int k = 0; k < K; k++)
            total[k] += (chains[0][k] + chains[1][k]) + (chains[2][k] + chains[3][k]);
    }
    for (; i + N <= n; i += N) add(total, term(i, Whole{}));
    if (i < n) add(total, term(i, n - i));
    std::array<typename Lanes<T>::S, K> sums;
    for (int k = 0; k < K; k++) sums[k] = sum_lanes(total[k]);
    return sums;
}

// Σ term(i, tail) over a row.
template <class T, class Term>
MG_INLINE typename Lanes<T>::S sum_row(int64_t n, Term&& term) {
    using V = typename Lanes<T>::V;
    return sum_rows<T, 1>(
        n, [&](int64_t i, auto tail) { return std::array<V, 1>{V(term(i, tail))}; })[0];
}

template <class T>
MG_INLINE typename Lanes<T>::S max_row(const T* x, int64_t n) {
    using V = typename Lanes<T>::V;
    const double lowest = -std::numeric_limits<double>::infinity();
    constexpr int64_t N = Lanes<T>::N;
    V top[kChains];
    for (V& chain : top) chain = splat<V>(lowest);
    int64_t i = 0;
    for (; i + kChains * N <= n; i += kChains * N)
        for (int64_t c = 0; c < kChains; c++) top[c] = maximum(top[c], V(load(x + i + c * N)));
    for_lanes<T>(n - i, [&](int64_t j, auto tail) {
        top[0] = maximum(top[0], keep_first(load(x + i + j, tail), tail, lowest));
    });
    return max_lanes(maximum(maximum(top[0], top[1]), maximum(top[2], top[3])));
}

// ---- argument checks ----

inline void check_rows(const char* kernel, const Array& x, const Array& like,
                       bool or_bf16 = false) {
    if (!x) return;
    bool mixed = or_bf16 && x.dtype == DType::bf16 && like.dtype == DType::f32;
    bool fits = x.ndim == 2 && (x.dtype == like.dtype || mixed) && x.shape[0] == like.shape[0] &&
                x.shape[1] == like.shape[1] && (x.shape[1] <= 1 || x.strides[1] == 1);
    if (!fits)
        throw std::invalid_argument(
            std::string(kernel) +
            ": expected (n_rows, n_cols) arrays of one shape and dtype with "
            "unit column stride");
}
inline void check_vector(const char* kernel, const Array& v, int64_t n, DType dtype) {
    if (!v) return;
    if (v.ndim != 1 || v.shape[0] != n || v.dtype != dtype || (n > 1 && v.strides[0] != 1))
        throw std::invalid_argument(std::string(kernel) + ": expected a contiguous vector of " +
                                    std::to_string(n) + " " + dtype_name(dtype));
}

template <class T>
MG_INLINE T* row(const Array& x, int64_t r) {
    return x ? x.ptr<T>() + r * x.strides[0] : nullptr;
}

// Whether rows of results go past the caches: whole lines of them, so many that they would not stay
// there, and not in place, where the lines are in the caches already.
inline bool streamed_rows(const Array& x, const Array& out) {
    int64_t item = itemsize(out.dtype);
    return out && out.data != x.data && out.shape[0] * out.shape[1] * item >= kStreamedBytes &&
           out.strides[0] * item % 64 == 0 && reinterpret_cast<uintptr_t>(out.data) % 64 == 0;
}

// body(begin, end, past) for chunks of rows, one a task;
// past: whether the rows of `out`, made from x, go past the caches.
template <class Body>
inline void for_row_chunks(const Array& x, const Array& out, Body&& body) {
    bool past = streamed_rows(x, out);
    // What is asked for behind the last row of a chunk, another thread may take.
    int64_t rows = rows_per_task(out.shape[1]) * (past ? 4 : 1);
    parallel_chunks(out.shape[0], rows, [&](int64_t begin, int64_t end) {
        body(begin, end, past);
        if (past) streams_done();
    });
}

// The row after r, or null behind the last one. Where rows come from memory, a kernel that makes
// several passes over each asks for the next one (`ask`) in the last of them, which works from the
// first cache: memory would rest meanwhile. Asked into the second, as the first has the row itself.
struct NextRow {
    const char* at;
    int64_t item;
};
MG_INLINE NextRow next_row(const Array& x, int64_t r, bool from_memory) {
    int64_t item = itemsize(x.dtype);
    bool there = from_memory && x && r + 1 < x.shape[0];
    return {there ? x.data + (r + 1) * x.strides[0] * item : nullptr, item};
}
MG_INLINE void ask(const NextRow& next, int64_t i) {
    if (next.at) __builtin_prefetch(next.at + i * next.item, 0, 2);
}

// body(T{}), or body(bf16{}) where rows beside float32 ones are of that, as in mixed precision.
template <class T, class Body>
MG_INLINE void for_row_type(const Array& x, Body&& body) {
    if constexpr (std::is_same_v<T, float>)
        if (x.dtype == DType::bf16) return body(bf16{});
    body(T{});
}

// ---- column sums of rows processed in blocks, added in order ----

// Rows of a block: enough for a task, at most kMaxBlocks blocks, and where rows are long several,
// as every block has sums of its own (of four blocks at least).
constexpr int64_t kMaxBlocks = 32, kLongRows = 8;
inline int64_t block_rows(int64_t n_rows, int64_t n_cols) {
    return std::max({rows_per_task(n_cols), (n_rows + kMaxBlocks - 1) / kMaxBlocks,
                     std::min(kLongRows, (n_rows + 3) / 4)});
}

// out[c] = Σ over blocks of partial[block][c].
template <class T, class S>
void add_blocks(const S* partial, int64_t n_blocks, int64_t stride, int64_t n_cols, T* out) {
    parallel_chunks(n_cols, rows_per_task(n_blocks), [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; c++) {
            double total = 0;
            for (int64_t b = 0; b < n_blocks; b++) total += partial[b * stride + c];
            set_value(out + c, static_cast<typename Lanes<T>::S>(total));
        }
    });
}

}  // namespace mg
