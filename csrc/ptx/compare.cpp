// Comparisons and selection. A comparison gives a bit a lane; SETP and SET make of it what they
// must.
#include <type_traits>

#include "lanes.h"

namespace ptx {
namespace {

struct Eq {
    template <class V>
    static bool f(V a, V b) {
        return a == b;
    }
};
struct Ne {
    template <class V>
    static bool f(V a, V b) {
        return a != b;
    }
};
struct Lt {
    template <class V>
    static bool f(V a, V b) {
        return a < b;
    }
};
struct Le {
    template <class V>
    static bool f(V a, V b) {
        return a <= b;
    }
};
struct Gt {
    template <class V>
    static bool f(V a, V b) {
        return a > b;
    }
};
struct Ge {
    template <class V>
    static bool f(V a, V b) {
        return a >= b;
    }
};
struct NeOrdered {
    template <class V>
    static bool f(V a, V b) {
        return (a < b) | (a > b);
    }
};
struct Num {
    template <class V>
    static bool f(V a, V b) {
        return (a == a) & (b == b);
    }
};
struct Nan {
    template <class V>
    static bool f(V a, V b) {
        return (a != a) | (b != b);
    }
};
// The negation of the opposite comparison: true also where an operand is no number.
template <class F>
struct Negated {
    template <class V>
    static bool f(V a, V b) {
        return !F::f(a, b);
    }
};

template <class L, class F>
u32 compare(const Warp& w, const Code* c) {
    using R = typename L::R;
    using I = std::conditional_t<sizeof(R) == 8, i64, i32>;
    const R* a = row<R>(w, c->s[0]);
    const R* b = row<R>(w, c->s[1]);
    alignas(64) I t[kLanes];
    for (int l = 0; l < kLanes; ++l) t[l] = F::f(L::get(a[l]), L::get(b[l])) ? I(-1) : I(0);
    return mask_of(t);
}

using Compare = u32 (*)(const Warp&, const Code*);

template <class L>
Compare of_integer(Cmp cmp) {
    switch (cmp) {
        case Cmp::EQ:
            return compare<L, Eq>;
        case Cmp::NE:
            return compare<L, Ne>;
        case Cmp::LT:
        case Cmp::LO:
            return compare<L, Lt>;
        case Cmp::LE:
        case Cmp::LS:
            return compare<L, Le>;
        case Cmp::GT:
        case Cmp::HI:
            return compare<L, Gt>;
        case Cmp::GE:
        case Cmp::HS:
            return compare<L, Ge>;
        default:
            return nullptr;
    }
}

template <class L>
Compare of_float(Cmp cmp) {
    switch (cmp) {
        case Cmp::EQ:
            return compare<L, Eq>;
        case Cmp::NE:
            return compare<L, NeOrdered>;
        case Cmp::LT:
            return compare<L, Lt>;
        case Cmp::LE:
            return compare<L, Le>;
        case Cmp::GT:
            return compare<L, Gt>;
        case Cmp::GE:
            return compare<L, Ge>;
        case Cmp::EQU:
            return compare<L, Negated<NeOrdered>>;
        case Cmp::NEU:
            return compare<L, Ne>;
        case Cmp::LTU:
            return compare<L, Negated<Ge>>;
        case Cmp::LEU:
            return compare<L, Negated<Gt>>;
        case Cmp::GTU:
            return compare<L, Negated<Le>>;
        case Cmp::GEU:
            return compare<L, Negated<Lt>>;
        case Cmp::NUM:
            return compare<L, Num>;
        case Cmp::NAN_:
            return compare<L, Nan>;
        default:
            return nullptr;
    }
}

Compare compare_of(Type t, Cmp cmp, bool ftz) {
    switch (t) {
        case Type::B16:
        case Type::U16:
            return of_integer<LU16>(cmp);
        case Type::B32:
        case Type::U32:
            return of_integer<LU32>(cmp);
        case Type::B64:
        case Type::U64:
            return of_integer<LU64>(cmp);
        case Type::S16:
            return of_integer<LS16>(cmp);
        case Type::S32:
            return of_integer<LS32>(cmp);
        case Type::S64:
            return of_integer<LS64>(cmp);
        case Type::F32:
            return ftz ? of_float<LF32Z>(cmp) : of_float<LF32>(cmp);
        case Type::F64:
            return of_float<LF64>(cmp);
        case Type::F16:
        case Type::F16X2:
            return of_float<LF16>(cmp);
        case Type::BF16:
        case Type::BF16X2:
            return of_float<LBF16>(cmp);
        default:
            return nullptr;
    }
}

u32 upper_half(const Warp& w, const Code* c) {
    const u32* a = row<u32>(w, c->s[0]);
    const u32* b = row<u32>(w, c->s[1]);
    // The comparison reads low halves: it sees the upper ones shifted into two rows of our own.
    alignas(64) u32 shifted[2][kLanes];
    for (int l = 0; l < kLanes; ++l) {
        shifted[0][l] = a[l] >> 16;
        shifted[1][l] = b[l] >> 16;
    }
    Warp view;
    view.regs = reinterpret_cast<u8*>(shifted);
    Code copy = *c;
    copy.s[0] = 0;
    copy.s[1] = 128;
    return c->compare(view, &copy);
}

u32 combine(u32 compared, u32 other, u32 how) {
    switch (how) {
        case 1:
            return compared & other;
        case 2:
            return compared | other;
        case 3:
            return compared ^ other;
        default:
            return compared;
    }
}

const Code* setp(Warp& w, const Code* c, u32 mask) {
    u32 t = c->compare(w, c);
    u32 other = c->aux ? predicate(w, c->s[2]) : 0;
    set_predicate(w, c->d[0], mask, combine(t, other, c->aux));
    set_predicate(w, c->d[1], mask, combine(~t, other, c->aux));
    return c + 1;
}

const Code* setp_pair(Warp& w, const Code* c, u32 mask) {
    u32 low = c->compare(w, c), high = upper_half(w, c);
    u32 other = c->aux ? predicate(w, c->s[2]) : 0;
    set_predicate(w, c->d[0], mask, combine(low, other, c->aux));
    set_predicate(w, c->d[1], mask, combine(high, other, c->aux));
    return c + 1;
}

const Code* set(Warp& w, const Code* c, u32 mask) {
    u32 other = c->aux ? predicate(w, c->s[2]) : 0;
    u32 low = combine(c->compare(w, c), other, c->aux);
    u32 one = ~0u, shift = 0, high = 0;
    switch (c->type) {
        case Type::F32:
            one = bits<u32>(1.0f);
            break;
        case Type::F16:
            one = 0x3C00;
            break;
        case Type::BF16:
            one = 0x3F80;
            break;
        case Type::U16:
        case Type::S16:
            one = 0xFFFF;
            break;
        case Type::F16X2:
            one = 0x3C00;
            shift = 16;
            break;
        case Type::BF16X2:
            one = 0x3F80;
            shift = 16;
            break;
        case Type::U16X2:
        case Type::S16X2:
            one = 0xFFFF;
            shift = 16;
            break;
        default:
            break;
    }
    if (shift) high = combine(upper_half(w, c), other, c->aux);
    fill<u32>(w, c->d[0], mask, [=](int l) {
        u32 out = low >> l & 1 ? one : 0;
        return high >> l & 1 ? out | one << 16 : out;
    });
    return c + 1;
}

template <class R>
const Code* selp(Warp& w, const Code* c, u32 mask) {
    const R* a = row<R>(w, c->s[0]);
    const R* b = row<R>(w, c->s[1]);
    u32 p = predicate(w, c->s[2]);
    fill<R>(w, c->d[0], mask, [=](int l) { return R(p) >> l & 1 ? a[l] : b[l]; });
    return c + 1;
}

template <class R, class S>
const Code* slct(Warp& w, const Code* c, u32 mask) {
    const R* a = row<R>(w, c->s[0]);
    const R* b = row<R>(w, c->s[1]);
    const S* e = row<S>(w, c->s[2]);
    fill<R>(w, c->d[0], mask, [=](int l) { return e[l] >= 0 ? a[l] : b[l]; });
    return c + 1;
}

bool is_pair(Type t) { return t == Type::F16X2 || t == Type::BF16X2; }

}  // namespace

Form resolve_compare(const Code& c) {
    Form f;
    if (c.op == Op::SETP || c.op == Op::SET) {
        Type t = c.op == Op::SETP ? c.type : c.type2;
        char k = letter(t);
        if (c.sub >= static_cast<u8>(Cmp::COUNT) || c.aux > 3) return f;
        f.compare = compare_of(t, static_cast<Cmp>(c.sub), c.has(flag::FTZ));
        f.s = {k, k, c.aux ? 'p' : '-', '-'};
        if (c.op == Op::SETP) {
            f.d = "PP";
            f.run = is_pair(t) ? setp_pair : setp;
        } else {
            f.d = "1-";
            f.run = bytes_of(c.type) <= 4 ? set : nullptr;
            bool pair_out = is_pair(c.type) || c.type == Type::U16X2 || c.type == Type::S16X2;
            if (pair_out && !is_pair(t)) f.run = nullptr;
        }
        if (!f.compare) f.run = nullptr;
        return f;
    }
    char k = letter(c.type);
    f.d = {k, '-'};
    if (c.op == Op::SELP) {
        f.s = {k, k, 'p', '-'};
        f.run = k == '2' ? selp<u64> : selp<u32>;
    } else {
        f.s = {k, k, '1', '-'};
        bool single = c.type2 == Type::F32;
        f.run = k == '2' ? (single ? slct<u64, float> : slct<u64, i32>)
                         : (single ? slct<u32, float> : slct<u32, i32>);
    }
    return f;
}

}  // namespace ptx
