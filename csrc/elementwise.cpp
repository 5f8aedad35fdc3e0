// Elementwise kernels: the loops around the expressions of elementwise.h. Each expression is
// compiled for vectors of float32 (which serve float32, float16 and bfloat16), for double and,
// where it makes sense, for int64 (all integers and bool); strides and dtypes are the business of
// strided.h. Where all operands are bfloat16, tiles are, too: converted a vector at a time.
#include "elementwise.h"

#include <algorithm>

#include "power.h"
#include "strided.h"
#include "vmath.h"

namespace mg {

static inline int64_t pow(int64_t base, int64_t exponent) {
    if (exponent < 0) return base == 1 ? 1 : base == -1 ? (exponent % 2 ? -1 : 1) : 0;
    int64_t result = 1;
    for (; exponent; exponent >>= 1, base *= base)
        if (exponent & 1) result *= base;
    return result;
}

// A divisor of 0 is refused before (ops/binary.py), and gives 0 as in NumPy; the smallest integer
// by -1 would trap.
static inline int64_t floor_divide(int64_t a, int64_t b) {
    if (b == 0 || b == -1) return b * a;
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}
static inline int64_t remainder(int64_t a, int64_t b) {
    if (b == 0 || b == -1) return 0;
    int64_t rest = a % b;
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

namespace {

#define c(value) splat<V>(value)

template <class C>
using VectorOf = std::conditional_t<std::is_same_v<C, float> || std::is_same_v<C, bf16>, vf, C>;

// Applies op(V...) over n elements: by whole vectors where there are, with a partial one at the
// end.
template <class Op, class C, class... In>
MG_INLINE void apply(Op op, int64_t n, C* out, const In*... in) {
    int64_t i = 0;
    if constexpr (std::is_same_v<VectorOf<C>, vf>) {
        for (; i + VL <= n; i += VL) store(out + i, op(load(in + i)...));
        if (i < n) store(out + i, op(load(in + i, n - i)...), n - i);
    } else {
        for (; i < n; i++) out[i] = op(in[i]...);
    }
}

// ---- tile loops, one set per table line; a missing int64 loop is a null pointer ----

template <class C>
using UnaryTile = void (*)(int64_t n, const C* x, double p, C* out);
template <class C>
using GradTile = void (*)(int64_t n, const C* g, const C* x, const C* y, double p, C* out);
template <class C>
using BinaryTile = void (*)(int64_t n, const C* a, const C* b, C* out);
template <class C>
using TruthTile = void (*)(int64_t n, const C* a, const C* b, uint8_t* out);

#define UNARY_TILE(name, types, value, gradient)                                          \
    template <class C>                                                                    \
    void name##_tile(int64_t n, const C* xs, [[maybe_unused]] double parameter, C* out) { \
        using T [[maybe_unused]] = C;                                                     \
        using V = VectorOf<C>;                                                            \
        [[maybe_unused]] const V p = c(parameter);                                        \
        apply([&](V x) -> V { return value; }, n, out, xs);                               \
    }                                                                                     \
    template <class C>                                                                    \
    void name##_bwd_tile(int64_t n, const C* gs, const C* xs, const C* ys,                \
                         [[maybe_unused]] double parameter, C* out) {                     \
        using T [[maybe_unused]] = C;                                                     \
        using V = VectorOf<C>;                                                            \
        [[maybe_unused]] const V p = c(parameter);                                        \
        apply([&]([[maybe_unused]] V g, [[maybe_unused]] V x,                             \
                  [[maybe_unused]] V y) -> V { return gradient; },                        \
              n, out, gs, xs, ys);                                                        \
    }
MG_UNARY(UNARY_TILE)

#define BINARY_TILE(name, types, value)                              \
    template <class C>                                               \
    void name##_tile(int64_t n, const C* as, const C* bs, C* out) {  \
        using V = VectorOf<C>;                                       \
        apply([&](V a, V b) -> V { return value; }, n, out, as, bs); \
    }
MG_BINARY(BINARY_TILE)

#define TRUTH_TILE(name, types, truth)                                    \
    template <class C>                                                    \
    void name##_tile(int64_t n, const C* as, const C* bs, uint8_t* out) { \
        using V [[maybe_unused]] = C;                                     \
        for (int64_t i = 0; i < n; i++) {                                 \
            C a = as[i], b = bs[i];                                       \
            out[i] = static_cast<uint8_t>(truth);                         \
        }                                                                 \
    }
MG_COMPARISON(TRUTH_TILE)

#undef c

// ---- the loops over arrays ----

template <class C>
void run_unary(const char* name, UnaryTile<C> tile, const Array& x, const Array& out, double p) {
    Strided<2>(name, {&x, &out})
        .template run<C>([&](char* const* at, const int64_t* step, int64_t n) {
            alignas(64) C xs[kTile], result[kTile];
            C* to = output_tile(out.dtype, at[1], step[1], result);
            tile(n, load_tile(x.dtype, at[0], step[0], n, xs), p, to);
            store_tile(out.dtype, at[1], step[1], n, to);
        });
}

// x or y may be missing where the gradient does not read it: g stands in.
template <class C>
void run_unary_bwd(const char* name, GradTile<C> tile, const Array& g, const Array& x,
                   const Array& y, const Array& out, double p) {
    const Array& in = x ? x : g;
    const Array& result = y ? y : g;
    Strided<4>(name, {&g, &in, &result, &out})
        .template run<C>([&](char* const* at, const int64_t* step, int64_t n) {
            alignas(64) C gs[kTile], xs[kTile], ys[kTile], grads[kTile];
            C* to = output_tile(out.dtype, at[3], step[3], grads);
            const C* from = load_tile(g.dtype, at[0], step[0], n, gs);
            tile(n, from, x ? load_tile(in.dtype, at[1], step[1], n, xs) : from,
                 y ? load_tile(result.dtype, at[2], step[2], n, ys) : from, p, to);
            store_tile(out.dtype, at[3], step[3], n, to);
        });
}

template <class C>
void run_binary(const char* name, BinaryTile<C> tile, const Array& a, const Array& b,
                const Array& out) {
    Strided<3>(name, {&a, &b, &out})
        .template run<C>([&](char* const* at, const int64_t* step, int64_t n) {
            alignas(64) C as[kTile], bs[kTile], result[kTile];
            C* to = output_tile(out.dtype, at[2], step[2], result);
            tile(n, load_tile(a.dtype, at[0], step[0], n, as),
                 load_tile(b.dtype, at[1], step[1], n, bs), to);
            store_tile(out.dtype, at[2], step[2], n, to);
        });
}

template <class C>
void run_comparison(const char* name, TruthTile<C> tile, const Array& a, const Array& b,
                    const Array& out) {
    if (out.dtype != DType::b8) unsupported(name, out.dtype, "an output of bool");
    Strided<3>(name, {&a, &b, &out}).run([&](char* const* at, const int64_t* step, int64_t n) {
        alignas(64) C as[kTile], bs[kTile];
        uint8_t result[kTile];
        uint8_t* to = step[2] == 1 ? reinterpret_cast<uint8_t*>(at[2]) : result;
        tile(n, load_tile(a.dtype, at[0], step[0], n, as),
             load_tile(b.dtype, at[1], step[1], n, bs), to);
        for (int64_t i = 0; to == result && i < n; i++)
            at[2][i * step[2]] = static_cast<char>(result[i]);
    });
}

#define INT64_any(function) function<int64_t>
#define INT64_real(function) nullptr

// Whether tiles are of bfloat16: all operands are that are there.
bool all_bf16(std::initializer_list<const Array*> operands) {
    return std::all_of(operands.begin(), operands.end(),
                       [](const Array* a) { return !*a || a->dtype == DType::bf16; });
}

// Picks the loop for the dtype.
#define DISPATCH(name, types, tile, run, Tile, dtype, ...)                                         \
    for_compute_type(dtype, [&](auto type) {                                                       \
        using C = decltype(type);                                                                  \
        if constexpr (std::is_same_v<C, int64_t>) {                                                \
            Tile<int64_t> loop = INT64_##types(tile);                                              \
            if (loop == nullptr) unsupported(#name, dtype, "float32, float64, float16, bfloat16"); \
            run<int64_t>(#name, loop, __VA_ARGS__);                                                \
        } else {                                                                                   \
            run<C>(#name, tile<C>, __VA_ARGS__);                                                   \
        }                                                                                          \
    })

}  // namespace

#define UNARY(name, types, value, gradient)                                                       \
    void name(const Array& x, const Array& out, double p) {                                       \
        if (all_bf16({&x, &out})) return run_unary<bf16>(#name, name##_tile<bf16>, x, out, p);    \
        DISPATCH(name, types, name##_tile, run_unary, UnaryTile, x.dtype, x, out, p);             \
    }                                                                                             \
    void name##_bwd(const Array& g, const Array& x, const Array& y, const Array& out, double p) { \
        if (all_bf16({&g, &x, &y, &out}))                                                         \
            return run_unary_bwd<bf16>(#name "_bwd", name##_bwd_tile<bf16>, g, x, y, out, p);     \
        DISPATCH(name##_bwd, real, name##_bwd_tile, run_unary_bwd, GradTile, g.dtype, g, x, y,    \
                 out, p);                                                                         \
    }
MG_UNARY(UNARY)

#define BINARY(name, types, value)                                                      \
    void name(const Array& a, const Array& b, const Array& out) {                       \
        if (all_bf16({&a, &b, &out}))                                                   \
            return run_binary<bf16>(#name, name##_tile<bf16>, a, b, out);               \
        DISPATCH(name, types, name##_tile, run_binary, BinaryTile, a.dtype, a, b, out); \
    }
MG_BINARY(BINARY)

#define COMPARISON(name, types, truth)                                                     \
    void name(const Array& a, const Array& b, const Array& out) {                          \
        DISPATCH(name, types, name##_tile, run_comparison, TruthTile, a.dtype, a, b, out); \
    }
MG_COMPARISON(COMPARISON)

void where(const Array& condition, const Array& a, const Array& b, const Array& out) {
    if (condition.dtype != DType::b8) unsupported("where", condition.dtype, "a bool condition");
    Strided<4> s("where", {&condition, &a, &b, &out});
    for_compute_type(out.dtype, [&](auto type) {
        using C = decltype(type);
        s.run([&](char* const* at, const int64_t* step, int64_t n) {
            alignas(64) C as[kTile], bs[kTile], result[kTile];
            const C* yes = load_tile(a.dtype, at[1], step[1], n, as);
            const C* no = load_tile(b.dtype, at[2], step[2], n, bs);
            C* to = output_tile(out.dtype, at[3], step[3], result);
            for (int64_t i = 0; i < n; i++) to[i] = at[0][i * step[0]] ? yes[i] : no[i];
            store_tile(out.dtype, at[3], step[3], n, to);
        });
    });
}

// NaN stays NaN.
template <class C, class Limit>
static void run_clip(const Array& x, const Array& out, Limit least, Limit most) {
    using V = VectorOf<C>;
    auto limit = [](Limit value) {  // an int64 would not survive splat
        if constexpr (std::is_same_v<V, vf>) {
            return broadcast(static_cast<float>(value));
        } else {
            return static_cast<V>(value);
        }
    };
    V low = limit(least), high = limit(most);
    Strided<2>("clip", {&x, &out})
        .template run<C>([&](char* const* at, const int64_t* step, int64_t n) {
            alignas(64) C xs[kTile], result[kTile];
            C* to = output_tile(out.dtype, at[1], step[1], result);
            apply(
                [&](V value) -> V {
                    V raised = select(value < low, low, value);
                    return select(raised > high, high, raised);
                },
                n, to, load_tile(x.dtype, at[0], step[0], n, xs));
            store_tile(out.dtype, at[1], step[1], n, to);
        });
}

void clip(const Array& x, const Array& out, double low, double high) {
    if (all_bf16({&x, &out})) return run_clip<bf16>(x, out, low, high);
    for_compute_type(x.dtype, [&](auto type) {
        using C = decltype(type);
        if constexpr (std::is_same_v<C, int64_t>) {  // infinities do not convert
            run_clip<C>(x, out, low <= -9.2e18 ? INT64_MIN : static_cast<C>(low),
                        high >= 9.2e18 ? INT64_MAX : static_cast<C>(high));
        } else {
            run_clip<C>(x, out, low, high);
        }
    });
}

}  // namespace mg
