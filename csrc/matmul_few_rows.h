// The matrix product with few rows of A, as in decoding: its time is that of reading B, from memory
// once, where it lies, in the order in which it lies there.
//
// Columns of B that are contiguous (a weight's rows) are many short streams, which the processor
// does not foresee: while one panel of columns is in use, the next one is asked for line by line.
#pragma once

#include "matmul_kernel.h"

namespace mg {

constexpr int64_t kFewRows = 4 * kMR;      // up to here B is not packed as a whole
constexpr int64_t kFewRowsTask = 1 << 18;  // multiply-adds (some 5 us), of 16 rows where m is less

// Blocks of columns in a task at least: what one asks for is the next one's, which should be of the
// same thread.
constexpr int64_t kFewRowsAhead = 16;

// Memory to be asked for in order, a line at a time.
class Ahead {
  public:
    static constexpr int64_t kLine = 64;

    // The panel after the one at column j, where that lies right behind it.
    Ahead(const Product& p, int64_t j, int64_t width) {
        bool behind = p.b.row == 1 && p.b.col == p.k && j + width < p.n;
        if (behind) at_ = p.b.at(0, j + width).p;
    }
    MG_INLINE void lines(int64_t n) {
        if (!at_) return;
        // Into the second cache: a panel may be larger than the first.
        for (int64_t i = 0; i < n; i++, at_ += kLine) __builtin_prefetch(at_, 0, 2);
    }

  private:
    const char* at_ = nullptr;
};

// The rows in groups of about one size: body(first row, rows, its part of `n` things to do).
constexpr int kGroup = 6;  // with 8 columns, or 2 columns and 12 sums, what 16 registers hold
template <class Body>
void for_row_groups(int64_t m, int64_t n, Body&& body) {
    int64_t groups = (m + kGroup - 1) / kGroup;
    for (int64_t g = 0; g < groups; g++) {
        int64_t i = g * m / groups, part = (g + 1) * n / groups - g * n / groups;
        body(i, (g + 1) * m / groups - i, part);
    }
}

// Calls body with the number of rows as a constant.
template <class Body>
MG_INLINE void with_rows(int64_t rows, Body&& body) {
    switch (rows) {
        case 1:
            return body(std::integral_constant<int, 1>{});
        case 2:
            return body(std::integral_constant<int, 2>{});
        case 3:
            return body(std::integral_constant<int, 3>{});
        case 4:
            return body(std::integral_constant<int, 4>{});
        case 5:
            return body(std::integral_constant<int, 5>{});
        default:
            return body(std::integral_constant<int, kGroup>{});
    }
}

// ---- up to kGroup rows, contiguous columns of float32: B goes through registers alone ----

#if defined(MG_AVX512) || defined(MG_AVX2)

constexpr int64_t kColumns = 8;

// The columns [j, j + 8) of C for one K block, from A's rows in place.
template <int kRows>
void eight_columns(const Product& p, int64_t j, int64_t k0, int64_t kc, Ahead& ahead) {
    const float *a = p.a.at(0, k0).floats(), *b = p.b.at(k0, j).floats();
    int64_t a_row = p.a.row, b_col = p.b.col, k = 0;
    __m256 sum[kRows], column[8];
    for (int r = 0; r < kRows; r++) sum[r] = _mm256_setzero_ps();
    auto add = [&](int64_t at, __m256 x) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++)
            sum[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(a + r * a_row + at), x, sum[r]);
    };
    for (; k + 8 <= kc; k += 8) {
        ahead.lines(8 * kColumns * 4 / Ahead::kLine);
        transposed_8x8(b + k, b_col, column);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) add(k + i, column[i]);
    }
    for (; k < kc; k++) {
        float x[kColumns];
        for (int i = 0; i < kColumns; i++) x[i] = b[i * b_col + k];
        add(k, _mm256_loadu_ps(x));
    }
    Store s = p.store_at(0, j, k0);
    for (int r = 0; r < kRows; r++) {
        float* to = s.c + r * s.row;
        if (s.add) sum[r] = _mm256_add_ps(_mm256_loadu_ps(to), sum[r]);
        if (s.bias) sum[r] = _mm256_add_ps(sum[r], _mm256_loadu_ps(s.bias));
        _mm256_storeu_ps(to, sum[r]);
    }
}

inline bool fits_registers(const Product& p) {
    return p.m <= kGroup && p.n % kColumns == 0 && p.b.row == 1 && p.b.dtype == DType::f32 &&
           p.has_float_rows();
}

inline void few_rows_in_registers(const Product& p) {
    int64_t per_task = std::max<int64_t>(1, kFewRowsTask / (p.k * kColumns * 16));
    parallel_chunks(p.n / kColumns, per_task, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin * kColumns; j < end * kColumns; j += kColumns) {
            Ahead ahead(p, j, kColumns);
            for (int64_t k0 = 0; k0 < p.k; k0 += kKC)
                with_rows(p.m, [&](auto rows) {
                    eight_columns<rows.value>(p, j, k0, std::min(kKC, p.k - k0), ahead);
                });
        }
    });
}

#else

inline bool fits_registers(const Product&) { return false; }
inline void few_rows_in_registers(const Product&) {}

#endif

// ---- any: B is packed a piece at a time, in the first cache, and the piece used by all rows ----

constexpr int64_t kPiece = 64;  // k: 4 KB of a panel on AVX2

// The sums of kRows rows by a panel, (kRows, kVectors * VL), go on over kc k; meanwhile n_lines are
// asked for.
template <int kRows, int kVectors, bool kPacked>
__attribute__((noinline)) void add_piece(int64_t kc, const float* a, int64_t a_row, const float* b,
                                         float* sums, Ahead& ahead, int64_t n_lines) {
    constexpr int64_t width = kVectors * VL;
    vf sum[kRows][kVectors];
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) sum[r][v] = load(sums + r * width + v * VL);
    auto add = [&](int64_t k) {
        vf column[kVectors];
        for (int v = 0; v < kVectors; v++) column[v] = load(b + k * width + v * VL);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++) {
            vf x = broadcast(kPacked ? a[k * kFewRows + r] : a[r * a_row + k]);
            for (int v = 0; v < kVectors; v++) sum[r][v] = fma(x, column[v], sum[r][v]);
        }
    };
    // Steps as one, so that the addresses of many rows are made once for all of them.
    constexpr int64_t kStep = 8;
    int64_t lines = (n_lines * kStep + kc - 1) / kc, k = 0;
    for (; k + kStep <= kc; k += kStep) {
        ahead.lines(lines);
#pragma GCC unroll 8
        for (int64_t step = 0; step < kStep; step++) add(k + step);
    }
    for (; k < kc; k++) add(k);
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) store(sums + r * width + v * VL, sum[r][v]);
}

// The columns [j, j + kNR) of C; a_packed, A as (k, kFewRows), is null where A is read in place.
template <class T>
void panel_by_pieces(const Product& p, const float* a_packed, int64_t j) {
    alignas(64) float piece[kPiece * kNR];
    alignas(64) float sums[kFewRows * kNR];
    constexpr int64_t n_lines = kPiece * kNR * static_cast<int64_t>(sizeof(T)) / Ahead::kLine;
    int64_t cols = std::min<int64_t>(kNR, p.n - j);
    Ahead ahead(p, j, kNR);
    for (int64_t k0 = 0; k0 < p.k; k0 += kKC) {
        std::fill_n(sums, p.m * kNR, 0.0f);
        for (int64_t k = k0, end = std::min(p.k, k0 + kKC); k < end; k += kPiece) {
            int64_t kc = std::min(kPiece, end - k);
            Matrix from = p.b_panel(k, j);
            pack_panel<kNR>(reinterpret_cast<const T*>(from.p), from.row, from.col, cols, kc,
                            piece);
            for_row_groups(p.m, n_lines, [&](int64_t i, int64_t n_rows, int64_t lines) {
                float* to = sums + i * kNR;
                with_rows(n_rows, [&](auto rows) {
                    constexpr int n = rows.value;
                    if (a_packed) {
                        const float* a = a_packed + k * kFewRows + i;
                        add_piece<n, 2, true>(kc, a, 0, piece, to, ahead, lines);
                    } else {
                        const float* a = p.a.at(i, k).floats();
                        add_piece<n, 2, false>(kc, a, p.a.row, piece, to, ahead, lines);
                    }
                });
            });
        }
        Store s = p.store_at(0, j, k0);
        for (int64_t i = 0; i < p.m; i++)
            for (int64_t v = 0; v < kNR; v += VL)
                store_block(s, i, v, load(sums + i * kNR + v), cols - v);
    }
}

inline void few_rows_by_pieces(const Product& p) {
    int64_t work = p.k * kNR * std::max<int64_t>(p.m, 16);
    Scratch<float> a_packed(p.has_float_rows() ? 1 : p.k * kFewRows);
    if (!p.has_float_rows()) pack_panel<kFewRows>(p.a, p.m, p.k, a_packed.get());
    for_float_dtype("matmul", p.b.dtype, [&](auto type) {
        using T = decltype(type);
        if constexpr (!std::is_same_v<T, double>)
            parallel_chunks((p.n + kNR - 1) / kNR, kFewRowsTask / work,
                            [&](int64_t j0, int64_t j1) {
                                for (int64_t j = j0; j < j1; j++)
                                    panel_by_pieces<T>(
                                        p, p.has_float_rows() ? nullptr : a_packed.get(), j * kNR);
                            });
    });
}

// ---- up to kNR rows, contiguous columns of float32: Cᵀ = Bᵀ Aᵀ, so that B is not packed ----

// The columns of B are rows of a block, read where they lie; the rows of A its vectors, which gains
// where they fill them.
inline bool fits_exchanged(const Product& p) {
    int64_t lanes = (p.m + VL - 1) / VL * VL;
    return p.m <= kNR && 5 * p.m >= 4 * lanes && p.n >= kMR && p.b.row == 1 &&
           p.b.dtype == DType::f32 && !rows_collide(p.b.col);
}

constexpr int kTurned = (kMR + 7) / 8 * 8;

// out (width, kTurned) = block (kTurned, width), transposed.
template <int width>
MG_INLINE void turn_block(const float* block, float* out) {
#if defined(MG_AVX512) || defined(MG_AVX2)
    for (int r = 0; r < kTurned; r += 8)
        for (int i = 0; i < width; i += 8)
            transpose_8x8(block + r * width + i, width, out + i * kTurned + r, kTurned);
#else
    for (int i = 0; i < width; i++)
        for (int r = 0; r < kTurned; r++) out[i * kTurned + r] = block[r * width + i];
#endif
}

// The columns [j, j + kMR) of C, of which those before `first` are another block's; a_packed is A
// as (k, kVectors * VL).
template <int kVectors>
void exchanged_block(const Product& p, const float* a_packed, int64_t j, int64_t first) {
    constexpr int64_t width = kVectors * VL;
    alignas(64) float block[kTurned * width] = {};  // Cᵀ
    alignas(64) float sums[kTurned * width];        // of a K block, then C
    if (p.add)
        for (int64_t i = 0; i < p.m; i++)
            for (int64_t r = first - j; r < kMR; r++)
                block[r * width + i] = p.c[i * p.c_row + j + r];
    Ahead ahead(p, j, kMR);
    for (int64_t k0 = 0; k0 < p.k; k0 += kKC) {
        int64_t kc = std::min(kKC, p.k - k0), n_lines = kMR * kc * 4 / Ahead::kLine;
        bool more = p.add || k0 > 0;
        float* to = more ? sums : block;
        if (more) std::fill_n(sums, kMR * width, 0.0f);
        add_piece<kMR, kVectors, false>(kc, p.b.at(k0, j).floats(), p.b.col, a_packed + k0 * width,
                                        to, ahead, n_lines);
        for (int64_t i = 0; more && i < kMR * width; i += VL)
            store(block + i, load(block + i) + load(sums + i));
    }
    turn_block<width>(block, sums);
    static_assert(kMR <= 2 * VL);
    for (int64_t v = first - j; v < kMR; v += VL) {
        int64_t n = std::min<int64_t>(VL, kMR - v);
        vf bias = p.bias ? load(p.bias + j + v, n) : vf{};
        for (int64_t i = 0; i < p.m; i++) {
            vf value = load(sums + i * kTurned + v, n);
            store(p.c + i * p.c_row + j + v, p.bias ? value + bias : value, n);
        }
    }
}

template <int kVectors>
void few_rows_exchanged(const Product& p) {
    constexpr int width = kVectors * VL;
    // An even number of tasks as nearly of one size as can be, so that two threads end together.
    int64_t blocks = (p.n + kMR - 1) / kMR;
    int64_t per_task = std::max(kFewRowsAhead, kFewRowsTask / (p.k * kMR * 16));
    int64_t tasks = blocks <= per_task ? 1 : (blocks + 2 * per_task - 1) / (2 * per_task) * 2;
    parallel_for(tasks, [&](int64_t task) {
        int64_t begin = task * blocks / tasks;
        // By every task for itself: from another core it would come a line at a time.
        Scratch<float> a_packed(p.k * width);
        pack_panel<width>(p.a, p.m, p.k, a_packed.get());
        Ahead(p, (begin - 1) * kMR, kMR).lines(kMR * p.k * 4 / Ahead::kLine);  // its first block
        for (int64_t b = begin; b < (task + 1) * blocks / tasks; b++)
            exchanged_block<kVectors>(p, a_packed.get(), std::min(b * kMR, p.n - kMR), b * kMR);
    });
}

inline void few_rows(const Product& p) {
    if (fits_registers(p)) return few_rows_in_registers(p);
    if (!fits_exchanged(p)) return few_rows_by_pieces(p);
    p.m > VL ? few_rows_exchanged<2>(p) : few_rows_exchanged<1>(p);
}

}  // namespace mg
