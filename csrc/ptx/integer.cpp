// Integer arithmetic and logic.
#include <type_traits>

#include "lanes.h"

namespace ptx {
namespace {

// ---- functors ----

struct Mad {
    template <class V>
    static V f(V a, V b, V c) {
        return a * b + c;
    }
};
struct Min {
    template <class V>
    static V f(V a, V b) {
        return a < b ? a : b;
    }
};
struct Max {
    template <class V>
    static V f(V a, V b) {
        return a > b ? a : b;
    }
};
struct MinRelu {
    template <class V>
    static V f(V a, V b) {
        return Max::f(Min::f(a, b), V(0));
    }
};
struct MaxRelu {
    template <class V>
    static V f(V a, V b) {
        return Max::f(Max::f(a, b), V(0));
    }
};
struct Neg {
    template <class V>
    static V f(V a) {
        return V(0) - a;
    }
};
struct Abs {
    template <class V>
    static V f(V a) {
        return a < V(0) ? V(0) - a : a;
    }
};
struct Sad {
    template <class V>
    static V f(V a, V b, V c) {
        return c + (a > b ? a - b : b - a);
    }
};
struct And {
    template <class V>
    static V f(V a, V b) {
        return a & b;
    }
};
struct Or {
    template <class V>
    static V f(V a, V b) {
        return a | b;
    }
};
struct Xor {
    template <class V>
    static V f(V a, V b) {
        return a ^ b;
    }
};
struct Not {
    template <class V>
    static V f(V a) {
        return ~a;
    }
};
struct Cnot {
    template <class V>
    static V f(V a) {
        return a == 0 ? 1 : 0;
    }
};
// Division by zero gives all ones, as the hardware's sequence does; -2^31 / -1 wraps.
struct Div {
    template <class V>
    static V f(V a, V b) {
        if (b == 0) return V(-1);
        if (std::is_signed_v<V> && b == V(-1)) return V(0) - a;
        return a / b;
    }
};
struct Rem {
    template <class V>
    static V f(V a, V b) {
        if (b == 0) return a;
        if (std::is_signed_v<V> && b == V(-1)) return 0;
        return a % b;
    }
};

template <class V>
inline V high(V a, V b, int width) {
    if constexpr (sizeof(V) == 8) {
        if constexpr (std::is_signed_v<V>) return V((__int128(a) * b) >> 64);
        return V((static_cast<unsigned __int128>(a) * b) >> 64);
    } else {
        using W = std::conditional_t<std::is_signed_v<V>, i64, u64>;
        return V((W(a) * W(b)) >> width);
    }
}
template <int W>
struct MulHi {
    template <class V>
    static V f(V a, V b) {
        return high(a, b, W);
    }
};
template <int W>
struct MadHi {
    template <class V>
    static V f(V a, V b, V c) {
        return high(a, b, W) + c;
    }
};

// Sources of one type, result (and third source) twice as wide.
template <class L, class D, bool kAdd>
const Code* wide(Warp& w, const Code* c, u32 mask) {
    using R = typename L::R;
    const R* a = row<R>(w, c->s[0]);
    const R* b = row<R>(w, c->s[1]);
    const D* e = row<D>(w, c->s[2]);
    if constexpr (kAdd) {
        fill<D>(w, c->d[0], mask, [=](int l) { return D(L::get(a[l])) * D(L::get(b[l])) + e[l]; });
    } else {
        fill<D>(w, c->d[0], mask, [=](int l) { return D(L::get(a[l])) * D(L::get(b[l])); });
    }
    return c + 1;
}
template <bool kAdd>
Handler wide_of(Type t) {
    switch (t) {
        case Type::U16:
            return wide<LU16, u32, kAdd>;
        case Type::S16:
            return wide<LS16, i32, kAdd>;
        case Type::U32:
            return wide<LU32, u64, kAdd>;
        case Type::S32:
            return wide<LS32, i64, kAdd>;
        default:
            return nullptr;
    }
}

// Saturating signed 32-bit: add, sub, mad.hi.
struct AddSat {
    static i32 f(i32 a, i32 b) {
        i64 r = i64(a) + b;
        return r > INT32_MAX ? INT32_MAX : r < INT32_MIN ? INT32_MIN : i32(r);
    }
};
struct SubSat {
    static i32 f(i32 a, i32 b) {
        i64 r = i64(a) - b;
        return r > INT32_MAX ? INT32_MAX : r < INT32_MIN ? INT32_MIN : i32(r);
    }
};
struct MadHiSat {
    static i32 f(i32 a, i32 b, i32 c) { return AddSat::f(high(a, b, 32), c); }
};

// add.cc, addc, sub.cc, subc, mad.cc, madc: the carry (for sub: the borrow) is a bit a lane.
template <class T>
const Code* with_carry(Warp& w, const Code* c, u32 mask) {
    const T* a = row<T>(w, c->s[0]);
    const T* b = row<T>(w, c->s[1]);
    const T* e = row<T>(w, c->s[2]);
    using W = std::conditional_t<sizeof(T) == 8, unsigned __int128, u64>;
    u32 carry = w.carry;
    fill_lanes<T>(w, c->d[0], mask, [&](int l) {
        T in = c->has(flag::CC_IN) ? w.carry >> l & 1 : 0;
        W sum;
        if (c->op == Op::ADD) {
            sum = W(a[l]) + b[l] + in;
        } else if (c->op == Op::SUB) {
            sum = W(a[l]) - b[l] - in;
        } else {
            W product = W(a[l]) * b[l];
            if constexpr (sizeof(T) == 4) {
                if (is_signed(c->type)) product = W(i64(i32(a[l])) * i32(b[l]));
            } else {
                if (is_signed(c->type)) product = W(__int128(i64(a[l])) * i64(b[l]));
            }
            T part = T(c->has(flag::HI) ? product >> (8 * sizeof(T)) : product);
            sum = W(part) + e[l] + in;
        }
        if (c->has(flag::CC_OUT)) {
            carry = (carry & ~(1u << l)) | u32(sum >> (8 * sizeof(T)) & 1) << l;
        }
        return T(sum);
    });
    w.carry = carry;
    return c + 1;
}

const Code* dot(Warp& w, const Code* c, u32 mask) {
    const u32* a = row<u32>(w, c->s[0]);
    const u32* b = row<u32>(w, c->s[1]);
    const u32* e = row<u32>(w, c->s[2]);
    bool sa = is_signed(c->type), sb = is_signed(c->type2);
    bool bytes = c->op == Op::DP4A;
    int at = !bytes && c->has(flag::HI) ? 16 : 0;
    fill_lanes<u32>(w, c->d[0], mask, [=](int l) {
        u32 sum = e[l];
        for (int i = 0; i < (bytes ? 4 : 2); ++i) {
            u32 x = bytes ? a[l] >> (8 * i) & 0xFF : a[l] >> (16 * i) & 0xFFFF;
            u32 y = b[l] >> (8 * i + at) & 0xFF;
            i32 u = sa ? (bytes ? i32(i8(x)) : i32(i16(x))) : i32(x);
            sum += u32(u * (sb ? i32(i8(y)) : i32(y)));
        }
        return sum;
    });
    return c + 1;
}

struct Mul24 {
    static u32 f(u32 a, u32 b) { return (a & 0xFFFFFF) * (b & 0xFFFFFF); }
    static i32 f(i32 a, i32 b) { return ((a << 8) >> 8) * ((b << 8) >> 8); }
};
struct Mul24Hi {
    static u32 f(u32 a, u32 b) { return u32((u64(a & 0xFFFFFF) * (b & 0xFFFFFF)) >> 16); }
    static i32 f(i32 a, i32 b) { return i32((i64((a << 8) >> 8) * ((b << 8) >> 8)) >> 16); }
};
template <class F>
struct Mad24 {
    template <class V>
    static V f(V a, V b, V c) {
        return F::f(a, b) + c;
    }
};

// ---- predicates ----

template <class F>
const Code* on_predicates(Warp& w, const Code* c, u32 mask) {
    set_predicate(w, c->d[0], mask, F::f(predicate(w, c->s[0]), predicate(w, c->s[1])));
    return c + 1;
}
const Code* not_predicate(Warp& w, const Code* c, u32 mask) {
    set_predicate(w, c->d[0], mask, ~predicate(w, c->s[0]));
    return c + 1;
}

Handler hi_of(Type t) {
    return bytes_of(t) == 2 ? by_integer<Binary, MulHi<16>>(t) : by_integer<Binary, MulHi<32>>(t);
}
Handler mad_hi_of(Type t) {
    return bytes_of(t) == 2 ? by_integer<Ternary, MadHi<16>>(t) : by_integer<Ternary, MadHi<32>>(t);
}

Handler arithmetic(const Code& c) {
    Type t = c.type;
    bool sat = c.has(flag::SAT);
    switch (c.op) {
        case Op::ADD:
            return sat ? (t == Type::S32 ? binary<LS32, AddSat> : nullptr)
                       : by_width<Binary, Add>(t);
        case Op::SUB:
            return sat ? (t == Type::S32 ? binary<LS32, SubSat> : nullptr)
                       : by_width<Binary, Sub>(t);
        case Op::MUL:
            return c.has(flag::HI)     ? hi_of(t)
                   : c.has(flag::WIDE) ? wide_of<false>(t)
                                       : by_width<Binary, Mul>(t);
        case Op::MAD:
            if (sat) return t == Type::S32 && c.has(flag::HI) ? ternary<LS32, MadHiSat> : nullptr;
            return c.has(flag::HI)     ? mad_hi_of(t)
                   : c.has(flag::WIDE) ? wide_of<true>(t)
                                       : by_width<Ternary, Mad>(t);
        case Op::DIV:
            return by_integer<Binary, Div>(t);
        case Op::REM:
            return by_integer<Binary, Rem>(t);
        case Op::MIN:
            return c.has(flag::RELU) ? by_integer<Binary, MinRelu>(t) : by_integer<Binary, Min>(t);
        case Op::MAX:
            return c.has(flag::RELU) ? by_integer<Binary, MaxRelu>(t) : by_integer<Binary, Max>(t);
        case Op::NEG:
            return by_integer<Unary, Neg>(t);
        case Op::ABS:
            return by_integer<Unary, Abs>(t);
        case Op::SAD:
            return by_integer<Ternary, Sad>(t);
        case Op::MUL24:
            if (c.has(flag::HI))
                return t == Type::S32 ? binary<LS32, Mul24Hi> : binary<LU32, Mul24Hi>;
            return t == Type::S32 ? binary<LS32, Mul24> : binary<LU32, Mul24>;
        case Op::MAD24:
            if (sat) return nullptr;
            if (c.has(flag::HI))
                return t == Type::S32 ? ternary<LS32, Mad24<Mul24Hi>>
                                      : ternary<LU32, Mad24<Mul24Hi>>;
            return t == Type::S32 ? ternary<LS32, Mad24<Mul24>> : ternary<LU32, Mad24<Mul24>>;
        case Op::AND:
            return by_width<Binary, And>(t);
        case Op::OR:
            return by_width<Binary, Or>(t);
        case Op::XOR:
            return by_width<Binary, Xor>(t);
        case Op::NOT:
            return by_width<Unary, Not>(t);
        case Op::CNOT:
            return by_width<Unary, Cnot>(t);
        default:
            return nullptr;
    }
}

std::string sources(int n, char kind) { return (std::string(n, kind) + "----").substr(0, 4); }

}  // namespace

Form resolve_integer(const Code& c) {
    Form f;
    Type t = c.type;
    char k = letter(t);
    bool wide64 = k == '2';
    switch (c.op) {
        case Op::AND:
        case Op::OR:
        case Op::XOR:
        case Op::NOT:
            if (t == Type::PRED) {
                f.d = "p-";
                f.s = c.op == Op::NOT ? "p---" : "pp--";
                f.run = c.op == Op::AND   ? on_predicates<And>
                        : c.op == Op::OR  ? on_predicates<Or>
                        : c.op == Op::XOR ? on_predicates<Xor>
                                          : not_predicate;
                return f;
            }
            [[fallthrough]];
        case Op::ADD:
        case Op::SUB:
        case Op::MUL:
        case Op::MAD:
        case Op::DIV:
        case Op::REM:
        case Op::MIN:
        case Op::MAX:
        case Op::NEG:
        case Op::ABS:
        case Op::SAD:
        case Op::MUL24:
        case Op::MAD24:
        case Op::CNOT: {
            f.run = arithmetic(c);
            int n = c.op == Op::NEG || c.op == Op::ABS || c.op == Op::NOT || c.op == Op::CNOT ? 1
                    : c.op == Op::MAD || c.op == Op::SAD || c.op == Op::MAD24                 ? 3
                                                                                              : 2;
            f.d = {k, '-'};
            f.s = sources(n, k);
            if (c.has(flag::WIDE) && (c.op == Op::MUL || c.op == Op::MAD)) {
                char twice = bytes_of(t) == 4 ? '2' : '1';
                f.d = {twice, '-'};
                if (n == 3) f.s[2] = twice;
            }
            if (c.flags & (flag::CC_IN | flag::CC_OUT)) {
                bool fits = (c.op == Op::ADD || c.op == Op::SUB || c.op == Op::MAD) &&
                            bytes_of(t) >= 4 && !c.has(flag::WIDE);
                f.run = !fits ? nullptr : wide64 ? with_carry<u64> : with_carry<u32>;
            }
            return f;
        }
        case Op::DP4A:
        case Op::DP2A:
            return {dot, "1-", "111-", ""};
        default:
            return f;
    }
}

}  // namespace ptx
