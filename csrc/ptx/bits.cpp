// Operations on the bits of integers: shifts, fields, permutations, counts.
#include <cstdlib>
#include <type_traits>

#include "lanes.h"

namespace ptx {
namespace {

// ---- shifts: counts are 32-bit rows and clamp at the width ----

template <class L, int W, bool kLeft>
const Code* shift(Warp& w, const Code* c, u32 mask) {
    using R = typename L::R;
    const R* a = row<R>(w, c->s[0]);
    const u32* b = row<u32>(w, c->s[1]);
    fill<R>(w, c->d[0], mask, [=](int l) {
        using V = typename L::V;
        V x = L::get(a[l]);
        u32 n = b[l];
        if constexpr (std::is_signed_v<V> && !kLeft) {
            return L::put(x >> (n < W ? n : W - 1));
        } else {
            V y = kLeft ? x << (n & (W - 1)) : x >> (n & (W - 1));
            return L::put(n < W ? y : V(0));
        }
    });
    return c + 1;
}
Handler shift_of(Type t, bool left) {
    switch (t) {
        case Type::B16:
        case Type::U16:
            return left ? shift<LU16, 16, true> : shift<LU16, 16, false>;
        case Type::B32:
        case Type::U32:
            return left ? shift<LU32, 32, true> : shift<LU32, 32, false>;
        case Type::B64:
        case Type::U64:
            return left ? shift<LU64, 64, true> : shift<LU64, 64, false>;
        case Type::S16:
            return left ? shift<LU16, 16, true> : shift<LS16, 16, false>;
        case Type::S32:
            return left ? shift<LU32, 32, true> : shift<LS32, 32, false>;
        case Type::S64:
            return left ? shift<LU64, 64, true> : shift<LS64, 64, false>;
        default:
            return nullptr;
    }
}

const Code* funnel(Warp& w, const Code* c, u32 mask) {
    const u32* a = row<u32>(w, c->s[0]);
    const u32* b = row<u32>(w, c->s[1]);
    const u32* n = row<u32>(w, c->s[2]);
    bool clamp = c->has(flag::SAT), right = c->sub != 0;
    fill<u32>(w, c->d[0], mask, [=](int l) {
        u64 both = u64(b[l]) << 32 | a[l];
        u32 k = clamp ? (n[l] < 32 ? n[l] : 32) : n[l] & 31;
        return right ? u32(both >> k) : u32((both << k) >> 32);
    });
    return c + 1;
}

// ---- bit fields ----

template <class U, class S, bool kSigned>
const Code* bfe(Warp& w, const Code* c, u32 mask) {
    constexpr u32 W = 8 * sizeof(U);
    const U* a = row<U>(w, c->s[0]);
    const u32* b = row<u32>(w, c->s[1]);
    const u32* e = row<u32>(w, c->s[2]);
    fill<U>(w, c->d[0], mask, [=](int l) {
        u32 at = b[l] & 0xFF, n = e[l] & 0xFF;
        U x = a[l];
        if constexpr (kSigned) {
            U whole = U(S(x) >> (at < W ? at : W - 1));
            u32 left = (W - at - n) & (W - 1), right = (W - n) & (W - 1);
            U part = U(S(x << left) >> right);
            return n == 0 ? U(0) : at + n >= W ? whole : part;
        } else {
            U whole = at < W ? x >> (at & (W - 1)) : U(0);
            return n < W ? whole & ((U(1) << (n & (W - 1))) - 1) : whole;
        }
    });
    return c + 1;
}

template <class U>
const Code* bfi(Warp& w, const Code* c, u32 mask) {
    constexpr u32 W = 8 * sizeof(U);
    const U* a = row<U>(w, c->s[0]);
    const U* b = row<U>(w, c->s[1]);
    const u32* p = row<u32>(w, c->s[2]);
    const u32* n = row<u32>(w, c->s[3]);
    fill<U>(w, c->d[0], mask, [=](int l) {
        u32 at = p[l] & 0xFF, len = n[l] & 0xFF;
        U ones = len < W ? (U(1) << (len & (W - 1))) - 1 : ~U(0);
        U field = at < W ? ones << (at & (W - 1)) : U(0);
        return (b[l] & ~field) | (at < W ? (a[l] << (at & (W - 1))) & field : U(0));
    });
    return c + 1;
}

// Results are 32 bits wide whatever the source is.
template <class U, class F>
const Code* to_word(Warp& w, const Code* c, u32 mask) {
    const U* a = row<U>(w, c->s[0]);
    fill_lanes<u32>(w, c->d[0], mask, [=](int l) { return F::f(a[l]); });
    return c + 1;
}
struct Popc {
    static u32 f(u32 x) { return __builtin_popcount(x); }
    static u32 f(u64 x) { return __builtin_popcountll(x); }
};
struct Clz {
    static u32 f(u32 x) { return x ? __builtin_clz(x) : 32; }
    static u32 f(u64 x) { return x ? __builtin_clzll(x) : 64; }
};
template <bool kShift>
struct Bfind {
    template <class U>
    static u32 f(U x) {
        if (x == 0) return kNone;
        u32 at = 8 * sizeof(U) - 1 - Clz::f(x);
        return kShift ? 8 * sizeof(U) - 1 - at : at;
    }
};
template <bool kShift>
struct BfindSigned {
    static u32 f(u32 x) { return Bfind<kShift>::f(i32(x) < 0 ? ~x : x); }
    static u32 f(u64 x) { return Bfind<kShift>::f(i64(x) < 0 ? ~x : x); }
};
struct Brev {
    static u32 f(u32 x) {
        x = (x >> 1 & 0x55555555) | (x & 0x55555555) << 1;
        x = (x >> 2 & 0x33333333) | (x & 0x33333333) << 2;
        x = (x >> 4 & 0x0F0F0F0F) | (x & 0x0F0F0F0F) << 4;
        return __builtin_bswap32(x);
    }
    static u64 f(u64 x) { return u64(f(u32(x))) << 32 | f(u32(x >> 32)); }
};

template <class U>
const Code* lop3(Warp& w, const Code* c, u32 mask) {
    const U* a = row<U>(w, c->s[0]);
    const U* b = row<U>(w, c->s[1]);
    const U* e = row<U>(w, c->s[2]);
    U t[8];
    for (int k = 0; k < 8; ++k) t[k] = c->imm >> k & 1 ? ~U(0) : U(0);
    fill<U>(w, c->d[0], mask, [=](int l) {
        U x = a[l], y = b[l], z = e[l];
        U low = (~y & ((~z & t[0]) | (z & t[1]))) | (y & ((~z & t[2]) | (z & t[3])));
        U top = (~y & ((~z & t[4]) | (z & t[5]))) | (y & ((~z & t[6]) | (z & t[7])));
        return (~x & low) | (x & top);
    });
    return c + 1;
}

// Byte selectors of the modes F4E, B4E, RC8, ECL, ECR, RC16 for each value of the two low bits.
constexpr u16 kPrmtModes[7][4] = {
    {},
    {0x3210, 0x4321, 0x5432, 0x6543},  // f4e
    {0x5670, 0x6701, 0x7012, 0x0123},  // b4e
    {0x0000, 0x1111, 0x2222, 0x3333},  // rc8
    {0x3210, 0x3211, 0x3222, 0x3333},  // ecl
    {0x0000, 0x1110, 0x2210, 0x3210},  // ecr
    {0x1010, 0x3232, 0x1010, 0x3232},  // rc16
};

const Code* prmt(Warp& w, const Code* c, u32 mask) {
    const u32* a = row<u32>(w, c->s[0]);
    const u32* b = row<u32>(w, c->s[1]);
    const u32* e = row<u32>(w, c->s[2]);
    u32 mode = c->sub;
    auto select = [=](u32 x, u32 y, u32 sel) {
        u64 both = u64(y) << 32 | x;
        u32 out = 0;
        for (int i = 0; i < 4; ++i) {
            u32 s = sel >> (4 * i) & 15;
            u32 byte = u32(both >> ((s & 7) * 8)) & 0xFF;
            byte = s & 8 ? (0u - (byte >> 7)) & 0xFF : byte;
            out |= byte << (8 * i);
        }
        return out;
    };
    if (mode == 0) {
        fill<u32>(w, c->d[0], mask, [=](int l) { return select(a[l], b[l], e[l]); });
    } else {
        fill_lanes<u32>(w, c->d[0], mask,
                        [=](int l) { return select(a[l], b[l], kPrmtModes[mode][e[l] & 3]); });
    }
    return c + 1;
}

struct Szext {  // bits above the count become copies of the sign (or zero)
    static u32 f(u32 a, u32 n) { return n >= 32 ? a : a & ((1u << n) - 1); }
    static i32 f(i32 a, i32 k) {
        u32 n = u32(k);
        return n >= 32 ? a : n == 0 ? 0 : i32(u32(a) << (32 - n)) >> (32 - n);
    }
};
struct SzextWrap {
    template <class V>
    static V f(V a, V n) {
        return Szext::f(a, V(n & 31));
    }
};
// The n-th set bit from a base, upwards or downwards.
const Code* find_nth_set(Warp& w, const Code* c, u32 mask) {
    const u32* a = row<u32>(w, c->s[0]);
    const u32* base = row<u32>(w, c->s[1]);
    const i32* offset = row<i32>(w, c->s[2]);
    fill_lanes<u32>(w, c->d[0], mask, [=](int l) {
        i64 at = base[l], step = offset[l] < 0 ? -1 : 1;
        i64 left = offset[l] == 0 ? 0 : std::abs(i64(offset[l])) - 1;
        for (; at >= 0 && at < 32; at += step) {
            if ((a[l] >> at & 1) && left-- == 0) return u32(at);
            if (offset[l] == 0) break;
        }
        return kNone;
    });
    return c + 1;
}

struct Bmsk {
    static u32 f(u32 at, u32 n) {
        if (at >= 32) return 0;
        return (n >= 32 ? ~0u : (1u << n) - 1) << at;
    }
};
struct BmskWrap {
    static u32 f(u32 at, u32 n) { return Bmsk::f(at & 31, n & 31); }
};

}  // namespace

Form resolve_bits(const Code& c) {
    Form f;
    Type t = c.type;
    char k = letter(t);
    bool wide64 = k == '2';
    switch (c.op) {
        case Op::SHL:
        case Op::SHR:
            f = {shift_of(t, c.op == Op::SHL), {k, '-'}, {k, '1', '-', '-'}, ""};
            return f;
        case Op::SHF:
            return {funnel, "1-", "111-", ""};
        case Op::BFE:
            f.run = t == Type::U32   ? bfe<u32, i32, false>
                    : t == Type::S32 ? bfe<u32, i32, true>
                    : t == Type::U64 ? bfe<u64, i64, false>
                    : t == Type::S64 ? bfe<u64, i64, true>
                                     : nullptr;
            f.d = {k, '-'};
            f.s = {k, '1', '1', '-'};
            return f;
        case Op::BFI:
            return {wide64 ? bfi<u64> : bfi<u32>, {k, '-'}, {k, k, '1', '1'}, ""};
        case Op::POPC:
            return {wide64 ? to_word<u64, Popc> : to_word<u32, Popc>, "1-", {k, '-', '-', '-'}, ""};
        case Op::CLZ:
            return {wide64 ? to_word<u64, Clz> : to_word<u32, Clz>, "1-", {k, '-', '-', '-'}, ""};
        case Op::BREV:
            return {
                wide64 ? unary<LU64, Brev> : unary<LU32, Brev>, {k, '-'}, {k, '-', '-', '-'}, ""};
        case Op::BFIND:
            f.d = "1-";
            f.s = {k, '-', '-', '-'};
            if (c.has(flag::HI)) {
                f.run = t == Type::U32   ? to_word<u32, Bfind<true>>
                        : t == Type::U64 ? to_word<u64, Bfind<true>>
                        : t == Type::S32 ? to_word<u32, BfindSigned<true>>
                        : t == Type::S64 ? to_word<u64, BfindSigned<true>>
                                         : nullptr;
            } else {
                f.run = t == Type::U32   ? to_word<u32, Bfind<false>>
                        : t == Type::U64 ? to_word<u64, Bfind<false>>
                        : t == Type::S32 ? to_word<u32, BfindSigned<false>>
                        : t == Type::S64 ? to_word<u64, BfindSigned<false>>
                                         : nullptr;
            }
            return f;
        case Op::LOP3:
            if (c.d[1] != kNone) return f;
            return {wide64 ? lop3<u64> : lop3<u32>, {k, '-'}, {k, k, k, '-'}, ""};
        case Op::PRMT:
            return {c.sub < 7 ? prmt : nullptr, "1-", "111-", ""};
        case Op::SZEXT:
            f.run = t == Type::S32
                        ? (c.has(flag::SAT) ? binary<LS32, Szext> : binary<LS32, SzextWrap>)
                        : (c.has(flag::SAT) ? binary<LU32, Szext> : binary<LU32, SzextWrap>);
            return {f.run, "1-", "11--", ""};
        case Op::BMSK:
            return {c.has(flag::SAT) ? binary<LU32, Bmsk> : binary<LU32, BmskWrap>, "1-", "11--",
                    ""};
        case Op::FNS:
            return {find_nth_set, "1-", "111-", ""};
        default:
            return f;
    }
}

}  // namespace ptx
