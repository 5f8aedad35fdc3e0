// The instructions of AVX512-BF16, which some processors of the AVX-512 level have: functions that
// use them carry MG_TARGET("avx512bf16") and are called where has_dot() says so (simd.h).
#pragma once

#include "simd.h"

#if defined(MG_AVX512)

namespace mg {

// Lanes are pairs of bfloat16: sum + a b, the odd product of a pair added first, then the even one.
MG_TARGET("avx512bf16") MG_INLINE vf dot(vf a, vf b, vf sum) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// 32 values rounded to bfloat16: those of `first`, then those of `second`.
MG_TARGET("avx512bf16") MG_INLINE vf rounded(vf first, vf second) {
    return (vf)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

// The same as pairs of lanes (first[i], second[i]).
MG_TARGET("avx512bf16") MG_INLINE vf rounded_pairs(vf first, vf second) {
    typedef uint16_t order_type __attribute__((vector_size(64)));
    order_type order;
    for (int i = 0; i < 32; i++) order[i] = static_cast<uint16_t>(i / 2 + i % 2 * VL);
    return (vf)_mm512_permutexvar_epi16((__m512i)order, (__m512i)rounded(first, second));
}

}  // namespace mg

#endif
