// Pieces that mma and wgmma share. Products are exact in float; sums are taken in float, in order
// of k, starting from the accumulator.
#pragma once

#include "lanes.h"

namespace ptx {

typedef float V8 __attribute__((vector_size(32)));

inline V8 multiply_add(V8 a, V8 b, V8 c) {
#if defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

inline V8 splat8(float x) { return V8{x, x, x, x, x, x, x, x}; }

// Eight 16-bit numbers to float.
inline V8 eight_halves(const u8* p) {
#if defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    V8 out;
    for (int i = 0; i < 8; ++i) {
        u16 h;
        std::memcpy(&h, p + 2 * i, 2);
        out[i] = half_to_float(h);
    }
    return out;
#endif
}
inline V8 eight_bf16(const u8* p) {
#if defined(__AVX2__)
    __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
#else
    V8 out;
    for (int i = 0; i < 8; ++i) {
        u16 h;
        std::memcpy(&h, p + 2 * i, 2);
        out[i] = bf16_to_float(h);
    }
    return out;
#endif
}

// Rows become columns, 8 × 8.
inline void transpose8(V8* r) {
#if defined(__AVX2__)
    V8 t[8], s[8];
    for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
        s[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        s[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xEE);
        s[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        s[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm256_permute2f128_ps(s[i], s[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(s[i], s[i + 4], 0x31);
    }
#else
    for (int i = 0; i < 8; ++i) {
        for (int j = i + 1; j < 8; ++j) {
            float x = r[i][j];
            r[i][j] = r[j][i];
            r[j][i] = x;
        }
    }
#endif
}

// Eight columns are kept in the order 0 2 4 6 1 3 5 7: as the accumulator's fragment has them in
// its two registers (lane l holds row l/4, columns 2(l%4) and the next).
constexpr int place_of(int column) { return column / 2 + column % 2 * 4; }

inline V8 place_columns(V8 x) {
    V8 out;
    for (int i = 0; i < 8; ++i) out[place_of(i)] = x[i];
    return out;
}

inline void rows_of_fragment(const float* even, const float* odd, V8* rows) {
    for (int i = 0; i < 8; ++i) {
#if defined(__AVX2__)
        rows[i] = _mm256_loadu2_m128(odd + 4 * i, even + 4 * i);
#else
        for (int j = 0; j < 8; ++j) rows[i][j] = (j < 4 ? even : odd)[4 * i + j % 4];
#endif
    }
}
inline void fragment_of_rows(const V8* rows, float* even, float* odd) {
    for (int i = 0; i < 8; ++i) {
#if defined(__AVX2__)
        _mm256_storeu2_m128(odd + 4 * i, even + 4 * i, rows[i]);
#else
        for (int j = 0; j < 8; ++j) (j < 4 ? even : odd)[4 * i + j % 4] = rows[i][j];
#endif
    }
}

// Eight rows: rows[i] += a[i][0 … depth-1] · b, where a's rows are `stride` floats apart.
inline void multiply_rows(V8* rows, const float* a, int stride, const V8* b, int depth) {
    V8 c0 = rows[0], c1 = rows[1], c2 = rows[2], c3 = rows[3];
    V8 c4 = rows[4], c5 = rows[5], c6 = rows[6], c7 = rows[7];
    for (int k = 0; k < depth; ++k) {
        V8 x = b[k];
        const float* p = a + k;
        c0 = multiply_add(splat8(p[0]), x, c0);
        c1 = multiply_add(splat8(p[stride]), x, c1);
        c2 = multiply_add(splat8(p[2 * stride]), x, c2);
        c3 = multiply_add(splat8(p[3 * stride]), x, c3);
        c4 = multiply_add(splat8(p[4 * stride]), x, c4);
        c5 = multiply_add(splat8(p[5 * stride]), x, c5);
        c6 = multiply_add(splat8(p[6 * stride]), x, c6);
        c7 = multiply_add(splat8(p[7 * stride]), x, c7);
    }
    rows[0] = c0;
    rows[1] = c1;
    rows[2] = c2;
    rows[3] = c3;
    rows[4] = c4;
    rows[5] = c5;
    rows[6] = c6;
    rows[7] = c7;
}

// One element of a matrix operand, from its bytes.
inline float element_of(const u8* p, Type t) {
    switch (t) {
        case Type::F16:
        case Type::BF16: {
            u16 h;
            std::memcpy(&h, p, 2);
            return t == Type::F16 ? half_to_float(h) : bf16_to_float(h);
        }
        case Type::TF32: {
            u32 x;
            std::memcpy(&x, p, 4);
            return bits<float>(x & 0xFFFFE000u);
        }
        case Type::E4M3:
            return float(decode(*p, kE4m3));
        case Type::E5M2:
            return float(decode(*p, kE5m2));
        default:
            return 0;
    }
}

}  // namespace ptx
