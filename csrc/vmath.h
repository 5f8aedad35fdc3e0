// Elementary functions on vectors of float32, each with a twin for double scalars (from <cmath>),
// so that an expression can be written once for both. No function branches on a lane, so a lane's
// result never depends on its neighbours. Stated errors are the worst seen against float64 over all
// binades (tests/test_accuracy.py); results below the least normal number are flushed to zero by
// the caller's mode.
#pragma once

#include <cmath>
#include <limits>

#include "simd.h"

namespace mg {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// c[0] + c[1] x + … by Horner's rule.
template <int N>
MG_INLINE vf polynomial(vf x, const float (&c)[N]) {
    vf y = broadcast(c[N - 1]);
    for (int i = N - 2; i >= 0; i--) y = fma(y, x, broadcast(c[i]));
    return y;
}

// ---- rounding to integers ----

MG_INLINE vf round(vf x) {  // halves to even
    // Adding and taking away 2^23 leaves the integer part in the rounding mode; larger values are
    // whole.
    vf magic = broadcast(8388608.0f), a = abs(x);
    vf r = (a + magic) - magic;
    r = as_float(as_int(r) | (as_int(x) & INT32_MIN));
    return select(a < magic, r, x);
}
MG_INLINE vf floor(vf x) {
    vf r = round(x);
    return select(r > x, r - broadcast(1.0f), r);
}
MG_INLINE vf ceil(vf x) {
    vf r = round(x);
    vf up = r + broadcast(1.0f);
    up = as_float(as_int(up) | (as_int(x) & INT32_MIN));  // ceil(-0.5) is -0
    return select(r < x, up, r);
}
MG_INLINE double round(double x) { return std::nearbyint(x); }
MG_INLINE double floor(double x) { return std::floor(x); }
MG_INLINE double ceil(double x) { return std::ceil(x); }

// ---- exp ----

// x = n ln2 + r with |r| <= ln2 / 2; ln2 in two parts, the first exact when multiplied by n. Adding
// 1.5 * 2^23 rounds to the integer n, which is then in the low bits of `shifted`, ready to be added
// to an exponent.
struct Reduced {
    vf shifted, r;
    MG_INLINE vi n() const { return as_int(shifted) - 0x4b400000; }
    // y 2^n for y in [1/2, 2), where that is normal.
    MG_INLINE vf scale(vf y) const { return as_float(as_int(y) + (as_int(shifted) << 23)); }
};
MG_INLINE Reduced reduce_ln2(vf x) {
    vf magic = broadcast(12582912.0f), shifted = fma(x, broadcast(1.44269504f), magic);
    vf n = shifted - magic;
    vf r = fma(n, broadcast(-0.693359375f), x);
    r = fma(n, broadcast(2.12194440e-4f), r);
    return {shifted, r};
}
MG_INLINE vf power_of_two(vi n) { return as_float((n + 127) << 23); }  // -126 <= n <= 127

// e^r - 1 on the reduced range, within 0.05 ULP of e^r before rounding. The polynomial's halves are
// summed apart (Estrin): a chain of twelve cycles instead of twenty.
MG_INLINE vf expm1_reduced(vf r) {
    vf s = r * r;
    vf low = fma(broadcast(1.6666520398e-1f), r, broadcast(4.9999993432e-1f));
    vf middle = fma(broadcast(8.3687452796e-3f), r, broadcast(4.1668390800e-2f));
    return fma(fma(fma(broadcast(1.3814539884e-3f), s, middle), s, low), s, r);
}

// e^x within 1.1 ULP; overflows to infinity, flushes to 0 below -87.3, NaN stays NaN.
MG_INLINE vf exp(vf x) {
    Reduced s = reduce_ln2(at_most(at_least(x, -104.0f), 89.0f));
    vf y = expm1_reduced(s.r) + broadcast(1.0f);
    // 2^n in two factors, as n may be 128 or below -126.
    vi n = s.n(), half = n >> 1;
    y = y * power_of_two(half) * power_of_two(n - half);
    return select(x != x, x, y);
}
MG_INLINE double exp(double x) { return std::exp(x); }

// e^x for x <= 0 (or -infinity): the same bits as exp there, with less to do. NaN becomes some
// finite number: callers look for it once a row.
MG_INLINE vf exp_nonpositive(vf x) {
    constexpr float least = -87.33654f;  // e^x is normal down to here
    Reduced s = reduce_ln2(at_least(x, least));
    vf y = expm1_reduced(s.r) + broadcast(1.0f);
    return select(x < broadcast(least), vf{}, s.scale(y));
}

// e^x - 1 within 2 ULP, relative accuracy kept near 0.
MG_INLINE vf expm1(vf x) {
    Reduced s = reduce_ln2(at_most(at_least(x, -40.0f), 80.0f));
    vf scale = power_of_two(s.n());
    vf p = expm1_reduced(s.r);
    vf y = fma(scale, p, scale - broadcast(1.0f));
    y = select(x > broadcast(80.0f), exp(x), y);
    y = select(x == vf{}, x, y);
    return select(x != x, x, y);
}
MG_INLINE double expm1(double x) { return std::expm1(x); }

// ---- log ----

// Natural logarithm within 1.5 ULP; -infinity at 0, NaN below.
MG_INLINE vf log(vf x) {
    vi bits = as_int(x);
    // x = m 2^e with m in [sqrt(1/2), sqrt(2)).
    vi e = ((bits - 0x3f3504f3) >> 23);
    vf m = as_float(bits - (e << 23));
    vf f = m - broadcast(1.0f), z = f * f, n = to_float(e);
    constexpr float c[] = {3.3333331174e-1f,  -2.4999993993e-1f, 2.0000714765e-1f,
                           -1.6668057665e-1f, 1.4249322787e-1f,  -1.2420140846e-1f,
                           1.1676998740e-1f,  -1.1514610310e-1f, 7.0376836292e-2f};
    vf y = polynomial(f, c) * f * z;
    y = fma(n, broadcast(-2.12194440e-4f), y);
    y = fma(z, broadcast(-0.5f), y);
    y = fma(n, broadcast(0.693359375f), f + y);
    y = select(x == broadcast(kInfinity), x, y);
    y = select(x < broadcast(1.17549435e-38f), broadcast(-kInfinity), y);
    y = select(x < vf{}, broadcast(std::numeric_limits<float>::quiet_NaN()), y);
    return select(x != x, x, y);
}
MG_INLINE double log(double x) { return std::log(x); }

// log(1 + x) within 3 ULP.
MG_INLINE vf log1p(vf x) {
    vf u = broadcast(1.0f) + x;
    vf lost = (x - (u - broadcast(1.0f))) / u;  // what the addition rounded away
    vf y = log(u) + select(abs(u) < broadcast(1e30f), lost, vf{});
    y = select(u <= vf{}, log(u), y);
    return select(x == vf{}, x, y);
}
MG_INLINE double log1p(double x) { return std::log1p(x); }

// ---- hyperbolic tangent, logistic function and what is made of them ----

// Within 3 ULP.
MG_INLINE vf tanh(vf x) {
    vf t = expm1(broadcast(-2.0f) * abs(x));
    vf y = -t / (t + broadcast(2.0f));
    return as_float((as_int(y) & INT32_MAX) | (as_int(x) & INT32_MIN));
}
MG_INLINE double tanh(double x) { return std::tanh(x); }

// Within 3 ULP down to the least normal result.
MG_INLINE vf sigmoid(vf x) {
    vf e = exp_nonpositive(-abs(x));
    vf y = select(x < vf{}, e, broadcast(1.0f)) / (broadcast(1.0f) + e);
    return select(x != x, x, y);
}
MG_INLINE double sigmoid(double x) {
    double e = std::exp(-std::fabs(x));
    return (x < 0 ? e : 1.0) / (1.0 + e);
}

// A function's value and its derivative, which share their exponential. Of what is not used nothing
// is left after inlining.
template <class V>
struct WithSlope {
    V value, slope;
};

// x sigmoid(v), accurate wherever the product is normal, also where sigmoid(v) alone is not; with
// sigmoid(v) and sigmoid(-v).
template <class V>
struct TimesSigmoid {
    V product, sigmoid, complement;
};
MG_INLINE TimesSigmoid<vf> times_sigmoid(vf x, vf v) {
    Reduced s = reduce_ln2(at_least(-abs(v), -104.0f));
    vf y = expm1_reduced(s.r) + broadcast(1.0f);
    vi n = s.n(), half = n >> 1;
    vf first = power_of_two(half), second = power_of_two(n - half);
    vf e = y * first * second, whole = broadcast(1.0f) + e;
    vf large = broadcast(1.0f) / whole, small = e * large;
    vi below = v < vf{};
    return {select(below, x * y * first * second, x) / whole, select(below, small, large),
            select(below, large, small)};
}
MG_INLINE TimesSigmoid<double> times_sigmoid(double x, double v) {
    double e = std::exp(-std::fabs(v)), large = 1 / (1 + e), small = e * large;
    return v < 0 ? TimesSigmoid<double>{x * small, small, large}
                 : TimesSigmoid<double>{x * large, large, small};
}
// Within 4 ULP; 0 at -infinity.
MG_INLINE vf silu(vf x) {
    vf near = select(x < broadcast(-104.0f), broadcast(-104.0f), x);
    return times_sigmoid(near, near).product;
}
MG_INLINE double silu(double x) {
    double near = x < -800.0 ? -800.0 : x;
    return near * sigmoid(near);
}

template <class V>
MG_INLINE V softplus(V x) {
    return maximum(x, splat<V>(0)) + log1p(exp(-abs(x)));
}

MG_INLINE vf rsqrt(vf x) { return broadcast(1.0f) / sqrt(x); }
MG_INLINE double rsqrt(double x) { return 1.0 / std::sqrt(x); }

// ---- the normal distribution: erf and GELU ----

// s 2^(i/8), i being the low three bits of each lane. s makes the eight numbers nearly exact.
constexpr double kPowerScale = 0.5003669264;
MG_INLINE vf scaled_eighth_powers(vi i) {
    alignas(64) static constexpr float c[] = {
        0.500366926f, 0.545653999f, 0.595039904f, 0.648895621f, 0.707625687f, 0.771671295f,
        0.841513515f, 0.917676985f, 0.500366926f, 0.545653999f, 0.595039904f, 0.648895621f,
        0.707625687f, 0.771671295f, 0.841513515f, 0.917676985f};  // AVX-512 takes four bits
#if defined(MG_AVX512)
    return (vf)_mm512_permutexvar_ps((__m512i)i, (__m512)load(c));
#elif defined(MG_AVX2)
    return (vf)_mm256_permutevar8x32_ps((__m256)load(c), (__m256i)i);
#else
    vf y{};
    for (int lane = 0; lane < VL; lane++) y[lane] = c[i[lane] & 7];
    return y;
#endif
}

// s e^(-z²/2) for z in [0, 13.2], the rounding of z² made good. With z² = r - n ln2/4 it is
// s 2^(n/8) e^(-r/2): what a table gives leaves little to a polynomial. ln2/4 is in two parts, the
// first exact when multiplied by n.
MG_INLINE vf exp_half_square(vf z) {
    vf square = z * z, magic = broadcast(12582912.0f);  // as in reduce_ln2
    vf shifted = fma(square, broadcast(-5.77078016f), magic), n = shifted - magic;
    vf whole = n * broadcast(0.17327880859375f);
#if defined(MG_AVX512) || defined(MG_AVX2)
    vf r = fma(z, z, whole);
#else
    // Without a fused multiply-add, the product's error by splitting z in two halves (Dekker).
    vf t = z * broadcast(4097.0f), high = t - (t - z), low = z - high;
    vf lost = (high * high - square) + broadcast(2.0f) * high * low + low * low;
    vf r = (square + whole) + lost;
#endif
    r = fma(n, broadcast(7.986546e-6f), r);
    constexpr float c[] = {-0.5f, 0.125016093f, -0.0208303593f};
    vf power = scaled_eighth_powers(as_int(shifted));
    vf y = fma(power, r * polynomial(r, c), power);
    return as_float(as_int(y) + ((as_int(shifted) & ~7) << 20));
}

// Φ(-z) e^(z²/2) / s for z in [0, 14.5], Φ the normal distribution: a quotient of polynomials,
// fitted with relative error 6e-9; their last bits are chosen so that with exp_half_square no
// result is far off. All coefficients are positive, so nothing cancels; that of z⁵ is 1. It does
// not wait for an exponential: the two together are half as long a chain as one after the other.
MG_INLINE vf normal_tail(vf z) {
    constexpr float p[] = {9.66632614e+1f, 8.47747192e+1f, 3.54544182e+1f, 7.86567879e+0f,
                           7.97308624e-1f};
    constexpr float q[] = {9.67341995e+1f, 1.62019684e+2f, 1.16385933e+2f, 4.54537430e+1f,
                           9.86602020e+0f};
    vf highest = fma(z + broadcast(q[4]), z, broadcast(q[3]));
    vf below = fma(fma(fma(highest, z, broadcast(q[2])), z, broadcast(q[1])), z, broadcast(q[0]));
    return polynomial(z, p) / below;
}

// Beyond, x Φ(x) and its derivative are below the least normal number on the negative side.
constexpr float kNormalEnd = 13.2f;

// x Φ(x) within 4.1 ULP from -1 on (4.4 without a fused multiply-add), of all numbers there, and 8
// in the negative tail (where x Φ(x) is normal); and its derivative Φ(x) + x φ(x).
MG_INLINE WithSlope<vf> gelu_with_slope(vf x) {
    // max(x, 0) - |x| Φ(-|x|); at the limit the latter is denormal, so it is flushed to 0.
    vf z = at_most(abs(x), kNormalEnd), power = exp_half_square(z), ratio = normal_tail(z);
    vf value = fma(-(z * power), ratio, positive_part(x));
    vf e = select(z == broadcast(kNormalEnd), vf{}, power), tail = e * ratio;
    vf cdf = select(x < vf{}, tail, broadcast(1.0f) - tail);
    vf near = at_most(at_least(x, -kNormalEnd), kNormalEnd);
    vf slope = fma(near, e * splat<vf>(0.39894228040143268 / kPowerScale), cdf);
    return {value, select(x != x, x, slope)};
}
MG_INLINE WithSlope<double> gelu_with_slope(double x) {
    double cdf = 0.5 * std::erfc(-x * 0.70710678118654752);
    double limited = std::fmax(std::fmin(x, 40.0), -40.0);
    double slope = limited * 0.39894228040143268 * std::exp(-0.5 * limited * limited);
    return {cdf == 0.0 ? 0.0 : x * cdf, select(x != x, x, cdf + slope)};
}

// Within 3 ULP.
MG_INLINE vf erf(vf x) {
    constexpr float c[] = {1.128379166e+00f, -3.761262582e-01f, 1.128358514e-01f, -2.685381153e-02f,
                           5.188326924e-03f, -8.010186933e-04f, 7.853839250e-05f};
    vf a = abs(x), inner = x * polynomial(x * x, c);
    vf z = at_most(a, 9.0f) * broadcast(1.41421356f);
    vf outer = fma(broadcast(-2.0f) * exp_half_square(z), normal_tail(z), broadcast(1.0f));
    outer = as_float(as_int(outer) | (as_int(x) & INT32_MIN));
    vf y = select(a < broadcast(1.0f), inner, outer);
    return select(x != x, x, y);
}
MG_INLINE double erf(double x) { return std::erf(x); }

// GELU's form by tanh (GPT-2): x / (1 + e^-v), v = sqrt(8/π) (x + 0.044715 x³).
template <class V>
MG_INLINE V gelu_tanh_argument(V x) {
    constexpr double k = 1.5957691216057308;
    return x * fma(x * x, splat<V>(k * 0.044715), splat<V>(k));
}
// Beyond, x³ only overflows; NaN becomes a limit.
MG_INLINE vf gelu_tanh_limited(vf x) { return at_most(at_least(x, -20.0f), 20.0f); }
MG_INLINE double gelu_tanh_limited(double x) { return std::fmax(std::fmin(x, 40.0), -40.0); }
// Within 4 ULP from -1 on; in the negative tail the rounding of v counts: 4 + 3 |v| ULP. Its
// derivative is sigmoid(v) + x sigmoid(v) sigmoid(-v) dv/dx.
template <class V>
MG_INLINE WithSlope<V> gelu_tanh_with_slope(V x) {
    V limited = gelu_tanh_limited(x);
    auto [value, s, rest] = times_sigmoid(select(x < V{}, limited, x), gelu_tanh_argument(limited));
    V inner =
        splat<V>(1.5957691216057308) * (splat<V>(1) + splat<V>(3 * 0.044715) * limited * limited);
    return {value, select(x != x, x, s + limited * s * rest * inner)};
}

// ---- the same for results that are rounded to bfloat16, which keeps eight bits ----

// 2^x for x in [-126, 126], within 2^-13.7 of it.
MG_INLINE vf exp2_of_8_bits(vf x) {
    constexpr float c[] = {9.99928072e-1f, 6.93261039e-1f, 2.42611143e-1f, 5.51716704e-2f};
    vf magic = broadcast(12582912.0f), shifted = x + magic;  // as in reduce_ln2
    return Reduced{shifted, {}}.scale(polynomial(x - (shifted - magic), c));
}

// GELU's forms with relative errors below 2^-13 (the slopes': absolute), down to 2^-122.
MG_INLINE WithSlope<vf> gelu_of_8_bits(vf x) {
    constexpr float p[] = {5.00011440e-1f, 2.77117960e-1f, 6.20385300e-2f};
    constexpr float q[] = {1.0f, 1.35283653e+0f, 6.99905610e-1f, 1.55319600e-1f};
    vf z = at_most(abs(x), kNormalEnd);
    vf power = exp2_of_8_bits(z * z * broadcast(-0.721347520f));
    vf ratio = polynomial(z, p) / polynomial(z, q);
    vf value = fma(-(z * power), ratio, positive_part(x));
    vf e = select(z == broadcast(kNormalEnd), vf{}, power), tail = e * ratio;
    vf cdf = select(x < vf{}, tail, broadcast(1.0f) - tail);
    vf near = at_most(at_least(x, -kNormalEnd), kNormalEnd);
    vf slope = fma(near, e * broadcast(0.398942280f), cdf);
    return {value, select(x != x, x, slope)};
}
MG_INLINE WithSlope<vf> gelu_tanh_of_8_bits(vf x) {
    constexpr double k = 1.5957691216057308, log2_e = 1.4426950408889634;
    vf near = gelu_tanh_limited(x), square = near * near;
    vf v = near * fma(square, splat<vf>(k * log2_e * 0.044715), splat<vf>(k * log2_e));
    vf least = broadcast(-126.0f), down = larger(-abs(v), least);
    vf e = select(down == least, vf{}, exp2_of_8_bits(down));
    vf large = broadcast(1.0f) / (broadcast(1.0f) + e), small = e * large;
    vi below = x < vf{};
    vf sigmoid = select(below, small, large);
    vf inner = fma(square, splat<vf>(k * 3 * 0.044715), splat<vf>(k));
    vf slope = fma(near * (small * large), inner, sigmoid);
    vf value = select(below, near, x) * sigmoid;
    vi nan = x != x;
    return {select(nan, x, value), select(nan, x, slope)};
}

// GELU's forms as precise as T, in which their results are kept, needs them.
template <class T, class V>
MG_INLINE WithSlope<V> gelu_for(V x) {
    if constexpr (std::is_same_v<T, bf16>) {
        return gelu_of_8_bits(x);
    } else {
        return gelu_with_slope(x);
    }
}
template <class T, class V>
MG_INLINE WithSlope<V> gelu_tanh_for(V x) {
    if constexpr (std::is_same_v<T, bf16>) {
        return gelu_tanh_of_8_bits(x);
    } else {
        return gelu_tanh_with_slope(x);
    }
}

// ---- sine and cosine ----

// For |x| up to 256 by reduction to [-π/4, π/4]; beyond, lane by lane in double. π/2 is in four
// parts, the first three so short that n times them is exact: near a zero of the function nothing
// but their difference from x is left.
constexpr float kTrigonometricRange = 256.0f;

MG_INLINE vf sine_or_cosine(vf x, int quarter) {
    vf n = round(x * broadcast(0.636619772f));
    vf r = fma(n, broadcast(-1.5703125f), x);
    r = fma(n, broadcast(-4.837512969970703125e-4f), r);
    r = fma(n, broadcast(-7.549533620476723e-8f), r);
    r = fma(n, broadcast(-2.5633440682570896e-12f), r);
    vi turn = to_int(n) + quarter;
    vf z = r * r;
    constexpr float s[] = {-1.6666654611e-1f, 8.3321608736e-3f, -1.9515295891e-4f};
    constexpr float c[] = {4.166664568298827e-2f, -1.388731625493765e-3f, 2.443315711809948e-5f};
    vf sine = fma(polynomial(z, s) * z, r, r);
    vf cosine = fma(polynomial(z, c) * z, z, fma(z, broadcast(-0.5f), broadcast(1.0f)));
    vf y = select((turn & 1) != 0, cosine, sine);
    return as_float(as_int(y) ^ ((turn & 2) << 30));
}
template <class Scalar>
MG_INLINE vf with_large_lanes(vf x, vf y, Scalar function) {
    for (int i = 0; i < VL; i++)
        if (!(std::fabs(x[i]) <= kTrigonometricRange))
            y[i] = static_cast<float>(function(static_cast<double>(x[i])));
    return y;
}
MG_INLINE vf sin(vf x) {
    return with_large_lanes(x, sine_or_cosine(x, 0), [](double v) { return std::sin(v); });
}
MG_INLINE vf cos(vf x) {
    return with_large_lanes(x, sine_or_cosine(x, 1), [](double v) { return std::cos(v); });
}
MG_INLINE double sin(double x) { return std::sin(x); }
MG_INLINE double cos(double x) { return std::cos(x); }

// ---- floor division, as Python and NumPy have it: lane by lane in double ----

struct FloorDivision {
    double quotient, remainder;
};

// fmod is exact, and a less its result is nearly a multiple of b: so both are right where a / b
// rounds to the integer above (1 // 0.1 is 9) or has more digits than fit.
inline FloorDivision floor_division(double a, double b) {
    double remainder = std::fmod(a, b);
    if (b == 0) return {a / b, remainder};
    double quotient = (a - remainder) / b;
    if (remainder == 0) {
        remainder = std::copysign(0.0, b);
    } else if ((remainder < 0) != (b < 0)) {
        remainder += b;
        quotient -= 1;
    }
    if (quotient == 0) return {std::copysign(0.0, a / b), remainder};
    double whole = std::floor(quotient);
    return {quotient - whole > 0.5 ? whole + 1 : whole, remainder};
}
inline double floor_divide(double a, double b) { return floor_division(a, b).quotient; }
inline double remainder(double a, double b) { return floor_division(a, b).remainder; }
inline vf floor_divide(vf a, vf b) {
    vf y;
    for (int i = 0; i < VL; i++) y[i] = static_cast<float>(floor_divide(double(a[i]), b[i]));
    return y;
}
inline vf remainder(vf a, vf b) {
    vf y;
    for (int i = 0; i < VL; i++) y[i] = static_cast<float>(remainder(double(a[i]), b[i]));
    return y;
}

}  // namespace mg
