// The AVX-512 and AMX intrinsics that csrc/ uses, written for AVX2, so that the kernels of those
// levels can be tested on a processor without them. `MINIGRAD_LEVELS=models` builds with this
// folder in front of the compiler's own <immintrin.h>; only the tests load what comes out.
//
// A model computes what the instruction's description says, to the bit: Intel 64 and IA-32
// Architectures Software Developer's Manual, volume 2. It says nothing about speed.
#pragma once

#include_next <immintrin.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace isa_model {

inline __m256 half(__m512 x, int which) {
    __m256 out;
    std::memcpy(&out, reinterpret_cast<const char*>(&x) + 32 * which, 32);
    return out;
}

template <class Wide, class Half>
inline Wide join(Half low, Half high) {
    Wide out;
    std::memcpy(&out, &low, 32);
    std::memcpy(reinterpret_cast<char*>(&out) + 32, &high, 32);
    return out;
}

// ---- AVX-512 ----

inline __m512 set1_ps(float x) { return join<__m512>(_mm256_set1_ps(x), _mm256_set1_ps(x)); }

inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
    return join<__m512>(_mm256_fmadd_ps(half(a, 0), half(b, 0), half(c, 0)),
                        _mm256_fmadd_ps(half(a, 1), half(b, 1), half(c, 1)));
}
inline __m512 max_ps(__m512 a, __m512 b) {
    return join<__m512>(_mm256_max_ps(half(a, 0), half(b, 0)),
                        _mm256_max_ps(half(a, 1), half(b, 1)));
}
inline __m512 min_ps(__m512 a, __m512 b) {
    return join<__m512>(_mm256_min_ps(half(a, 0), half(b, 0)),
                        _mm256_min_ps(half(a, 1), half(b, 1)));
}
inline __m512 sqrt_ps(__m512 x) {
    return join<__m512>(_mm256_sqrt_ps(half(x, 0)), _mm256_sqrt_ps(half(x, 1)));
}

inline void stream_ps(float* p, __m512 x) {
    if (reinterpret_cast<uintptr_t>(p) % 64) __builtin_trap();  // as the instruction faults
    _mm256_stream_ps(p, half(x, 0));
    _mm256_stream_ps(p + 8, half(x, 1));
}

inline __m512i cvtepu16_epi32(__m256i x) {
    return join<__m512i>(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)),
                         _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)));
}
inline __m512i slli_epi32(__m512i x, unsigned count) {
    uint32_t lanes[16];
    std::memcpy(lanes, &x, 64);
    for (uint32_t& lane : lanes) lane <<= count;
    std::memcpy(&x, lanes, 64);
    return x;
}
inline __m256i cvtepi32_epi16(__m512i x) {  // truncates
    uint32_t lanes[16];
    uint16_t low[16];
    std::memcpy(lanes, &x, 64);
    for (int i = 0; i < 16; i++) low[i] = static_cast<uint16_t>(lanes[i]);
    __m256i out;
    std::memcpy(&out, low, 32);
    return out;
}
inline __m512 cvtph_ps(__m256i x) {
    return join<__m512>(_mm256_cvtph_ps(_mm256_castsi256_si128(x)),
                        _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}
inline __m256i cvtps_ph(__m512 x) {  // rounds to nearest even
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm256_cvtps_ph(half(x, 0), 0)),
                                   _mm256_cvtps_ph(half(x, 1), 0), 1);
}

// Lanes that the mask leaves out are not touched in memory.
inline __m512 maskz_loadu_ps(__mmask16 mask, const float* p) {
    float lanes[16] = {};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) lanes[i] = p[i];
    __m512 out;
    std::memcpy(&out, lanes, 64);
    return out;
}
inline void mask_storeu_ps(float* p, __mmask16 mask, __m512 x) {
    float lanes[16];
    std::memcpy(lanes, &x, 64);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) p[i] = lanes[i];
}

// The bfloat16 at place `which` of a pair, as float32.
inline float widened(float pair, int which) {
    uint32_t bits;
    std::memcpy(&bits, &pair, 4);
    bits = which ? bits & 0xffff0000u : bits << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

// VDPBF16PS: two fused multiply-adds a lane, the odd elements of the pairs before the even ones.
// Rounds to nearest even; denormals count as zero, which here the mode that kernels run in sees to
// (csrc/denormals.h).
inline __m512 dpbf16_ps(__m512 c, __m512bh a, __m512bh b) {
    float sums[16], x[16], y[16];
    std::memcpy(sums, &c, 64);
    std::memcpy(x, &a, 64);
    std::memcpy(y, &b, 64);
    for (int which : {1, 0})
        for (int i = 0; i < 16; i++)
            sums[i] = __builtin_fmaf(widened(x[i], which), widened(y[i], which), sums[i]);
    std::memcpy(&c, sums, 64);
    return c;
}

// VCVTNE2PS2BF16: b's lanes in the lower half, a's in the upper one; rounds to nearest even,
// denormals become zero.
inline __m512bh cvtne2ps_pbh(__m512 a, __m512 b) {
    uint32_t lanes[32];
    uint16_t out[32];
    std::memcpy(lanes, &b, 64);
    std::memcpy(lanes + 16, &a, 64);
    for (int i = 0; i < 32; i++) {
        uint32_t x = lanes[i], magnitude = x & 0x7fffffff;
        if (magnitude < 0x00800000) {
            x &= 0x80000000;
        } else if (magnitude > 0x7f800000) {
            x |= 0x00400000;
        } else {
            x += 0x7fff + ((x >> 16) & 1);
        }
        out[i] = static_cast<uint16_t>(x >> 16);
    }
    __m512bh rounded;
    std::memcpy(&rounded, out, 64);
    return rounded;
}
// Lanes of T in the order that is given, of whose numbers the low bits count.
template <class T, class V>
V permuted(__m512i order, V x) {
    constexpr int n = 64 / sizeof(T);
    T index[n], lanes[n], out[n];
    std::memcpy(index, &order, 64);
    std::memcpy(lanes, &x, 64);
    for (int i = 0; i < n; i++) out[i] = lanes[index[i] % n];
    std::memcpy(&x, out, 64);
    return x;
}

// ---- AMX: eight tiles of 16 rows of 64 bytes, by thread ----

struct Tile {
    alignas(64) float rows[16][16];
};
inline thread_local Tile tiles[8];
inline thread_local bool configured = false;

// The kernels configure all tiles whole; anything else has no model.
inline void tile_loadconfig(const void* config) {
    const auto* bytes = static_cast<const uint8_t*>(config);
    uint16_t row_bytes[8];
    std::memcpy(row_bytes, bytes + 16, sizeof(row_bytes));
    bool whole = bytes[0] == 1;
    for (int t = 0; t < 8; t++) whole = whole && row_bytes[t] == 64 && bytes[48 + t] == 16;
    if (!whole) __builtin_trap();
    std::memset(tiles, 0, sizeof(tiles));
    configured = true;
}
inline void tile_release() { configured = false; }

inline Tile& tile(int t) {
    if (!configured) __builtin_trap();  // as the instruction would
    return tiles[t];
}
inline void tile_zero(int t) { std::memset(&tile(t), 0, sizeof(Tile)); }
inline void tile_loadd(int t, const void* base, int64_t stride) {
    for (int r = 0; r < 16; r++)
        std::memcpy(tile(t).rows[r], static_cast<const char*>(base) + r * stride, 64);
}
inline void tile_stored(int t, void* base, int64_t stride) {
    for (int r = 0; r < 16; r++)
        std::memcpy(static_cast<char*>(base) + r * stride, tile(t).rows[r], 64);
}

// TDPBF16PS: for each element, sums of the even and of the odd products, by fused multiply-adds
// over the 16 pairs, then their sum, then the element's. Rounding and denormals as in VDPBF16PS.
inline void tile_dpbf16ps(int to, int a, int b) {
    for (int m = 0; m < 16; m++) {
        float sums[2][16] = {};
        for (int k = 0; k < 16; k++)
            for (int which = 0; which < 2; which++) {
                float x = widened(tile(a).rows[m][k], which);
                for (int n = 0; n < 16; n++)
                    sums[which][n] =
                        __builtin_fmaf(x, widened(tile(b).rows[k][n], which), sums[which][n]);
            }
        for (int n = 0; n < 16; n++) tile(to).rows[m][n] += sums[0][n] + sums[1][n];
    }
}

}  // namespace isa_model

#define _mm512_set1_ps isa_model::set1_ps
#define _mm512_fmadd_ps isa_model::fmadd_ps
#define _mm512_max_ps isa_model::max_ps
#define _mm512_min_ps isa_model::min_ps
#define _mm512_sqrt_ps isa_model::sqrt_ps
#define _mm512_cvtepu16_epi32 isa_model::cvtepu16_epi32
#undef _mm512_slli_epi32
#define _mm512_slli_epi32 isa_model::slli_epi32
#define _mm512_cvtepi32_epi16 isa_model::cvtepi32_epi16
#define _mm512_cvtph_ps isa_model::cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(x, rounding) isa_model::cvtps_ph(x)
#define _mm512_maskz_loadu_ps isa_model::maskz_loadu_ps
#define _mm512_mask_storeu_ps isa_model::mask_storeu_ps
#define _mm512_stream_ps isa_model::stream_ps
#define _mm512_dpbf16_ps isa_model::dpbf16_ps
#define _mm512_cvtne2ps_pbh isa_model::cvtne2ps_pbh
#define _mm512_permutexvar_ps isa_model::permuted<uint32_t>
#define _mm512_permutexvar_epi16 isa_model::permuted<uint16_t>
#define _mm512_castps512_ps256(x) isa_model::half(x, 0)
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(x, which) isa_model::half(x, which)

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig isa_model::tile_loadconfig
#define _tile_release isa_model::tile_release
#define _tile_zero isa_model::tile_zero
#define _tile_loadd isa_model::tile_loadd
#define _tile_stored isa_model::tile_stored
#define _tile_dpbf16ps isa_model::tile_dpbf16ps

// The modelled processor has what its level may use beside it, but for assembler.
#define MG_ISA_MODEL
#define MG_TARGET(features)
#define __builtin_cpu_supports(feature) 1
