// Products over tiles of attention, and the forms their operands have.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention.h"
#include "matmul_kernel.h"
#include "rows_ahead.h"

namespace mg {

// Operands are made of words: a float32, or the bfloat16 of a pair of neighbours in the sum
// (attention_pairs.h).
struct Rows {
    const float* p;
    int64_t row;
};

// The second operand of a product, word l of columns j to j + kNR at p + l * row + j / kNR * panel.
struct Panels {
    const float* p;
    int64_t row, panel;

    // Without its first l words.
    Panels from(int64_t l) const { return {p + l * row, row, panel}; }
};

// The first operand: word l of row i at p[i * step + l], or turned, at p[l * step + i].
struct TileOperand {
    const float* p;
    int64_t step;
};

inline int64_t padded(int64_t dim) { return (dim + VL - 1) / VL * VL; }

// Whole vectors, or the `left` elements that are there; zeros behind them.
template <class T>
MG_INLINE vf load_up_to(const T* x, int64_t left) {
    return left >= VL ? load(x) : load(x, left);
}
template <class T>
MG_INLINE void store_up_to(T* x, vf v, int64_t left) {
    left >= VL ? store(x, v) : store(x, v, left);
}

// A block of sums, in registers: all of it written out.
template <int kRows, int kVectors>
MG_INLINE void clear(vf (&sum)[kRows][kVectors]) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) sum[r][v] = vf{};
}
template <int kRows, int kVectors>
MG_INLINE void put(const vf (&sum)[kRows][kVectors], float* c, int64_t c_row, bool add) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) {
            float* at = c + r * c_row + v * VL;
            store(at, add ? load(at) + sum[r][v] : sum[r][v]);
        }
}

// packed[l][i] = x[i][l] for words l < k of rows i < n, zeros up to kQueries: the second operand of
// the products over features.
inline Panels transpose_rows(const Rows& x, int64_t n, int64_t k, float* packed) {
    for (int64_t i = 0; i < kQueries; i += kNR)
        pack_panel<kNR>(x.p + i * x.row, x.row, 1, std::clamp<int64_t>(n - i, 0, kNR), k,
                        packed + i * k);
    return {packed, kNR, kNR * k};
}

// Operands of float32, to which others are converted.
struct Floats {
    static constexpr int64_t kTerms = 1;  // of the sum, in a word
    static int64_t words(int64_t n) { return n; }

    // n rows of words: in place, or a copy whose rows are padded with zeros to whole vectors.
    template <class T>
    static Rows rows(const T* x, int64_t row, int64_t n, int64_t dim, float* copy) {
        if constexpr (std::is_same_v<T, float>)
            if (dim % VL == 0) return {x, row};
        int64_t wide = padded(dim);
        for (int64_t i = 0; i < n; i++)
            for (int64_t d = 0; d < wide; d += VL)
                store(copy + i * wide + d, load_up_to(x + i * row + d, dim - d));
        return {copy, wide};
    }

    // n rows, the second operand of a product over them, packed. In place, rows a power of two
    // apart would evict one another.
    template <class T>
    static Panels pack(const T* x, int64_t row, int64_t n, int64_t dim, float* packed) {
        for (int64_t d = 0; d < dim; d += kNR)
            pack_panel<kNR>(x + d, 1, row, std::min<int64_t>(kNR, dim - d), n, packed + d * n);
        return {packed, kNR, kNR * n};
    }
    static Panels panels(const Rows& x, int64_t, int64_t, float*) { return {x.p, x.row, kNR}; }
    static int64_t panel_words(int64_t, int64_t) { return 0; }  // that panels() has to have

    // A tile, keys × queries, as the first operand of products over keys and over queries.
    static TileOperand over_keys(const Stairs&, int64_t, const float* tile, float*) {
        return {tile, kQueries};
    }
    static TileOperand over_queries(const Stairs&, int64_t, const float* tile, float*) {
        return {tile, kQueries};
    }

    // kRows rows of a (k words, word l of row r at a[r * step + l], turned a[l * step + r]) by
    // kVectors vectors of columns of b. A function of its own wherever it is called from: inlined
    // into a larger one its sums may be kept in memory.
    template <int kRows, int kVectors, bool kTurned>
    __attribute__((noinline)) static void block(int64_t k, const TileOperand& a, const float* b,
                                                int64_t b_row, float* c, int64_t c_row, bool add) {
        vf sum[kRows][kVectors];
        clear(sum);
        for (int64_t l = 0; l < k; l++) {
            vf column[kVectors];
            for (int v = 0; v < kVectors; v++) column[v] = load(b + l * b_row + v * VL);
#pragma GCC unroll 16
            for (int r = 0; r < kRows; r++) {
                vf x = broadcast(kTurned ? a.p[l * a.step + r] : a.p[r * a.step + l]);
                for (int v = 0; v < kVectors; v++) sum[r][v] = fma(x, column[v], sum[r][v]);
            }
        }
        put(sum, c, c_row, add);
    }
};

template <class Kind, bool kTurned, int kRows, int kVectors, class Part>
MG_INLINE void tile_rows(const Part& part, int64_t i, const TileOperand& a, const float* b,
                         int64_t b_row, float* c, int64_t c_row, bool add, RowsAhead& ahead) {
    ahead.some();
    int64_t first = part.first(i) / Kind::kTerms, last = Kind::words(part.last(i + kRows - 1));
    const float* from = a.p + (kTurned ? i + first * a.step : i * a.step + first);
    Kind::template block<kRows, kVectors, kTurned>(last - first, {from, a.step}, b + first * b_row,
                                                   b_row, c + i * c_row, c_row, add);
}

template <class Kind, bool kTurned, int kVectors, class Part>
void tile_columns(const Part& part, int64_t m, const TileOperand& a, const float* b, int64_t b_row,
                  float* c, int64_t c_row, bool add, RowsAhead& ahead) {
    int64_t i = 0;
    auto rows = [&](auto n) {
        tile_rows<Kind, kTurned, n(), kVectors>(part, i, a, b, b_row, c, c_row, add, ahead);
        i += n();
    };
    while (i + kMR <= m) rows(std::integral_constant<int, kMR>{});
    if constexpr (kMR > 8)
        while (i + 8 <= m) rows(std::integral_constant<int, 8>{});
    while (i + 4 <= m) rows(std::integral_constant<int, 4>{});
    while (i < m) rows(std::integral_constant<int, 1>{});
}

// C (m × n) = [C +] A (m × k) B (k × n), n whole vectors. Part says what of it is wanted: of the
// columns from j on the first rows(j) rows, and of the rows [i, i + n) the terms first(i) to
// last(i + n - 1) of the sum.
template <class Kind, bool kTurned, class Part>
void tile_product(const Part& part, int64_t n, const TileOperand& a, Panels b, float* c,
                  int64_t c_row, bool add, RowsAhead& ahead) {
    int64_t j = 0;
    for (; j + kNR <= n; j += kNR, b.p += b.panel)
        tile_columns<Kind, kTurned, 2>(part, part.rows(j), a, b.p, b.row, c + j, c_row, add, ahead);
    if (j < n)
        tile_columns<Kind, kTurned, 1>(part, part.rows(j), a, b.p, b.row, c + j, c_row, add, ahead);
}

// The scores of a tile in place, times k, with what is added to them.
inline void add_to_scores(int64_t lanes, int64_t nj, vf k, const float* addend, float* scores) {
    vf hidden = broadcast(-kInfinity);
    for (int64_t j = 0; j < nj; j++)
        for (int64_t i = 0; i < lanes; i += VL) {
            float* at = scores + j * kQueries + i;
            vf a = load(addend + j * kQueries + i);
            // A masked score may be NaN.
            store(at, select(a == hidden, hidden, load(at) * k + a));
        }
}

// Whether some element of the rows is infinite or NaN: such a value must not meet a weight of 0,
// as zeros do here.
template <class T>
bool any_not_finite(const T* x, int64_t row, int64_t n, int64_t dim) {
    vf zero{}, sum[4] = {};
    for (int64_t d = 0; d < dim; d += VL) {
        int64_t i = 0;
        for (; i + 4 <= n; i += 4)
#pragma GCC unroll 4
            for (int64_t slot = 0; slot < 4; slot++)
                sum[slot] = fma(load_up_to(x + (i + slot) * row + d, dim - d), zero, sum[slot]);
        for (; i < n; i++) sum[0] = fma(load_up_to(x + i * row + d, dim - d), zero, sum[0]);
    }
    return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) != 0;
}

// C (queries × D) += W B for weights W[q][j] at w[j * kQueries + q], of the keys that are seen
// and skipping weights of 0.
template <class T>
void weighted_rows_skipping(const Stairs& seen, int64_t dim, const float* w, const T* b,
                            int64_t b_row, float* c, int64_t c_row) {
    for (int64_t j = 0; j < seen.m; j++)
        for (int64_t i = StairsOfKeys{seen}.first(j); i < seen.n; i++)
            if (float x = w[j * kQueries + i]; x != 0)
                for (int64_t d = 0; d < dim; d++)
                    c[i * c_row + d] += x * element(b + j * b_row + d);
}

// Rows of whole vectors, times factor.
template <class T>
void store_rows(const float* x, int64_t x_row, float factor, int64_t n, int64_t dim, T* out,
                int64_t row) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < dim; d += VL)
            store_up_to(out + i * row + d, load(x + i * x_row + d) * broadcast(factor), dim - d);
}

}  // namespace mg
