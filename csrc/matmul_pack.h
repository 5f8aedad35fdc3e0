// Operands of a matrix product, and their packing into panels that the kernel reads in order.
#pragma once

#include "parallel.h"
#include "simd.h"

namespace mg {

// A strided float matrix, element (i, j) at p[i * row + j * col]; converted when it is of a half
// type.
struct Matrix {
    const char* p;
    DType dtype;
    int64_t row, col;

    Matrix at(int64_t i, int64_t j) const {
        return {p + (i * row + j * col) * itemsize(dtype), dtype, row, col};
    }
    Matrix turned() const { return {p, dtype, col, row}; }
    const float* floats() const { return reinterpret_cast<const float*>(p); }
};

MG_INLINE float element(const float* p) { return *p; }
MG_INLINE float element(const bf16* p) { return to_float(*p); }
MG_INLINE float element(const f16* p) { return to_float(*p); }
MG_INLINE float element(const double* p) { return static_cast<float>(*p); }

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
        if (col == 1 && n >= 8) {
            // The last eight rows overlap those before where n is no multiple.
            for (; i < n; i += 8) {
                int64_t first = std::min(i, n - 8), k = 0;
                for (; k + 8 <= kc; k += 8)
                    transpose_8x8(x + first * row + k, row, out + k * width + first, width);
                for (; k < kc; k++)
                    for (int64_t j = first; j < first + 8; j++) out[k * width + j] = x[j * row + k];
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
