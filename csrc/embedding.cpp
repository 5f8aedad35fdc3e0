// Rows of a table by index, their gradient; elements by position, and scatter-add. Contributions to
// one element are added in the order of the indices whatever the threads do: work is split by
// columns (or by output range), not by index.
#include <atomic>

#include "indices.h"
#include "rows.h"
#include "strided.h"

namespace mg {

// weight (V, C), indices (…), out (…, C) contiguous
void embedding_fwd(const Array& weight, const Array& indices, const Array& out) {
    int64_t n_cols = weight.shape[1], n = indices.size(), bytes = itemsize(weight.dtype);
    if (!out.contiguous() || (n_cols > 1 && weight.strides[1] != 1))
        throw std::invalid_argument("embedding_fwd: expected contiguous rows");
    for_indices("embedding_fwd", indices, [&](auto* index) {
        parallel_chunks(n, rows_per_task(n_cols), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++)
                std::memcpy(
                    out.data + i * n_cols * bytes,
                    weight.data + static_cast<int64_t>(index[i]) * weight.strides[0] * bytes,
                    static_cast<size_t>(n_cols * bytes));
        });
    });
}

// g (…, C) contiguous, dweight (V, C) contiguous: zeros plus the rows of g at their indices, summed
// in float32 (float64 for float64).
void embedding_bwd(const Array& g, const Array& indices, const Array& dweight) {
    if (!g.contiguous() || !dweight.contiguous())
        throw std::invalid_argument("embedding_bwd: expected contiguous arrays");
    int64_t rows = dweight.shape[0], n_cols = dweight.shape[1], n = indices.size();
    if (n_cols == 0 || rows == 0) return;
    constexpr int64_t kColumns = 64;  // a task's share of the columns: 4 cache lines of float32
    for_float_dtype("embedding_bwd", g.dtype, [&](auto type) {
        using T = decltype(type);
        using S = typename Lanes<T>::S;
        constexpr bool kDirect = std::is_same_v<T, S>;
        Scratch<S> wide(kDirect ? 1 : rows * n_cols);
        S* sums = wide.get();
        if constexpr (kDirect) sums = dweight.ptr<T>();
        for_indices("embedding_bwd", indices, [&](auto* index) {
            parallel_chunks(n_cols, kColumns, [&](int64_t c0, int64_t c1) {
                for (int64_t r = 0; r < rows; r++)
                    std::fill(sums + r * n_cols + c0, sums + r * n_cols + c1, S(0));
                for (int64_t i = 0; i < n; i++) {
                    const T* from = g.ptr<T>() + i * n_cols;
                    S* to = sums + static_cast<int64_t>(index[i]) * n_cols;
                    for_lanes<T>(c1 - c0, [&](int64_t c, auto tail) {
                        store(to + c0 + c, load(to + c0 + c, tail) + load(from + c0 + c, tail),
                              tail);
                    });
                }
                if constexpr (!kDirect) {
                    for (int64_t r = 0; r < rows; r++)
                        for_lanes<T>(c1 - c0, [&](int64_t c, auto tail) {
                            store(dweight.ptr<T>() + r * n_cols + c0 + c,
                                  load(sums + r * n_cols + c0 + c, tail), tail);
                        });
                }
            });
        });
    });
}

// The flat positions of x[i][indices[i][j][k]][k] in an x of n along its middle axis; indices and
// out (I, J, K) contiguous. Throws std::out_of_range for an index outside of [-n, n).
void positions_along(const Array& indices, const Array& out, int64_t n) {
    if (indices.ndim != 3 || out.dtype != DType::i64 || !out.contiguous() ||
        out.size() != indices.size())
        throw std::invalid_argument("positions_along: expected (I, J, K), and as many int64");
    int64_t middle = indices.shape[1], inner = indices.shape[2];
    std::atomic<bool> outside{false};
    for_indices("positions_along", indices, [&](auto* index) {
        auto some = [&](int64_t begin, int64_t end) {
            bool bad = false;
            // n elements of one row, or of as many rows of one each.
            auto find = [&](int64_t row, int64_t count, int64_t k_step) {
                const auto* from = index + row * inner;
                int64_t *to = out.ptr<int64_t>() + row * inner, first = row / middle * n;
                for (int64_t i = 0; i < count; i++) {
                    auto at = static_cast<int64_t>(from[i]);
                    bad |= (at < -n) | (at >= n);
                    to[i] = (first + at + (at < 0 ? n : 0)) * inner + i * k_step;
                }
            };
            for (int64_t row = begin, rows; row < end; row += rows) {
                rows = inner == 1 ? std::min(end, (row / middle + 1) * middle) - row : 1;
                find(row, inner == 1 ? rows : inner, inner == 1 ? 0 : 1);
            }
            if (bad) outside = true;
        };
        parallel_chunks(indices.shape[0] * middle, rows_per_task(inner), some);
    });
    if (outside)
        throw std::out_of_range("positions_along: an index is outside [-" + std::to_string(n) +
                                ", " + std::to_string(n) + ")");
}

// out[i] = x[positions[i]]; all flat and contiguous.
void gather(const Array& x, const Array& positions, const Array& out) {
    if (positions.dtype != DType::i64 || !positions.contiguous() || !x.contiguous() ||
        !out.contiguous() || x.dtype != out.dtype || positions.size() != out.size())
        throw std::invalid_argument(
            "gather: expected contiguous int64 positions, and an output of their number and of x's "
            "dtype");
    const int64_t* at = positions.ptr<int64_t>();
    for_dtype(out.dtype, [&](auto type) {
        using T = decltype(type);
        const T* from = x.ptr<T>();
        T* to = out.ptr<T>();
        parallel_chunks(out.size(), kTaskElements / 4, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) to[i] = from[at[i]];
        });
    });
}

// out[positions[i]] += values[i] in order; all flat and contiguous.
void scatter_add(const Array& positions, const Array& values, const Array& out) {
    if (positions.dtype != DType::i64 || !positions.contiguous() || !values.contiguous() ||
        !out.contiguous() || values.dtype != out.dtype)
        throw std::invalid_argument(
            "scatter_add: expected contiguous int64 positions, and values of the output's dtype");
    const int64_t* at = positions.ptr<int64_t>();
    int64_t n = positions.size();
    for_dtype(out.dtype, [&](auto type) {
        using T = decltype(type);
        const T* from = values.ptr<T>();
        T* to = out.ptr<T>();
        if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
            int64_t size = out.size();  // repeated positions must not round at every step
            Scratch<float> wide(size + 1);
            for (int64_t i = 0; i < size; i++) wide[i] = to_float(to[i]);
            for (int64_t i = 0; i < n; i++) wide[at[i]] += to_float(from[i]);
            for (int64_t i = 0; i < size; i++) to[i] = ToStorage<T>::of(wide[i]);
        } else if constexpr (std::is_same_v<T, b8>) {
            unsupported("scatter_add", out.dtype, "numbers");
        } else {
            for (int64_t i = 0; i < n; i++) to[at[i]] = static_cast<T>(to[at[i]] + from[i]);
        }
    });
}

}  // namespace mg
