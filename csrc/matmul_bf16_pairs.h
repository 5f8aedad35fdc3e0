// bfloat16 values as bits, and rows of them as pairs.
#pragma once

#include "matmul_bf16.h"

namespace mg {

MG_INLINE uint32_t bits_of(float x) { return to_bf16(x).bits; }
MG_INLINE uint32_t bits_of(bf16 x) { return x.bits; }
MG_INLINE vu vector_bits(const float* x) { return bf16_bits(load(x)); }
MG_INLINE vu vector_bits(const bf16* x) { return (vu)load(x) >> 16; }

// n elements of x, `step` apart, as bfloat16.
template <class T>
inline void line(const T* x, int64_t step, int64_t n, bf16* out) {
    int64_t i = 0;
    if (step == 1)
        for (; i + VL <= n; i += VL) store(out + i, load(x + i));
    for (; i < n; i++) out[i].bits = static_cast<uint16_t>(bits_of(x[i * step]));
}

// Pairs (x0[i], x1[i]); x1 may be null, for zeros.
template <class T>
inline void interleave(const T* x0, const T* x1, int64_t n, bf16* out) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vu pairs = vector_bits(x0 + i);
        if (x1) pairs |= vector_bits(x1 + i) << 16;
        std::memcpy(out + 2 * i, &pairs, sizeof(pairs));
    }
    for (int64_t left = n % VL; left > 0; left--, i++) {
        uint32_t pair = bits_of(x0[i]) | (x1 ? bits_of(x1[i]) << 16 : 0);
        std::memcpy(out + 2 * i, &pair, 4);
    }
}

// Calls body with the type of an operand.
template <class Body>
inline void for_operand(DType dtype, Body&& body) {
    if (dtype == DType::f32) return body(float{});
    if (dtype == DType::bf16) return body(bf16{});
    unsupported("matmul", dtype, "float32 and bfloat16 where bfloat16 is multiplied");
}

}  // namespace mg
