// The innermost loop of the matrix product, and the packing that feeds it.
//
// A block of C, kMR rows by kNR columns, lives in registers while k runs over one K block:
//   AVX2 6 × 16 (12 of 16 registers), AVX-512 14 × 32 (28 of 32), otherwise 4 × 8 (8 of 16).
// Every element of C is one chain of fused multiply-adds over k, whatever the block it falls into.
#pragma once

#include "parallel.h"
#include "simd.h"

namespace mg {

// kKC is the depth of a K block. A B panel of that depth, 32 or 64 KB, streams from L2: deeper
// blocks add to C less often, which measures 3 to 8% faster than half of it that would stay in L1.
#if defined(MG_AVX512)
constexpr int kMR = 14;
constexpr int64_t kKC = 512;
#elif defined(MG_AVX2)
constexpr int kMR = 6;
constexpr int64_t kKC = 512;
#else
constexpr int kMR = 4;
constexpr int64_t kKC = 256;
#endif
constexpr int kNR = 2 * VL;

// What happens to a finished block: C = [C +] block [+ bias].
struct Store {
    float* c;           // top left of the block
    int64_t row;        // row stride of C
    bool add;           // C already holds earlier K blocks (or is accumulated into)
    const float* bias;  // of the block's first column, or null
};

MG_INLINE void store_block(const Store& s, int64_t r, int64_t first, vf value, int64_t cols) {
    float* at = s.c + r * s.row + first;
    if (cols >= VL) {
        if (s.add) value = load(at) + value;
        if (s.bias) value = value + load(s.bias + first);
        store(at, value);
    } else if (cols > 0) {
        if (s.add) value = load(at, cols) + value;
        if (s.bias) value = value + load(s.bias + first, cols);
        store(at, value, cols);
    }
}

// kRows × (kVectors * VL) of C from a, read at a[r * a_row + k * a_col], and a packed B panel.
// kPacked: a is packed (a_row 1, a_col kMR); else its columns are next to each other (a_col 1).
// A function of its own wherever it is called from: inlined into a larger one its sums may be kept
// in memory, at half the speed.
template <int kRows, int kVectors, bool kPacked>
__attribute__((noinline)) void micro_kernel(int64_t kc, const float* a, int64_t a_row,
                                            const float* b, const Store& s, int64_t rows,
                                            int64_t cols) {
    vf sum[kRows][kVectors];
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) sum[r][v] = vf{};
    const float* at[kRows];
    if (!kPacked)
        // Rows beyond the last read it again; their sums are not stored.
        for (int r = 0; r < kRows; r++) at[r] = a + std::min<int64_t>(r, rows - 1) * a_row;
    // C comes from an outer cache: asked for now, it is there when k has run through.
    for (int r = 0; r < kRows; r++)
        __builtin_prefetch(s.c + std::min<int64_t>(r, rows - 1) * s.row, 1);
#pragma GCC unroll 2
    for (int64_t k = 0; k < kc; k++) {
        vf column[kVectors];
        for (int v = 0; v < kVectors; v++) column[v] = load(b + k * kNR + v * VL);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++) {
            vf x = broadcast(kPacked ? a[k * kMR + r] : at[r][k]);
            for (int v = 0; v < kVectors; v++) sum[r][v] = fma(x, column[v], sum[r][v]);
        }
    }
    if (rows == kRows && cols >= kVectors * VL) {
        for (int r = 0; r < kRows; r++)
            for (int v = 0; v < kVectors; v++) store_block(s, r, v * VL, sum[r][v], VL);
        return;
    }
    for (int r = 0; r < kRows; r++)
        if (r < rows)
            for (int v = 0; v < kVectors; v++) store_block(s, r, v * VL, sum[r][v], cols - v * VL);
}

template <int kVectors, bool kPacked>
MG_INLINE void micro_rows(int64_t kc, const float* a, int64_t a_row, const float* b, const Store& s,
                          int64_t rows, int64_t cols) {
    if (rows == 1) return micro_kernel<1, kVectors, kPacked>(kc, a, a_row, b, s, rows, cols);
    if (rows == 2) return micro_kernel<2, kVectors, kPacked>(kc, a, a_row, b, s, rows, cols);
    if (rows <= 4) return micro_kernel<4, kVectors, kPacked>(kc, a, a_row, b, s, rows, cols);
    if constexpr (kMR > 8)
        if (rows <= 8) return micro_kernel<8, kVectors, kPacked>(kc, a, a_row, b, s, rows, cols);
    if constexpr (kMR > 4) micro_kernel<kMR, kVectors, kPacked>(kc, a, a_row, b, s, rows, cols);
}

// ---- packing ----

// A strided float matrix, element (i, j) at p[i * row + j * col]; converted when it is of a half
// type.
struct Matrix {
    const char* p;
    DType dtype;
    int64_t row, col;

    Matrix at(int64_t i, int64_t j) const {
        return {p + (i * row + j * col) * itemsize(dtype), dtype, row, col};
    }
    const float* floats() const { return reinterpret_cast<const float*>(p); }
};

// Whether kMR rows of float32, this far apart, evict one another from the first cache: a multiple
// of 4 KB apart they share one set, which has 8 ways or more.
constexpr bool rows_collide(int64_t row) { return kMR > 8 && row % 1024 == 0; }

// A product of matrices, C = [C +] A B [+ bias].
struct Product {
    int64_t m, n, k;
    Matrix a, b;  // b(k, j)
    float* c;
    int64_t c_row;
    const float* bias;  // (n,), float32
    bool add;

    // The block of C at (i, j), for the K block that starts at k0.
    Store store_at(int64_t i, int64_t j, int64_t k0) const {
        bool last = k0 + kKC >= k;
        return {c + i * c_row + j, c_row, add || k0 > 0, last && bias ? bias + j : nullptr};
    }
    bool has_float_rows() const { return a.dtype == DType::f32 && a.col == 1; }
    // Whether blocks of kMR rows are read where they lie. A multiple of 4 KB apart, they would
    // share one set of the first cache, and evict one another where it has fewer ways (8).
    bool direct_a() const { return has_float_rows() && !(kMR > 8 && a.row % 1024 == 0); }
    // Column j of B as a row, for packing.
    Matrix b_panel(int64_t k0, int64_t j) const {
        Matrix x = b.at(k0, j);
        return {x.p, x.dtype, b.col, b.row};
    }
};

MG_INLINE float element(const float* p) { return *p; }
MG_INLINE float element(const bf16* p) { return to_float(*p); }
MG_INLINE float element(const f16* p) { return to_float(*p); }

#if defined(MG_AVX512) || defined(MG_AVX2)
// 8 rows of 8 floats as the 8 columns, in registers.
MG_INLINE void transposed_8x8(const float* x, int64_t x_row, __m256 (&column)[8]) {
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(x + i * x_row);
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int h = 0; h < 2; h++) {
        r[4 * h + 0] = _mm256_shuffle_ps(t[4 * h], t[4 * h + 2], 0x44);
        r[4 * h + 1] = _mm256_shuffle_ps(t[4 * h], t[4 * h + 2], 0xee);
        r[4 * h + 2] = _mm256_shuffle_ps(t[4 * h + 1], t[4 * h + 3], 0x44);
        r[4 * h + 3] = _mm256_shuffle_ps(t[4 * h + 1], t[4 * h + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        column[i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x20);
        column[4 + i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x31);
    }
}

// out[j * out_row + i] = x[i * x_row + j], 8 × 8 floats.
inline void transpose_8x8(const float* x, int64_t x_row, float* out, int64_t out_row) {
    __m256 column[8];
    transposed_8x8(x, x_row, column);
    for (int j = 0; j < 8; j++) _mm256_storeu_ps(out + j * out_row, column[j]);
}
#endif

// out[k * width + i] = x(i, k) for i < n (the rest of the width 0), k < kc: rows side by side.
// Serves A panels (x = A, width kMR) and B panels (x = Bᵀ, width kNR).
template <int width, class T>
void pack_panel(const T* x, int64_t row, int64_t col, int64_t n, int64_t kc, float* out) {
    if (n < width) std::fill_n(out, kc * width, 0.0f);
    if (row == 1 && n == width) {
        for (int64_t k = 0; k < kc; k++)
            for (int64_t i = 0; i < width; i++) out[k * width + i] = element(x + k * col + i);
        return;
    }
    if (row == 1) {
        for (int64_t k = 0; k < kc; k++)
            for (int64_t i = 0; i < n; i++) out[k * width + i] = element(x + k * col + i);
        return;
    }
    int64_t i = 0;
#if defined(MG_AVX512) || defined(MG_AVX2)
    if constexpr (std::is_same_v<T, float>) {
        if (col == 1) {
            for (; i + 8 <= n; i += 8) {
                int64_t k = 0;
                for (; k + 8 <= kc; k += 8)
                    transpose_8x8(x + i * row + k, row, out + k * width + i, width);
                for (; k < kc; k++)
                    for (int64_t j = i; j < i + 8; j++) out[k * width + j] = x[j * row + k];
            }
        }
    }
#endif
    for (; i < n; i++)
        for (int64_t k = 0; k < kc; k++) out[k * width + i] = element(x + i * row + k * col);
}

template <int width>
void pack_panel(const Matrix& x, int64_t n, int64_t kc, float* out) {
    for_float_dtype("matmul", x.dtype, [&](auto type) {
        using T = decltype(type);
        if constexpr (!std::is_same_v<T, double>)
            pack_panel<width>(reinterpret_cast<const T*>(x.p), x.row, x.col, n, kc, out);
    });
}

// n rows of x as panels of `width`, each `panel_size` floats after the last. Where a column of x is
// contiguous, one column goes to all panels before the next: panel by panel, each would read a few
// bytes of kc distant lines. Columns lie too far apart for the processor to foresee them. Whole
// vectors are moved; what that writes too much, the next column's turn overwrites, or lies between
// panels.
template <int width>
void pack_panels(const Matrix& x, int64_t n, int64_t kc, float* out, int64_t panel_size) {
    constexpr int64_t kMoved = (width + VL - 1) / VL * VL, kAhead = 8;  // floats, columns
    int64_t whole = 0;
    if (x.row == 1 && x.dtype == DType::f32 && n >= kMoved) {
        whole = (n - kMoved) / width + 1;  // where whole vectors are there to be read
        for (int64_t k = 0; k < kc; k++) {
            const float* from = x.floats() + k * x.col;
            for (int64_t i = 0; i < n; i += 64 / sizeof(float))
                __builtin_prefetch(from + kAhead * x.col + i);
            for (int64_t p = 0; p < whole; p++)
                for (int64_t v = 0; v < kMoved; v += VL)
                    store(out + p * panel_size + k * width + v, load(from + p * width + v));
        }
    }
    for (int64_t p = whole; p * width < n; p++)
        pack_panel<width>(x.at(p * width, 0), std::min<int64_t>(width, n - p * width), kc,
                          out + p * panel_size);
}

}  // namespace mg
