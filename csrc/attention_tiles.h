// Products over tiles of attention, and the forms their operands have.
#pragma once

#include <type_traits>

#include "attention.h"
#include "matmul_kernel.h"

namespace mg {

// Rows of float32, read in place where they are that already, else converted to a scratch copy
// whose row length is padded with zeros to whole vectors.
struct Rows {
    const float* p;
    int64_t row;
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

template <class T>
Rows float_rows(const T* x, int64_t row, int64_t n, int64_t dim, float* copy) {
    if constexpr (std::is_same_v<T, float>)
        if (dim % VL == 0) return {x, row};
    int64_t wide = padded(dim);
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < wide; d += VL)
            store(copy + i * wide + d, load_up_to(x + i * row + d, dim - d));
    return {copy, wide};
}

// packed[d][i] = x[i][d], i < n, zeros up to kQueries: the B operand of the products over features.
inline void transpose_rows(const Rows& x, int64_t n, int64_t dim, float* packed) {
    for (int64_t i = 0; i < kQueries; i += kNR)
        pack_panel<kNR>(x.p + i * x.row, x.row, 1, std::clamp<int64_t>(n - i, 0, kNR), dim,
                        packed + i * dim);
}

// n rows as panels of kNR columns, zeros beyond dim: the B operand of the products over rows. In
// place, rows a power of two apart would evict one another.
template <class T>
void pack_rows(const T* x, int64_t row, int64_t n, int64_t dim, float* packed) {
    for (int64_t d = 0; d < dim; d += kNR)
        pack_panel<kNR>(x + d, 1, row, std::min<int64_t>(kNR, dim - d), n, packed + d * n);
}

// C (m × n) = [C +] A (m × k) B (k × n), n whole vectors; A's element (i, l) at a[i * a_row + l *
// a_col], where one of the two is 1; B's row l at b + l * b_row (next panel of kNR columns at
// b_panel from there).
template <int kRows, int kVectors, bool kUnitRows>
MG_INLINE void tile_block(int64_t k, const float* a, int64_t a_row, int64_t a_col, const float* b,
                          int64_t b_row, float* c, int64_t c_row, bool add) {
    vf sum[kRows][kVectors];
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) sum[r][v] = vf{};
    for (int64_t l = 0; l < k; l++) {
        vf column[kVectors];
        for (int v = 0; v < kVectors; v++) column[v] = load(b + l * b_row + v * VL);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++) {
            vf x = broadcast(kUnitRows ? a[l * a_col + r] : a[r * a_row + l]);
            for (int v = 0; v < kVectors; v++) sum[r][v] = fma(x, column[v], sum[r][v]);
        }
    }
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) {
            float* at = c + r * c_row + v * VL;
            store(at, add ? load(at) + sum[r][v] : sum[r][v]);
        }
}

template <int kRows, int kVectors, bool kUnitRows, class Part>
MG_INLINE void tile_rows(const Part& part, int64_t i, const float* a, int64_t a_row, int64_t a_col,
                         const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
    int64_t first = part.first(i), last = part.last(i + kRows - 1);
    a += i * (kUnitRows ? 1 : a_row) + first * a_col;
    tile_block<kRows, kVectors, kUnitRows>(last - first, a, a_row, a_col, b + first * b_row, b_row,
                                           c + i * c_row, c_row, add);
}

template <int kVectors, bool kUnitRows, class Part>
void tile_columns(const Part& part, int64_t m, const float* a, int64_t a_row, int64_t a_col,
                  const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
    int64_t i = 0;
    auto rows = [&](auto n) {
        tile_rows<n(), kVectors, kUnitRows>(part, i, a, a_row, a_col, b, b_row, c, c_row, add);
        i += n();
    };
    while (i + kMR <= m) rows(std::integral_constant<int, kMR>{});
    if constexpr (kMR > 8)
        while (i + 8 <= m) rows(std::integral_constant<int, 8>{});
    while (i + 4 <= m) rows(std::integral_constant<int, 4>{});
    while (i < m) rows(std::integral_constant<int, 1>{});
}

// Part says what of the product is wanted: of the columns from j on the first rows(j) rows, and of
// the rows [i, i + n) the terms first(i) to last(i + n - 1) of the inner index.
template <bool kUnitRows, class Part>
void tile_product(const Part& part, int64_t n, const float* a, int64_t a_row, int64_t a_col,
                  const float* b, int64_t b_row, int64_t b_panel, float* c, int64_t c_row,
                  bool add) {
    int64_t j = 0;
    for (; j + kNR <= n; j += kNR, b += b_panel)
        tile_columns<2, kUnitRows>(part, part.rows(j), a, a_row, a_col, b, b_row, c + j, c_row,
                                   add);
    if (j < n)
        tile_columns<1, kUnitRows>(part, part.rows(j), a, a_row, a_col, b, b_row, c + j, c_row,
                                   add);
}

// Whether some element of the rows is infinite or NaN: such a value must not meet a weight of 0.
inline bool any_not_finite(const Rows& x, int64_t n, int64_t dim) {
    vf sum{};
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < dim; d += VL)
            sum += load_up_to(x.p + i * x.row + d, dim - d) * vf{};
    float total = sum_lanes(sum);
    return total != total;
}

// C (queries × D) += W B for weights W[q][j] at w[j * kQueries + q], of the keys that are seen
// and skipping weights of 0.
inline void weighted_rows_skipping(const Stairs& seen, int64_t dim, const float* w, const Rows& b,
                                   float* c, int64_t c_row) {
    for (int64_t j = 0; j < seen.m; j++)
        for (int64_t i = StairsOfKeys{seen}.first(j); i < seen.n; i++)
            if (float x = w[j * kQueries + i]; x != 0)
                for (int64_t d = 0; d < dim; d++) c[i * c_row + d] += x * b.p[j * b.row + d];
}

template <class T>
void store_rows(const float* x, int64_t x_row, int64_t n, int64_t dim, T* out, int64_t row) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < dim; d += VL)
            store_up_to(out + i * row + d, load_up_to(x + i * x_row + d, dim - d), dim - d);
}

}  // namespace mg
