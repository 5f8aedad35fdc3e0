// Handlers for operations that treat every lane alike: templates over how a register's bits are
// read (the L* structs) and what is computed (a functor).
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "numeric.h"
#include "resolve.h"

namespace ptx {

// ---- how registers are read: R = a lane of the row, V = what is computed with ----

template <class T>
struct Plain {
    using R = T;
    using V = T;
    static PTX_INLINE V get(R x) { return x; }
    static PTX_INLINE R put(V x) { return x; }
};
using LU32 = Plain<u32>;
using LS32 = Plain<i32>;
using LU64 = Plain<u64>;
using LS64 = Plain<i64>;
using LF32 = Plain<float>;
using LF64 = Plain<double>;
struct LU16 {
    using R = u32;
    using V = u32;
    static PTX_INLINE V get(R x) { return x & 0xFFFF; }
    static PTX_INLINE R put(V x) { return x & 0xFFFF; }
};
struct LS16 {
    using R = u32;
    using V = i32;
    static PTX_INLINE V get(R x) { return static_cast<i32>(x << 16) >> 16; }
    static PTX_INLINE R put(V x) { return static_cast<u32>(x) & 0xFFFF; }
};
struct LF32Z {  // .ftz
    using R = float;
    using V = float;
    static PTX_INLINE V get(R x) { return flush(x); }
    static PTX_INLINE R put(V x) { return flush(x); }
};
struct LF16 {
    using R = u32;
    using V = float;
    static PTX_INLINE V get(R x) { return half_to_float(x); }
    static PTX_INLINE R put(V x) { return float_to_half(x); }
};
struct LF16Z {
    using R = u32;
    using V = float;
    static PTX_INLINE V get(R x) { return half_to_float(flush_half(x)); }
    static PTX_INLINE R put(V x) { return flush_half(float_to_half(x)); }
};
struct LBF16 {
    using R = u32;
    using V = float;
    static PTX_INLINE V get(R x) { return bf16_to_float(x & 0xFFFF); }
    static PTX_INLINE R put(V x) { return float_to_bf16(x); }
};
// Two values in a register: an operation runs on each half.
template <class L>
struct Twice : L {};

// ---- writing a row under a mask ----

template <class D, class F>
inline void fill(const Warp& w, u32 offset, u32 mask, F f) {
    D* d = row<D>(w, offset);
    if (mask == kFull) {
#pragma GCC ivdep
        for (int l = 0; l < kLanes; ++l) d[l] = f(l);
        return;
    }
    alignas(64) D t[kLanes];
#pragma GCC ivdep
    for (int l = 0; l < kLanes; ++l) t[l] = f(l);
#pragma GCC ivdep
    for (int l = 0; l < kLanes; ++l) d[l] = mask >> l & 1 ? t[l] : d[l];
}

// One bit a lane of 32 or 64-bit lanes that are 0 or all ones.
inline u32 mask_of(const i32* t) {
#if defined(__AVX2__)
    u32 out = 0;
    for (int v = 0; v < 4; ++v) {
        out |= static_cast<u32>(
                   _mm256_movemask_ps(_mm256_load_ps(reinterpret_cast<const float*>(t) + 8 * v)))
               << (8 * v);
    }
    return out;
#else
    u32 out = 0;
    for (int l = 0; l < kLanes; ++l) out |= static_cast<u32>(t[l] & 1) << l;
    return out;
#endif
}
inline u32 mask_of(const i64* t) {
#if defined(__AVX2__)
    u32 out = 0;
    for (int v = 0; v < 8; ++v) {
        out |= static_cast<u32>(
                   _mm256_movemask_pd(_mm256_load_pd(reinterpret_cast<const double*>(t) + 4 * v)))
               << (4 * v);
    }
    return out;
#else
    u32 out = 0;
    for (int l = 0; l < kLanes; ++l) out |= static_cast<u32>(t[l] & 1) << l;
    return out;
#endif
}

// For what is rare or does not vectorise.
template <class D, class F>
inline void fill_lanes(const Warp& w, u32 offset, u32 mask, F f) {
    D* d = row<D>(w, offset);
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        d[l] = f(l);
    }
}

template <class L, class F>
struct Apply {
    using R = typename L::R;
    static PTX_INLINE R one(R a) { return L::put(F::f(L::get(a))); }
    static PTX_INLINE R two(R a, R b) { return L::put(F::f(L::get(a), L::get(b))); }
    static PTX_INLINE R three(R a, R b, R c) {
        return L::put(F::f(L::get(a), L::get(b), L::get(c)));
    }
};
template <class L, class F>
struct Apply<Twice<L>, F> {
    using R = u32;
    using A = Apply<L, F>;
    static PTX_INLINE R join(u32 low, u32 high) { return (low & 0xFFFF) | high << 16; }
    static PTX_INLINE R one(R a) { return join(A::one(a & 0xFFFF), A::one(a >> 16)); }
    static PTX_INLINE R two(R a, R b) {
        return join(A::two(a & 0xFFFF, b & 0xFFFF), A::two(a >> 16, b >> 16));
    }
    static PTX_INLINE R three(R a, R b, R c) {
        return join(A::three(a & 0xFFFF, b & 0xFFFF, c & 0xFFFF),
                    A::three(a >> 16, b >> 16, c >> 16));
    }
};

template <class L, class F>
const Code* unary(Warp& w, const Code* c, u32 mask) {
    using R = typename L::R;
    const R* a = row<R>(w, c->s[0]);
    fill<R>(w, c->d[0], mask, [=](int l) { return Apply<L, F>::one(a[l]); });
    return c + 1;
}

template <class L, class F>
const Code* binary(Warp& w, const Code* c, u32 mask) {
    using R = typename L::R;
    const R* a = row<R>(w, c->s[0]);
    const R* b = row<R>(w, c->s[1]);
    fill<R>(w, c->d[0], mask, [=](int l) { return Apply<L, F>::two(a[l], b[l]); });
    return c + 1;
}

template <class L, class F>
const Code* ternary(Warp& w, const Code* c, u32 mask) {
    using R = typename L::R;
    const R* a = row<R>(w, c->s[0]);
    const R* b = row<R>(w, c->s[1]);
    const R* e = row<R>(w, c->s[2]);
    fill<R>(w, c->d[0], mask, [=](int l) { return Apply<L, F>::three(a[l], b[l], e[l]); });
    return c + 1;
}

// ---- functors of integers and floats ----

struct Add {
    template <class V>
    static V f(V a, V b) {
        return a + b;
    }
};
struct Sub {
    template <class V>
    static V f(V a, V b) {
        return a - b;
    }
};
struct Mul {
    template <class V>
    static V f(V a, V b) {
        return a * b;
    }
};

// ---- choosing a handler by type ----

// The handler of a functor for every integer type.
template <template <class, class> class H, class F>
Handler by_integer(Type t) {
    switch (t) {
        case Type::U16:
        case Type::B16:
            return H<LU16, F>::run;
        case Type::S16:
            return H<LS16, F>::run;
        case Type::U32:
        case Type::B32:
            return H<LU32, F>::run;
        case Type::S32:
            return H<LS32, F>::run;
        case Type::U64:
        case Type::B64:
            return H<LU64, F>::run;
        case Type::S64:
            return H<LS64, F>::run;
        case Type::U16X2:
            return H<Twice<LU16>, F>::run;
        case Type::S16X2:
            return H<Twice<LS16>, F>::run;
        default:
            return nullptr;
    }
}
// For operations to which the sign does not matter.
template <template <class, class> class H, class F>
Handler by_width(Type t) {
    switch (bytes_of(t)) {
        case 2:
            return H<LU16, F>::run;
        case 4:
            return t == Type::U16X2 || t == Type::S16X2 ? H<Twice<LU16>, F>::run : H<LU32, F>::run;
        case 8:
            return H<LU64, F>::run;
        default:
            return nullptr;
    }
}
template <template <class, class> class H, class F>
Handler by_float(Type t, bool ftz) {
    switch (t) {
        case Type::F32:
            return ftz ? H<LF32Z, F>::run : H<LF32, F>::run;
        case Type::F64:
            return H<LF64, F>::run;
        case Type::F16:
            return ftz ? H<LF16Z, F>::run : H<LF16, F>::run;
        case Type::F16X2:
            return ftz ? H<Twice<LF16Z>, F>::run : H<Twice<LF16>, F>::run;
        case Type::BF16:
            return H<LBF16, F>::run;
        case Type::BF16X2:
            return H<Twice<LBF16>, F>::run;
        default:
            return nullptr;
    }
}

template <class L, class F>
struct Unary {
    static constexpr Handler run = unary<L, F>;
};
template <class L, class F>
struct Binary {
    static constexpr Handler run = binary<L, F>;
};
template <class L, class F>
struct Ternary {
    static constexpr Handler run = ternary<L, F>;
};

}  // namespace ptx
