// Floating-point arithmetic. Every operation rounds once: half types compute in float where that is
// innocent (sums; products of float16) and round to odd first where it is not.
#include "lanes.h"

namespace ptx {
namespace {

// To float, inexact results to odd: rounding once more to a half type is then right.
PTX_INLINE float to_odd(double s) {
    float f = static_cast<float>(s);
    u32 u = bits<u32>(f);
    bool fix = double(f) != s && s == s && (u & 1) == 0;
    u32 moved = std::fabs(double(f)) < std::fabs(s) ? u + 1 : u - 1;
    return fix ? bits<float>(moved) : f;
}

inline u32 raw(float x) { return bits<u32>(x); }
inline u64 raw(double x) { return bits<u64>(x); }
inline float cooked(u32 x) { return bits<float>(x); }
inline double cooked(u64 x) { return bits<double>(x); }
inline float nan_of(float) { return bits<float>(0x7FFFFFFFu); }
inline double nan_of(double) { return bits<double>(u64{0x7FFFFFFFFFFFFFFF}); }

struct MulOdd {
    static float f(float a, float b) { return to_odd(double(a) * b); }
};
struct Div {
    template <class V>
    static V f(V a, V b) {
        return a / b;
    }
};
struct Fma {
    static float f(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
    static double f(double a, double b, double c) { return __builtin_fma(a, b, c); }
};
struct FmaOdd {
    static float f(float a, float b, float c) { return to_odd(add_to_odd(double(a) * b, c)); }
};
struct Neg {
    template <class V>
    static V f(V a) {
        return -a;
    }
};
struct Abs {
    template <class V>
    static V f(V a) {
        return std::fabs(a);
    }
};
// The operand that is no number never wins; -0 is below +0.
struct Min {
    template <class V>
    static V f(V a, V b) {
        V r = b < a ? b : a;
        r = a == b ? cooked(raw(a) | raw(b)) : r;
        return a != a ? b : r;
    }
};
struct Max {
    template <class V>
    static V f(V a, V b) {
        V r = b > a ? b : a;
        r = a == b ? cooked(raw(a) & raw(b)) : r;
        return a != a ? b : r;
    }
};
struct MinNan {
    template <class V>
    static V f(V a, V b) {
        return a != a || b != b ? nan_of(a) : Min::f(a, b);
    }
};
struct MaxNan {
    template <class V>
    static V f(V a, V b) {
        return a != a || b != b ? nan_of(a) : Max::f(a, b);
    }
};
template <class F>
struct Three {
    template <class V>
    static V f(V a, V b, V c) {
        return F::f(F::f(a, b), c);
    }
};
struct Copysign {
    template <class V>
    static V f(V a, V b) {
        return std::copysign(b, a);
    }
};

// ---- special functions ----

struct Rcp {
    template <class V>
    static V f(V a) {
        return V(1) / a;
    }
};
struct Sqrt {
    template <class V>
    static V f(V a) {
        return std::sqrt(a);
    }
};
struct Rsqrt {
    template <class V>
    static V f(V a) {
        return V(1.0 / std::sqrt(double(a)));
    }
};
struct Ex2 {
    static PTX_INLINE float f(float a) { return exp2_approx(a); }
};
struct Ex2Flushed {  // .ftz: a denormal operand gives 1 in any case
    static PTX_INLINE float f(float a) {
        float y = exp2_approx(a);
        return y < 0x1p-126f ? 0.0f : y;
    }
};
struct Lg2 {
    static float f(float a) { return std::log2(a); }
};
struct Sin {
    static float f(float a) { return std::sin(a); }
};
struct Cos {
    static float f(float a) { return std::cos(a); }
};
struct Tanh {
    static float f(float a) { return std::tanh(a); }
};

template <class F>
Handler by_single(Type t, bool ftz) {
    switch (t) {
        case Type::F32:
            return ftz ? unary<LF32Z, F> : unary<LF32, F>;
        case Type::F16:
            return unary<LF16, F>;
        case Type::F16X2:
            return unary<Twice<LF16>, F>;
        case Type::BF16:
            return unary<LBF16, F>;
        case Type::BF16X2:
            return unary<Twice<LBF16>, F>;
        default:
            return nullptr;
    }
}
template <class F>
Handler single_or_double(Type t, bool ftz) {
    return t == Type::F64   ? unary<LF64, F>
           : t == Type::F32 ? (ftz ? unary<LF32Z, F> : unary<LF32, F>)
                            : nullptr;
}

// ---- directed rounding, .sat and .relu: a lane at a time ----

template <class L>
const Code* directed(Warp& w, const Code* c, u32 mask) {
    using V = typename L::V;
    const V* a = row<V>(w, c->s[0]);
    const V* b = row<V>(w, c->s[1]);
    const V* e = row<V>(w, c->s[2]);
    fill_lanes<V>(w, c->d[0], mask, [=](int l) {
        V x = L::get(a[l]), y = L::get(b[l]), z = L::get(e[l]);
        V r;
        switch (c->op) {
            case Op::ADD:
                r = rounded(Arith::ADD, x, y, V(0), c->round);
                break;
            case Op::SUB:
                r = rounded(Arith::ADD, x, -y, V(0), c->round);
                break;
            case Op::MUL:
                r = rounded(Arith::MUL, x, y, V(0), c->round);
                break;
            case Op::DIV:
                r = rounded(Arith::DIV, x, y, V(0), c->round);
                break;
            case Op::RCP:
                r = rounded(Arith::DIV, V(1), x, V(0), c->round);
                break;
            case Op::SQRT:
                r = rounded(Arith::SQRT, x, V(0), V(0), c->round);
                break;
            default:
                r = rounded(Arith::FMA, x, y, z, c->round);
                break;
        }
        return L::put(r);
    });
    return c + 1;
}

template <class L>
void limit(Warp& w, const Code* c, u32 mask) {
    using R = typename L::R;
    R* d = row<R>(w, c->d[0]);
    bool sat = c->has(flag::SAT), relu = c->has(flag::RELU);
    auto one = [=](R x) {
        auto v = L::get(x);
        if (sat) v = v > 1 ? 1 : v > 0 ? v : 0;  // also NaN becomes +0
        if (relu) v = v != v ? v : v > 0 ? v : 0;
        return L::put(v);
    };
    fill_lanes<R>(w, c->d[0], mask, [=](int l) { return one(d[l]); });
}
template <class L>
void limit_pair(Warp& w, const Code* c, u32 mask) {
    u32* d = row<u32>(w, c->d[0]);
    bool sat = c->has(flag::SAT), relu = c->has(flag::RELU);
    auto one = [=](u32 x) {
        float v = L::get(x);
        if (sat) v = v > 1 ? 1 : v > 0 ? v : 0;
        if (relu) v = v != v ? v : v > 0 ? v : 0;
        return L::put(v);
    };
    fill_lanes<u32>(w, c->d[0], mask,
                    [=](int l) { return one(d[l] & 0xFFFF) | one(d[l] >> 16) << 16; });
}

Handler plain(const Code& c);

// The handler without the limits, found again at run time: rare instructions only.
const Code* limited(Warp& w, const Code* c, u32 mask) {
    plain (*c)(w, c, mask);
    switch (c->type) {
        case Type::F32:
            limit<LF32>(w, c, mask);
            break;
        case Type::F64:
            limit<LF64>(w, c, mask);
            break;
        case Type::F16:
            limit<LF16>(w, c, mask);
            break;
        case Type::BF16:
            limit<LBF16>(w, c, mask);
            break;
        case Type::F16X2:
            limit_pair<LF16>(w, c, mask);
            break;
        default:
            limit_pair<LBF16>(w, c, mask);
            break;
    }
    return c + 1;
}

template <class F, class Odd>
Handler fma_of(Type t, bool ftz) {
    switch (t) {
        case Type::F32:
            return ftz ? ternary<LF32Z, F> : ternary<LF32, F>;
        case Type::F64:
            return ternary<LF64, F>;
        case Type::F16:
            return ftz ? ternary<LF16Z, Odd> : ternary<LF16, Odd>;
        case Type::F16X2:
            return ftz ? ternary<Twice<LF16Z>, Odd> : ternary<Twice<LF16>, Odd>;
        case Type::BF16:
            return ternary<LBF16, Odd>;
        case Type::BF16X2:
            return ternary<Twice<LBF16>, Odd>;
        default:
            return nullptr;
    }
}

Handler plain(const Code& c) {
    Type t = c.type;
    bool z = c.has(flag::FTZ);
    bool approximate = c.has(flag::APPROX) || c.has(flag::FULL);
    bool turned = c.round == Round::RZ || c.round == Round::RM || c.round == Round::RP;
    if (turned && !approximate) {
        return t == Type::F32   ? (z ? directed<LF32Z> : directed<LF32>)
               : t == Type::F64 ? directed<LF64>
                                : nullptr;
    }
    bool brain = t == Type::BF16 || t == Type::BF16X2;
    switch (c.op) {
        case Op::ADD:
            return by_float<Binary, Add>(t, z);
        case Op::SUB:
            return by_float<Binary, Sub>(t, z);
        case Op::MUL:
            if (brain)
                return t == Type::BF16 ? binary<LBF16, MulOdd> : binary<Twice<LBF16>, MulOdd>;
            return by_float<Binary, Mul>(t, z);
        case Op::FMA:
        case Op::MAD:
            return fma_of<Fma, FmaOdd>(t, z);
        case Op::DIV:
            return t == Type::F64   ? binary<LF64, Div>
                   : t == Type::F32 ? (z ? binary<LF32Z, Div> : binary<LF32, Div>)
                                    : nullptr;
        case Op::RCP:
            return single_or_double<Rcp>(t, z);
        case Op::SQRT:
            return single_or_double<Sqrt>(t, z);
        default:
            return nullptr;
    }
}

Handler extremum(const Code& c) {
    Type t = c.type;
    bool z = c.has(flag::FTZ), nan = c.has(flag::NANP);
    bool three = c.s[2] != kNone;
    if (three) {
        if (t != Type::F32) return nullptr;
        if (c.op == Op::MIN) return nan ? ternary<LF32, Three<MinNan>> : ternary<LF32, Three<Min>>;
        return nan ? ternary<LF32, Three<MaxNan>> : ternary<LF32, Three<Max>>;
    }
    if (c.op == Op::MIN) return nan ? by_float<Binary, MinNan>(t, z) : by_float<Binary, Min>(t, z);
    return nan ? by_float<Binary, MaxNan>(t, z) : by_float<Binary, Max>(t, z);
}

template <class V>
const Code* testp(Warp& w, const Code* c, u32 mask) {
    const V* a = row<V>(w, c->s[0]);
    u32 out = 0;
    for (int l = 0; l < kLanes; ++l) {
        int kind = std::fpclassify(a[l]);
        bool yes = false;
        switch (c->sub) {
            case 0:
                yes = std::isfinite(a[l]);
                break;
            case 1:
                yes = kind == FP_INFINITE;
                break;
            case 2:
                yes = kind != FP_NAN;
                break;
            case 3:
                yes = kind == FP_NAN;
                break;
            case 4:
                yes = kind == FP_NORMAL;
                break;
            case 5:
                yes = kind == FP_SUBNORMAL;
                break;
        }
        out |= u32(yes) << l;
    }
    set_predicate(w, c->d[0], mask, out);
    return c + 1;
}

}  // namespace

Form resolve_float(const Code& c) {
    Form f;
    char k = letter(c.type);
    f.d = {k, '-'};
    bool z = c.has(flag::FTZ);
    switch (c.op) {
        case Op::ADD:
        case Op::SUB:
        case Op::MUL:
        case Op::DIV:
            f.s = {k, k, '-', '-'};
            break;
        case Op::FMA:
        case Op::MAD:
            f.s = {k, k, k, '-'};
            break;
        case Op::RCP:
        case Op::SQRT:
            f.s = {k, '-', '-', '-'};
            break;
        case Op::MIN:
        case Op::MAX:
            f.s = {k, k, c.s[2] != kNone ? k : '-', '-'};
            f.run = extremum(c);
            return f;
        case Op::NEG:
            f.s = {k, '-', '-', '-'};
            f.run = by_float<Unary, Neg>(c.type, z);
            return f;
        case Op::ABS:
            f.s = {k, '-', '-', '-'};
            f.run = by_float<Unary, Abs>(c.type, z);
            return f;
        case Op::COPYSIGN:
            f.s = {k, k, '-', '-'};
            f.run = by_float<Binary, Copysign>(c.type, false);
            return f;
        case Op::TESTP:
            f.d = "p-";
            f.s = {k, '-', '-', '-'};
            f.run = c.type == Type::F32   ? testp<float>
                    : c.type == Type::F64 ? testp<double>
                                          : nullptr;
            if (c.sub > 5) f.run = nullptr;
            return f;
        default:
            return f;
    }
    f.run = plain(c);
    if (f.run && (c.has(flag::SAT) || c.has(flag::RELU))) f.run = limited;
    return f;
}

Form resolve_special(const Code& c) {
    Form f;
    char k = letter(c.type);
    f.d = {k, '-'};
    f.s = {k, '-', '-', '-'};
    bool z = c.has(flag::FTZ);
    switch (c.op) {
        case Op::RSQRT:
            f.run = single_or_double<Rsqrt>(c.type, z);
            break;
        case Op::EX2:
            f.run = c.type == Type::F32 && z ? unary<LF32, Ex2Flushed> : by_single<Ex2>(c.type, z);
            break;
        case Op::LG2:
            f.run = by_single<Lg2>(c.type, z);
            break;
        case Op::SIN:
            f.run = by_single<Sin>(c.type, z);
            break;
        case Op::COS:
            f.run = by_single<Cos>(c.type, z);
            break;
        case Op::TANH:
            f.run = by_single<Tanh>(c.type, z);
            break;
        default:
            break;
    }
    return f;
}

}  // namespace ptx
