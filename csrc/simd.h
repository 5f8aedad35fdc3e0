// Vectors of one width per instruction-set level, by the compiler's vector types: arithmetic and
// comparisons are the plain operators, and only what those lack (fused multiply-add, conversion to
// half types) uses intrinsics. A lane's result never depends on its neighbours, so tails that go
// through partial loads and stores have the same bits as the main loop.
//
// Contraction is off for the whole build (-ffp-contract=off): a fused multiply-add happens where
// fma() is written and nowhere else.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "array.h"

#if defined(MG_AVX512) || defined(MG_AVX2)
#include <immintrin.h>
#endif

namespace mg {

#if defined(MG_AVX512)
constexpr int kVectorBytes = 64;
#elif defined(MG_AVX2)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float vf __attribute__((vector_size(kVectorBytes)));    // float32 lanes
typedef int32_t vi __attribute__((vector_size(kVectorBytes)));  // int32 lanes; comparisons: 0 or -1
typedef uint32_t vu __attribute__((vector_size(kVectorBytes)));
constexpr int VL = kVectorBytes / 4;  // lanes

#define MG_INLINE inline __attribute__((always_inline))

// The same unaligned, for loads and stores.
typedef float vf_mem __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));

MG_INLINE vf broadcast(float value) {
#if defined(MG_AVX512)
    return (vf)_mm512_set1_ps(value);
#elif defined(MG_AVX2)
    return (vf)_mm256_set1_ps(value);
#else
    return vf{value, value, value, value};
#endif
}

// A constant in the type an expression computes in: vectors, or scalars of double and int64.
template <class V>
MG_INLINE V splat(double value) {
    return static_cast<V>(value);
}
template <>
MG_INLINE vf splat<vf>(double value) {
    return broadcast(static_cast<float>(value));
}

MG_INLINE vf fma(vf a, vf b, vf c) {
#if defined(MG_AVX512)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(MG_AVX2)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}
MG_INLINE double fma(double a, double b, double c) { return a * b + c; }

MG_INLINE vf select(vi condition, vf a, vf b) { return condition ? a : b; }
MG_INLINE float select(bool condition, float a, float b) { return condition ? a : b; }
MG_INLINE double select(bool condition, double a, double b) { return condition ? a : b; }
MG_INLINE int64_t select(bool condition, int64_t a, int64_t b) { return condition ? a : b; }

// NaN in either operand gives NaN (NumPy's maximum and minimum).
template <class V>
MG_INLINE V maximum(V a, V b) {
    return select((a > b) | (a != a), a, b);
}
template <class V>
MG_INLINE V minimum(V a, V b) {
    return select((a < b) | (a != a), a, b);
}

// The larger and the smaller one, in one instruction; b where either is NaN.
MG_INLINE vf larger(vf a, vf b) {
#if defined(MG_AVX512)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(MG_AVX2)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return select(a > b, a, b);
#endif
}
MG_INLINE vf smaller(vf a, vf b) {
#if defined(MG_AVX512)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(MG_AVX2)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return select(a < b, a, b);
#endif
}

// x limited from one side; NaN becomes the limit.
MG_INLINE vf at_least(vf x, float low) { return larger(x, broadcast(low)); }
MG_INLINE vf at_most(vf x, float high) { return smaller(x, broadcast(high)); }

// max(x, 0); NaN stays NaN.
MG_INLINE vf positive_part(vf x) { return larger(vf{}, x); }

MG_INLINE vf sqrt(vf x) {
#if defined(MG_AVX512)
    return (vf)_mm512_sqrt_ps((__m512)x);
#elif defined(MG_AVX2)
    return (vf)_mm256_sqrt_ps((__m256)x);
#else
    vf r;
    for (int i = 0; i < VL; i++) r[i] = std::sqrt(x[i]);
    return r;
#endif
}
MG_INLINE double sqrt(double x) { return std::sqrt(x); }

MG_INLINE vi as_int(vf x) { return (vi)x; }
MG_INLINE vf as_float(vi x) { return (vf)x; }
MG_INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }
MG_INLINE vi to_int(vf x) { return __builtin_convertvector(x, vi); }  // truncates

MG_INLINE vf abs(vf x) { return as_float(as_int(x) & 0x7fffffff); }
MG_INLINE double abs(double x) { return std::fabs(x); }
MG_INLINE int64_t abs(int64_t x) { return x < 0 ? -x : x; }

#if defined(MG_AVX512)
#if !defined(MG_TARGET)  // the models of instructions (tests/isa_model) need none
#define MG_TARGET(features) __attribute__((target(features)))
#endif

// Whether the processor has AVX512-BF16: beside the level, for what gives the same bits without it,
// and attention of bfloat16 (attention_pairs.h).
inline const bool kHasDot = __builtin_cpu_supports("avx512bf16") != 0;
MG_INLINE bool has_dot() { return kHasDot; }
#endif

// ---- half types, one value ----

MG_INLINE float to_float(bf16 x) {
    uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

MG_INLINE bf16 to_bf16(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
    bits += 0x7fff + ((bits >> 16) & 1);  // round to nearest, ties to even
    return {static_cast<uint16_t>(bits >> 16)};
}

MG_INLINE float to_float(f16 x) {
#if defined(MG_AVX512) || defined(MG_AVX2)
    return _cvtsh_ss(x.bits);
#else
    uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu, bits;
    if (magnitude >= 0x7c00) {  // infinity or NaN
        bits = sign | 0x7f800000 | (magnitude << 13);
    } else {
        float scaled;  // exponent moved by multiplication, which also handles denormals
        uint32_t shifted = magnitude << 13;
        std::memcpy(&scaled, &shifted, 4);
        if (magnitude < 0x0400) {
            scaled = static_cast<float>(magnitude) * 5.9604644775390625e-08f;  // 2^-24
        } else {
            shifted += (127 - 15) << 23;
            std::memcpy(&scaled, &shifted, 4);
        }
        std::memcpy(&bits, &scaled, 4);
        bits |= sign;
    }
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
#endif
}

MG_INLINE f16 to_f16(float f) {
#if defined(MG_AVX512) || defined(MG_AVX2)
    return {static_cast<uint16_t>(_cvtss_sh(f, 0))};
#else
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff, half;
    if (magnitude > 0x7f800000) {
        half = 0x7e00;
    } else if (magnitude >= 0x477ff000) {  // 65520 and above round to infinity
        half = 0x7c00;
    } else if (magnitude < 0x38800000) {  // below 2^-14: denormal, by integer rounding
        float a;
        std::memcpy(&a, &magnitude, 4);
        half = static_cast<uint32_t>(std::nearbyint(a * 16777216.0f));  // 2^24
    } else {
        half = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    }
    return {static_cast<uint16_t>(sign | half)};
#endif
}

// ---- loads and stores; VL values, or the first n of a vector (the rest zero) ----

MG_INLINE vf load(const float* p) { return (vf)(*reinterpret_cast<const vf_mem*>(p)); }
MG_INLINE void store(float* p, vf v) { *reinterpret_cast<vf_mem*>(p) = (vf_mem)v; }

MG_INLINE vf load(const bf16* p) {
#if defined(MG_AVX512)
    __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
#elif defined(MG_AVX2)
    __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
#else
    vf r;
    for (int i = 0; i < VL; i++) r[i] = to_float(p[i]);
    return r;
#endif
}

// Every lane rounded to bfloat16, whose bits are the lower half.
MG_INLINE vu bf16_bits(vf v) {
    vu bits = (vu)v;
    vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vu nan = (bits >> 16) | 0x40;
    return (vi)(v != v) ? nan : rounded;
}

#if defined(MG_AVX512)
// Of results, which are no denormals where those are flushed.
MG_INLINE __m256i to_bf16(vf v) {
#if !defined(MG_ISA_MODEL)
    // One instruction, which takes denormals for zero. In assembler, as the intrinsic would ask for
    // the feature in every function that this is inlined into.
    if (has_dot()) {
        __m256i rounded;
        asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"((__m512)v));
        return rounded;
    }
#endif
    return _mm512_cvtepi32_epi16((__m512i)bf16_bits(v));
}
#endif

MG_INLINE void store(bf16* p, vf v) {
#if defined(MG_AVX512)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(v));
#elif defined(MG_AVX2)
    __m256i bits = (__m256i)bf16_bits(v);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
#else
    for (int i = 0; i < VL; i++) p[i] = to_bf16(v[i]);
#endif
}

MG_INLINE vf load(const f16* p) {
#if defined(MG_AVX512)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(MG_AVX2)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    vf r;
    for (int i = 0; i < VL; i++) r[i] = to_float(p[i]);
    return r;
#endif
}

MG_INLINE void store(f16* p, vf v) {
#if defined(MG_AVX512)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, 0));
#elif defined(MG_AVX2)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, 0));
#else
    for (int i = 0; i < VL; i++) p[i] = to_f16(v[i]);
#endif
}

// Of values that need not be results: denormals keep their bits.
MG_INLINE void store_given(bf16* p, vf v) {
#if defined(MG_AVX512)
    __m256i bits = _mm512_cvtepi32_epi16((__m512i)bf16_bits(v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
#else
    store(p, v);
#endif
}
MG_INLINE void store_given(f16* p, vf v) { store(p, v); }

// Stores to aligned memory past the caches, which need not fetch the lines that they fill; other
// threads see them after `streams_done`.
constexpr bool kStreams = kVectorBytes >= 32;
constexpr int64_t kStreamedBytes = int64_t{1} << 24;  // results that would not stay in the caches
MG_INLINE void stream(float* p, vf v) {
#if defined(MG_AVX512)
    _mm512_stream_ps(p, (__m512)v);
#elif defined(MG_AVX2)
    _mm256_stream_ps(p, (__m256)v);
#else
    store(p, v);
#endif
}
MG_INLINE void stream(bf16* p, vf v) {
#if defined(MG_AVX512)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bf16(v));
#else
    store(p, v);
#endif
}
MG_INLINE void stream(f16* p, vf v) { store(p, v); }
MG_INLINE void streams_done() {
#if defined(MG_AVX512) || defined(MG_AVX2)
    _mm_sfence();
#endif
}

#if defined(MG_AVX2)
// The first n lanes all ones, read from the middle of this table.
alignas(32) inline constexpr int32_t kLaneMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
MG_INLINE __m256i lane_mask(int64_t n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneMask + 8 - n));
}
#endif

template <class T>
MG_INLINE vf load(const T* p, int64_t n) {
    T lanes[VL] = {};
    std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(T));
    return load(lanes);
}

MG_INLINE vf load(const float* p, int64_t n) {
#if defined(MG_AVX512)
    return (vf)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#elif defined(MG_AVX2)
    return (vf)_mm256_maskload_ps(p, lane_mask(n));
#else
    float lanes[VL] = {};
    for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
    return load(lanes);
#endif
}

MG_INLINE void store(float* p, vf v, int64_t n) {
#if defined(MG_AVX512)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#elif defined(MG_AVX2)
    _mm256_maskstore_ps(p, lane_mask(n), (__m256)v);
#else
    for (int64_t i = 0; i < n; i++) p[i] = v[i];
#endif
}

template <class T>
MG_INLINE void store(T* p, vf v, int64_t n) {
    T lanes[VL];
    store(lanes, v);
    std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(T));
}

// Lanes 0 .. n-1 of a, the others of b.
MG_INLINE vf first_of(int64_t n, vf a, vf b) {
    vi lane;
    for (int i = 0; i < VL; i++) lane[i] = i;
    return select(lane < static_cast<int32_t>(n), a, b);
}

// Lanes 0 .. n-1 keep v, the others become `fill`.
MG_INLINE vf keep_first(vf v, int64_t n, float fill) { return first_of(n, v, broadcast(fill)); }

// ---- reductions over the lanes, in a fixed order (halves, then halves of those) ----

#if defined(MG_AVX512) || defined(MG_AVX2)
typedef float vf4 __attribute__((vector_size(16)));

template <class Join>
MG_INLINE float fold_lanes(vf v, Join join) {
#if defined(MG_AVX512)
    typedef float vf8 __attribute__((vector_size(32)));
    vf8 h = join((vf8)_mm512_castps512_ps256((__m512)v), (vf8)_mm512_extractf32x8_ps((__m512)v, 1));
    __m256 wide = (__m256)h;
#else
    __m256 wide = (__m256)v;
#endif
    vf4 q = join((vf4)_mm256_castps256_ps128(wide), (vf4)_mm256_extractf128_ps(wide, 1));
    q = join(q, (vf4)_mm_movehl_ps((__m128)q, (__m128)q));
    return join(q, (vf4)_mm_movehdup_ps((__m128)q))[0];
}
#else
template <class Join>
MG_INLINE float fold_lanes(vf v, Join join) {
    float a[VL];
    store(a, v);
    for (int width = VL / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) a[i] = join(a[i], a[i + width]);
    return a[0];
}
#endif

MG_INLINE float sum_lanes(vf v) {
    return fold_lanes(v, [](auto a, auto b) { return a + b; });
}
MG_INLINE float max_lanes(vf v) {
    return fold_lanes(v, [](auto a, auto b) { return (a > b) | (a != a) ? a : b; });
}

}  // namespace mg
