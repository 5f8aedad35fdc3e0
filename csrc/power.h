// a^b of float32, by double: 2^(b log2 a) with a relative error of 1e-11, so that rounding it to
// float32 is all the error there is. A third to a fifth of the time of the library's.
#pragma once

#include <limits>

#include "simd.h"

namespace mg {

// Half the lanes of a vector, as they are and in double.
typedef float vh __attribute__((vector_size(kVectorBytes / 2)));
typedef double vd __attribute__((vector_size(kVectorBytes)));
typedef uint64_t vq __attribute__((vector_size(kVectorBytes)));

template <int n>
MG_INLINE vd series(vd x, const double (&c)[n]) {
    vd sum = vd{} + c[n - 1];
    for (int i = n - 2; i >= 0; i--) sum = sum * x + c[i];
    return sum;
}

// log2 x of a finite x > 0: x = 2^e m with m from sqrt(1/2) to sqrt(2), and log m by the series of
// the inverse hyperbolic tangent of (m - 1) / (m + 1).
MG_INLINE vd log2_positive(vd x) {
    constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcdull, kBias = 1024;
    vq bits = (vq)x, e = (bits - kRootHalf + (kBias << 52)) >> 52;  // of m, biased
    vd m = (vd)(bits - (e << 52) + (kBias << 52));
    vd exponent = (vd)(e | 0x4330000000000000ull) - (4503599627370496.0 + kBias);  // 2^52 + e
    constexpr double c[] = {1.0, 1.0 / 3, 1.0 / 5, 1.0 / 7, 1.0 / 9, 1.0 / 11, 1.0 / 13, 1.0 / 15};
    vd s = (m - 1.0) / (m + 1.0);
    return exponent + s * series(s * s, c) * 2.8853900817779268;  // 2 / ln 2
}

// 2^x for |x| < 1000.
MG_INLINE vd exp2_double(vd x) {
    vd shifted = x + 6755399441055744.0, r = x - (shifted - 6755399441055744.0);  // 1.5 * 2^52
    constexpr double c[] = {1.0,
                            6.931471805599453e-1,
                            2.402265069591007e-1,
                            5.550410866482158e-2,
                            9.618129107628477e-3,
                            1.3333558146428443e-3,
                            1.5403530393381608e-4,
                            1.5252733804059838e-5,
                            1.3215486790144305e-6,
                            1.017808600923969e-7};  // (ln 2)^k / k!
    return (vd)((vq)series(r, c) + ((vq)shifted << 52));
}

inline vf pow(vf a, vf b) {
    constexpr float kInfinite = std::numeric_limits<float>::infinity();
    vi plain = (a > vf{}) & (a < broadcast(kInfinite)) & (abs(b) < broadcast(kInfinite));
    alignas(kVectorBytes) float x[VL], y[VL], out[VL];
    store(x, select(plain, a, broadcast(1)));
    store(y, select(plain, b, vf{}));
    for (int i = 0; i < VL; i += VL / 2) {
        vh base, exponent;
        std::memcpy(&base, x + i, sizeof(vh));
        std::memcpy(&exponent, y + i, sizeof(vh));
        vd power = log2_positive(__builtin_convertvector(base, vd)) *
                   __builtin_convertvector(exponent, vd);
        power = power < -300.0 ? vd{} - 300.0 : power > 300.0 ? vd{} + 300.0 : power;
        vh rounded = __builtin_convertvector(exp2_double(power), vh);
        std::memcpy(out + i, &rounded, sizeof(vh));
    }
    for (int i = 0; i < VL; i++)  // zeros, negative bases, infinities, NaN
        if (!plain[i])
            out[i] =
                static_cast<float>(std::pow(static_cast<double>(a[i]), static_cast<double>(b[i])));
    return load(out);
}
MG_INLINE double pow(double a, double b) { return std::pow(a, b); }

}  // namespace mg
