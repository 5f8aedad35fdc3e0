// CVT: common pairs of types as loops that vectorise, every other one through double, a lane at a
// time.
#include <type_traits>

#include "lanes.h"

namespace ptx {
namespace {

// ---- integers to integers ----

struct LS8 {
    using R = u32;
    using V = i32;
    static V get(R x) { return static_cast<i32>(x << 24) >> 24; }
};
struct LU8 {
    using R = u32;
    using V = u32;
    static V get(R x) { return x & 0xFF; }
};

template <class S, class D>
const Code* truncate(Warp& w, const Code* c, u32 mask) {
    using R = typename S::R;
    using To = typename D::R;
    const R* a = row<R>(w, c->s[0]);
    fill<To>(w, c->d[0], mask, [=](int l) { return D::put(typename D::V(S::get(a[l]))); });
    return c + 1;
}
template <class S>
Handler truncate_from(Type t) {
    switch (bytes_of(t)) {
        case 2:
            return truncate<S, LU16>;
        case 4:
            return truncate<S, LU32>;
        case 8:
            return truncate<S, LU64>;
        default:
            return nullptr;
    }
}
Handler truncate_of(Type to, Type from, bool source64) {
    if (source64) return truncate_from<LU64>(to);  // only where the type is 32 bits or more
    switch (from) {
        case Type::U8:
        case Type::B8:
            return truncate_from<LU8>(to);
        case Type::S8:
            return truncate_from<LS8>(to);
        case Type::U16:
        case Type::B16:
            return truncate_from<LU16>(to);
        case Type::S16:
            return truncate_from<LS16>(to);
        case Type::U32:
        case Type::B32:
            return truncate_from<LU32>(to);
        case Type::S32:
            return truncate_from<LS32>(to);
        case Type::U64:
        case Type::S64:
        case Type::B64:
            return truncate_from<LU64>(to);
        default:
            return nullptr;
    }
}

// ---- registers, a lane at a time ----

u64 read(const Warp& w, u32 offset, int l, bool wide) {
    return wide ? row<u64>(w, offset)[l] : row<u32>(w, offset)[l];
}
void write(const Warp& w, u32 offset, int l, bool wide, u64 x) {
    if (wide) {
        row<u64>(w, offset)[l] = x;
    } else {
        row<u32>(w, offset)[l] = u32(x);
    }
}

i64 extend(u64 x, Type t) {
    switch (t) {
        case Type::S8:
            return i8(x);
        case Type::S16:
            return i16(x);
        case Type::S32:
            return i32(x);
        case Type::U8:
        case Type::B8:
            return u8(x);
        case Type::U16:
        case Type::B16:
            return u16(x);
        case Type::U32:
        case Type::B32:
            return u32(x);
        default:
            return i64(x);
    }
}

// As a register of the instruction holds an integer of the destination's type.
u64 fit(u64 x, const Code* c) {
    i64 v = extend(x, c->type);
    if (c->has(flag::D64) || letter(c->type) == '2') return u64(v);
    if (c->has(flag::WIDE) || bytes_of(c->type) == 4) return u32(v);
    return u16(v);
}

bool wide_source(const Code* c) { return c->has(flag::S64) || letter(c->type2) == '2'; }
bool wide_result(const Code* c) { return c->has(flag::D64) || letter(c->type) == '2'; }

__int128 lowest(Type t) { return is_signed(t) ? -(__int128(1) << (8 * bytes_of(t) - 1)) : 0; }
__int128 highest(Type t) {
    int n = 8 * bytes_of(t);
    return (__int128(1) << (is_signed(t) ? n - 1 : n)) - 1;
}

const Code* integers(Warp& w, const Code* c, u32 mask) {
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        u64 x = u64(extend(read(w, c->s[0], l, wide_source(c)), c->type2));
        if (c->has(flag::SAT)) {
            __int128 v = is_signed(c->type2) ? __int128(i64(x)) : __int128(x);
            __int128 low = lowest(c->type), high = highest(c->type);
            x = u64(v < low ? low : v > high ? high : v);
        }
        write(w, c->d[0], l, wide_result(c), fit(x, c));
    }
    return c + 1;
}

// ---- through double ----

Format format_of(Type t) {
    switch (t) {
        case Type::F16:
        case Type::F16X2:
            return kHalf;
        case Type::BF16:
        case Type::BF16X2:
            return kBf16;
        case Type::TF32:
            return kTf32;
        case Type::E4M3:
        case Type::E4M3X2:
            return kE4m3;
        case Type::E5M2:
        case Type::E5M2X2:
            return kE5m2;
        default:
            return kSingle;
    }
}

double as_double(u64 x, Type t) {
    switch (t) {
        case Type::F64:
            return bits<double>(x);
        case Type::F32:
            return bits<float>(u32(x));
        case Type::F16:
            return half_to_float(u32(x) & 0xFFFF);
        case Type::BF16:
            return bf16_to_float(u32(x) & 0xFFFF);
        case Type::TF32:
            return bits<float>(u32(x) & 0xFFFFE000u);
        default:
            return decode(u32(x), format_of(t));
    }
}

double to_integer(double x, Round round) {
    switch (round) {
        case Round::RZI:
            return std::trunc(x);
        case Round::RMI:
            return std::floor(x);
        case Round::RPI:
            return std::ceil(x);
        default:
            return std::nearbyint(x);
    }
}
bool integral(Round r) {
    return r == Round::RNI || r == Round::RZI || r == Round::RMI || r == Round::RPI;
}

double flushed(double x, const Code* c, Type t) {
    bool single = t == Type::F32 || t == Type::TF32;
    return c->has(flag::FTZ) && single && std::fabs(x) < 0x1p-126 ? std::copysign(0.0, x) : x;
}

const Code* float_to_integer(Warp& w, const Code* c, u32 mask) {
    Round round = integral(c->round)      ? c->round
                  : c->round == Round::RZ ? Round::RZI
                  : c->round == Round::RM ? Round::RMI
                  : c->round == Round::RP ? Round::RPI
                                          : Round::RNI;
    bool nan_is_zero = c->type2 != Type::F64 && bytes_of(c->type) != 8;
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        double x = flushed(as_double(read(w, c->s[0], l, wide_source(c)), c->type2), c, c->type2);
        u64 out;
        if (std::isnan(x)) {
            out = nan_is_zero ? 0 : u64(1) << (8 * bytes_of(c->type) - 1);
        } else {
            x = to_integer(x, round);
            __int128 low = lowest(c->type), high = highest(c->type);
            out = x <= double(low) ? u64(low) : x >= double(high) ? u64(high) : u64(__int128(x));
        }
        write(w, c->d[0], l, wide_result(c), fit(out, c));
    }
    return c + 1;
}

u64 encoded(double x, Type t, Round round, bool satfinite) {
    if (t == Type::F64) return bits<u64>(x);
    u32 code = encode(x, format_of(t), round, satfinite);
    return t == Type::TF32 ? code << 13 : code;
}

// .relu keeps NaN; .sat clamps to [0, 1] and makes it 0.
double limited(double x, const Code* c, bool clamp) {
    if (c->has(flag::RELU) && x <= 0) x = 0;
    if (clamp) x = x > 1 ? 1 : x > 0 ? x : 0;
    return x;
}

// Into 8 bits, tf32 and packed pairs .sat means .satfinite.
bool finite_only(const Code* c) {
    return c->has(flag::SAT) &&
           (bytes_of(c->type) == 1 || c->type == Type::TF32 || c->type == Type::F16X2 ||
            c->type == Type::BF16X2 || c->type == Type::E4M3X2 || c->type == Type::E5M2X2);
}

const Code* integer_to_float(Warp& w, const Code* c, u32 mask) {
    int mode = c->round == Round::RZ   ? FE_TOWARDZERO
               : c->round == Round::RM ? FE_DOWNWARD
               : c->round == Round::RP ? FE_UPWARD
                                       : FE_TONEAREST;
    int before = std::fegetround();
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        volatile i64 x = extend(read(w, c->s[0], l, wide_source(c)), c->type2);
        bool is_unsigned = !is_signed(c->type2);
        u64 out;
        std::fesetround(mode);
        if (c->type == Type::F32) {
            volatile float f = is_unsigned ? float(u64(x)) : float(i64(x));
            std::fesetround(before);
            out = bits<u32>(float(f));
        } else {
            volatile double f = is_unsigned ? double(u64(x)) : double(i64(x));
            std::fesetround(before);
            out = encoded(limited(f, c, c->has(flag::SAT)), c->type, c->round, false);
        }
        write(w, c->d[0], l, wide_result(c), out);
    }
    return c + 1;
}

const Code* float_to_float(Warp& w, const Code* c, u32 mask) {
    bool finite = finite_only(c);
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        double x = flushed(as_double(read(w, c->s[0], l, wide_source(c)), c->type2), c, c->type2);
        if (integral(c->round)) x = to_integer(x, c->round);
        x = limited(x, c, c->has(flag::SAT) && !finite);
        u64 out = encoded(x, c->type, c->round, finite);
        if (c->type == Type::F32)
            out = bits<u32>(float(flushed(bits<float>(u32(out)), c, Type::F32)));
        write(w, c->d[0], l, wide_result(c), out);
    }
    return c + 1;
}

Type element(Type t) {
    switch (t) {
        case Type::F16X2:
            return Type::F16;
        case Type::BF16X2:
            return Type::BF16;
        case Type::E4M3X2:
            return Type::E4M3;
        case Type::E5M2X2:
            return Type::E5M2;
        default:
            return t;
    }
}

// Two values into one register: from two of float32 (the first is the upper), or from a pair.
const Code* to_pair(Warp& w, const Code* c, u32 mask) {
    Type to = element(c->type), from = element(c->type2);
    bool two_sources = c->type2 == Type::F32;
    int width = 8 * bytes_of(from), shift = 8 * bytes_of(to);
    bool finite = c->has(flag::SAT);
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        u64 a = row<u32>(w, c->s[0])[l];
        u64 high = two_sources ? a : a >> width & ((1u << width) - 1);
        u64 low = two_sources ? row<u32>(w, c->s[1])[l] : a & ((1u << width) - 1);
        u64 out = 0;
        for (int i = 0; i < 2; ++i) {
            double x = flushed(as_double(i ? high : low, from), c, from);
            out |= encoded(limited(x, c, false), to, c->round, finite) << (i ? shift : 0);
        }
        row<u32>(w, c->d[0])[l] = u32(out);
    }
    return c + 1;
}

// ---- what is common, fast ----

template <class S, class D>
const Code* floats(Warp& w, const Code* c, u32 mask) {
    using R = typename S::R;
    using To = typename D::R;
    const R* a = row<R>(w, c->s[0]);
    fill<To>(w, c->d[0], mask, [=](int l) { return D::put(typename D::V(S::get(a[l]))); });
    return c + 1;
}

// Eight floats to float16, 32 bits each.
typedef u32 U32x8 __attribute__((vector_size(32)));
inline U32x8 eight_to_half(const float* x) {
#if defined(__F16C__)
    __m256 v = _mm256_load_ps(x);
    __m256i half = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    return (U32x8)_mm256_blendv_epi8(half, _mm256_set1_epi32(0x7FFF), _mm256_castps_si256(nan));
#else
    U32x8 out;
    for (int i = 0; i < 8; ++i) out[i] = float_to_half(x[i]);
    return out;
#endif
}

const Code* pair_of_halves(Warp& w, const Code* c, u32 mask) {
    const float* a = row<float>(w, c->s[0]);
    const float* b = row<float>(w, c->s[1]);
    U32x8 t[kLanes / 8];
    for (int v = 0; v < kLanes / 8; ++v)
        t[v] = eight_to_half(b + 8 * v) | eight_to_half(a + 8 * v) << 16;
    const u32* pairs = reinterpret_cast<const u32*>(t);
    fill<u32>(w, c->d[0], mask, [=](int l) { return pairs[l]; });
    return c + 1;
}

template <class D>
const Code* pair_of_floats(Warp& w, const Code* c, u32 mask) {
    const float* a = row<float>(w, c->s[0]);
    const float* b = row<float>(w, c->s[1]);
    fill<u32>(w, c->d[0], mask, [=](int l) { return D::put(b[l]) | D::put(a[l]) << 16; });
    return c + 1;
}

template <class V>
const Code* word_to_float(Warp& w, const Code* c, u32 mask) {
    const V* a = row<V>(w, c->s[0]);
    fill<float>(w, c->d[0], mask, [=](int l) { return float(a[l]); });
    return c + 1;
}

Handler fast(const Code& c) {
    if (c.flags & (flag::SAT | flag::RELU | flag::FTZ | flag::D64 | flag::S64)) return nullptr;
    bool nearest = c.round == Round::NONE || c.round == Round::RN;
    if (!nearest) return nullptr;
    Type to = c.type, from = c.type2;
    if (to == Type::F32) {
        if (from == Type::F16) return floats<LF16, LF32>;
        if (from == Type::BF16) return floats<LBF16, LF32>;
        if (from == Type::F64) return floats<LF64, LF32>;
        if (from == Type::S32) return word_to_float<i32>;
        if (from == Type::U32) return word_to_float<u32>;
    }
    if (to == Type::F64 && from == Type::F32) return floats<LF32, LF64>;
    if (from == Type::F32) {
        if (to == Type::F16) return floats<LF32, LF16>;
        if (to == Type::BF16) return floats<LF32, LBF16>;
        if (to == Type::F16X2) return pair_of_halves;
        if (to == Type::BF16X2) return pair_of_floats<LBF16>;
    }
    return nullptr;
}

// cvt.pack.sat: a and b saturated into the upper and lower part of 32 bits; with c, its bits above.
const Code* cvt_pack(Warp& w, const Code* c, u32 mask) {
    int width = 8 * bytes_of(c->type);
    bool third = c->s[2] != kNone;
    i64 low = i64(lowest(c->type)), high = i64(highest(c->type));
    u32 ones = width == 16 ? 0xFFFFu : 0xFFu;
    fill_lanes<u32>(w, c->d[0], mask, [=](int l) {
        auto clamp = [=](i64 x) { return u32(x < low ? low : x > high ? high : x) & ones; };
        bool is_unsigned = c->type2 == Type::U32;
        i64 a = is_unsigned ? i64(row<u32>(w, c->s[0])[l]) : row<i32>(w, c->s[0])[l];
        i64 b = is_unsigned ? i64(row<u32>(w, c->s[1])[l]) : row<i32>(w, c->s[1])[l];
        u32 out = clamp(a) << width | clamp(b);
        return third ? row<u32>(w, c->s[2])[l] << (2 * width) | out : out;
    });
    return c + 1;
}

bool any_float(Type t) {
    return t == Type::F16 || t == Type::BF16 || t == Type::F32 || t == Type::F64 ||
           t == Type::TF32 || t == Type::E4M3 || t == Type::E5M2;
}
bool pair(Type t) { return element(t) != t; }
bool integer(Type t) { return (t >= Type::B8 && t <= Type::S64 && t != Type::B128); }

}  // namespace

Form resolve_convert(const Code& c) {
    char d = c.has(flag::D64) || letter(c.type) == '2' ? '2' : '1';
    char s = c.has(flag::S64) || letter(c.type2) == '2' ? '2' : '1';
    Form f{nullptr, {d, '-'}, {s, '-', '-', '-'}};
    if (c.op == Op::CVTPACK) {
        bool small = bytes_of(c.type) == 2 || (bytes_of(c.type) == 1 && integer(c.type));
        return {small && bytes_of(c.type2) == 4 ? cvt_pack : nullptr, "1-",
                c.s[2] != kNone ? "111-" : "11--"};
    }
    Type to = c.type, from = c.type2;
    if (integer(to) && integer(from)) {
        bool plain =
            !c.has(flag::SAT) && (bytes_of(to) >= 4 || (bytes_of(to) == 2 && !c.has(flag::WIDE)));
        plain = plain && (!c.has(flag::D64) || bytes_of(to) == 8) &&
                (!c.has(flag::S64) || bytes_of(from) == 8);
        f.run = plain ? truncate_of(to, from, false) : integers;
    } else if (pair(to)) {
        bool two = from == Type::F32;
        if (!two && !pair(from)) return f;
        f.s = two ? "11--" : "1---";
        f.run = fast(c);
        if (!f.run) f.run = to_pair;
    } else if (any_float(to) && any_float(from)) {
        f.run = fast(c);
        if (!f.run) f.run = float_to_float;
    } else if (any_float(to) && integer(from)) {
        f.run = fast(c);
        if (!f.run) f.run = integer_to_float;
    } else if (integer(to) && any_float(from)) {
        f.run = float_to_integer;
    }
    return f;
}

}  // namespace ptx
