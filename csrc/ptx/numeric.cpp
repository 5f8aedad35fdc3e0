#include "numeric.h"

namespace ptx {

// `double` holds every source value (integers beyond 2^53 excepted: convert.cpp rounds those
// itself), so that one rounding is done here.
u32 encode(double x, Format f, Round round, bool saturate) {
    u32 sign = std::signbit(x) ? 1u << (f.width() - 1) : 0;
    u32 top_exponent = (1u << f.exponent_bits) - 1;
    u32 infinity = top_exponent << f.mantissa_bits;
    u32 largest = f.ieee ? infinity - 1 : (infinity | ((1u << f.mantissa_bits) - 1)) - 1;
    if (std::isnan(x)) {
        u32 quiet = (1u << (f.width() - 1)) - 1;
        return f.width() == 32 ? 0x7FFFFFFFu : quiet;
    }
    double a = std::fabs(x);
    if (std::isinf(x))
        return sign | (f.ieee && !saturate ? infinity : f.ieee || saturate ? largest : largest + 1);
    if (a == 0) return sign;
    int exponent = std::ilogb(a);
    int lowest = 1 - f.bias();
    int scale = (exponent < lowest ? lowest : exponent) - f.mantissa_bits;
    double units = std::ldexp(a, -scale);  // exact
    double down = std::floor(units);
    double rest = units - down;
    bool up = false;
    switch (round) {
        case Round::RZ:
            break;
        case Round::RM:
            up = sign && rest > 0;
            break;
        case Round::RP:
            up = !sign && rest > 0;
            break;
        case Round::RNA:
            up = rest >= 0.5;
            break;
        default:
            up = rest > 0.5 || (rest == 0.5 && std::fmod(down, 2.0) == 1.0);
    }
    if (up) down += 1;
    u64 mantissa = static_cast<u64>(down);
    u64 code;
    if (exponent < lowest) {
        code = mantissa;  // carries into the smallest normal by itself
    } else {
        code = (static_cast<u64>(exponent + f.bias()) << f.mantissa_bits) + mantissa -
               (u64{1} << f.mantissa_bits);
    }
    if (code > largest) {
        bool toward_largest = saturate || round == Round::RZ || (round == Round::RM && !sign) ||
                              (round == Round::RP && sign);
        code = toward_largest ? largest : f.ieee ? infinity : largest + 1;
    }
    return sign | static_cast<u32>(code);
}

double decode(u32 code, Format f) {
    bool negative = code >> (f.width() - 1) & 1;
    u32 exponent = code >> f.mantissa_bits & ((1u << f.exponent_bits) - 1);
    u32 mantissa = code & ((1u << f.mantissa_bits) - 1);
    u32 top = (1u << f.exponent_bits) - 1;
    double x;
    if (f.ieee && exponent == top) {
        x = mantissa ? std::nan("") : HUGE_VAL;
    } else if (!f.ieee && exponent == top && mantissa == (1u << f.mantissa_bits) - 1) {
        x = std::nan("");
    } else if (exponent == 0) {
        x = std::ldexp(mantissa, 1 - f.bias() - f.mantissa_bits);
    } else {
        x = std::ldexp(mantissa + (1u << f.mantissa_bits),
                       int(exponent) - f.bias() - f.mantissa_bits);
    }
    return negative ? -x : x;
}

namespace {

int mode(Round r) {
    return r == Round::RZ   ? FE_TOWARDZERO
           : r == Round::RM ? FE_DOWNWARD
           : r == Round::RP ? FE_UPWARD
                            : FE_TONEAREST;
}

template <class T>
__attribute__((noinline)) T compute(Arith op, T a, T b, T c, Round round) {
    // Volatile, so that nothing moves over the changes of the rounding mode.
    volatile T x = a, y = b, z = c, out = 0;
    int before = std::fegetround();
    std::fesetround(mode(round));
    switch (op) {
        case Arith::ADD:
            out = x + y;
            break;
        case Arith::MUL:
            out = x * y;
            break;
        case Arith::FMA:
            out = std::fma(T(x), T(y), T(z));
            break;
        case Arith::DIV:
            out = x / y;
            break;
        case Arith::SQRT:
            out = std::sqrt(T(x));
            break;
    }
    std::fesetround(before);
    return out;
}

}  // namespace

float rounded(Arith op, float a, float b, float c, Round round) {
    return compute(op, a, b, c, round);
}
double rounded(Arith op, double a, double b, double c, Round round) {
    return compute(op, a, b, c, round);
}

}  // namespace ptx
