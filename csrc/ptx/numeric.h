// Number formats: conversions between their bits and float or double, flushing, directed rounding.
// Written in integers, so that they vectorise on every level and NaNs are the canonical ones.
#pragma once

#include <cfenv>
#include <cmath>
#include <cstring>

#include "program.h"

namespace ptx {

// Loops over lanes vectorise only when all of it is inlined.
#define PTX_INLINE inline __attribute__((always_inline))

template <class To, class From>
PTX_INLINE To bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    std::memcpy(&y, &x, sizeof(y));
    return y;
}

PTX_INLINE float half_to_float(u32 h) {
    u32 magnitude = (h & 0x7FFF) << 13;
    u32 scaled = bits<u32>(bits<float>(magnitude) * 0x1p112f);  // also right for denormals
    u32 out = (h & 0x7C00) == 0x7C00 ? magnitude | 0x7F800000u : scaled;
    return bits<float>(out | (h & 0x8000) << 16);
}

// To nearest even; NaN gives 0x7FFF.
PTX_INLINE u32 float_to_half(float f) {
    u32 x = bits<u32>(f);
    u32 sign = x & 0x80000000u;
    x ^= sign;
    u32 normal = (x + 0xC8000FFFu + (x >> 13 & 1)) >> 13;
    u32 tiny = bits<u32>(bits<float>(x) + 0.5f) - 0x3F000000u;
    u32 out = x < 0x38800000u ? tiny : normal;
    out = x >= 0x477FF000u ? 0x7C00u : out;
    if (x > 0x7F800000u) return 0x7FFF;
    return out | sign >> 16;
}

PTX_INLINE float bf16_to_float(u32 h) { return bits<float>(h << 16); }

PTX_INLINE u32 float_to_bf16(float f) {
    u32 x = bits<u32>(f);
    u32 out = (x + 0x7FFFu + (x >> 16 & 1)) >> 16;
    return (x & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FFFu : out;
}

// Zero with its sign in place of a denormal.
PTX_INLINE float flush(float x) {
    u32 u = bits<u32>(x);
    return bits<float>((u & 0x7F800000u) == 0 ? u & 0x80000000u : u);
}

PTX_INLINE u32 flush_half(u32 h) { return (h & 0x7C00) == 0 ? h & 0x8000 : h; }

// x + y rounded to odd in double: what rounds once more to a narrower format is then right.
PTX_INLINE double add_to_odd(double x, double y) {
    double s = x + y;
    double t = s - x;
    double e = (x - (s - t)) + (y - t);
    u64 u = bits<u64>(s);
    bool inexact = e != 0 && std::isfinite(s) && (u & 1) == 0;
    if (!inexact) return s;
    if (s == 0) return e;  // cannot happen for inexact sums; kept exact
    u += ((e > 0) == (s > 0)) ? 1 : u64(-1);
    return bits<double>(u);
}

// A binary format with a sign. `ieee`: the largest exponent holds infinity and NaN (e4m3 has only
// one NaN there, and no infinity).
struct Format {
    int exponent_bits;
    int mantissa_bits;
    bool ieee;
    int bias() const { return (1 << (exponent_bits - 1)) - 1; }
    int width() const { return 1 + exponent_bits + mantissa_bits; }
};
constexpr Format kHalf{5, 10, true}, kBf16{8, 7, true}, kTf32{8, 10, true}, kSingle{8, 23, true},
    kE4m3{4, 3, false}, kE5m2{5, 2, true};

u32 encode(double x, Format f, Round round, bool saturate);
double decode(u32 code, Format f);

// In the direction of `round` (RZ, RM, RP; anything else: nearest even), rounded once.
enum class Arith : u8 { ADD, MUL, FMA, DIV, SQRT };
float rounded(Arith op, float a, float b, float c, Round round);
double rounded(Arith op, double a, double b, double c, Round round);

// Within 2 ulp; exact at integers; denormal results kept.
PTX_INLINE float exp2_approx(float x) {
    float r = x < -150.0f ? -150.0f : x;
    r = r > 128.0f ? 128.0f : r;
    float n = r + 0x1.8p23f;
    i32 k = bits<i32>(n) - bits<i32>(0x1.8p23f);
    float f = r - (n - 0x1.8p23f);
    // Minimax of 2^f over [-1/2, 1/2], relative error below 2^-27 before rounding.
    float p = 1.535336188319500e-4f;
    p = p * f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.0f;
    // Two factors, so that 2^k is normal for every k that a finite result has.
    i32 half = k >> 1;
    float y = p * bits<float>((half + 127) << 23) * bits<float>((k - half + 127) << 23);
    return x != x ? x : y;
}

}  // namespace ptx
