"""Random functions that mean the same on the CPU and on the GPU.

They are compiled twice, by g++ with `-ffp-contract=off` and by NVRTC with `-fmad=false`, and must
return the same bits for the same numbers. Nothing in them is undefined: signed sums go through
unsigned ones, shifts are masked, divisors are odd, only floats within range become integers, loops
end; a NaN is replaced where its bits would show.
"""

from __future__ import annotations

import random

PRELUDE = r"""
typedef unsigned u32;
typedef unsigned long long u64;
typedef long long i64;
#ifdef __CUDACC__
#define BOTH __device__
#ifdef OUT_OF_LINE
#define CALLED __device__ __noinline__
#else
#define CALLED __device__
#endif
#else
#include <cmath>
#define BOTH static
#define CALLED static
#endif
BOTH u32 bits(float x) {
    union { float f; u32 u; } v;
    v.f = x;
    return x != x ? 0x7fc00000u : v.u;
}
BOTH u64 bits(double x) {
    union { double f; u64 u; } v;
    v.f = x;
    return x != x ? 0x7ff8000000000000ull : v.u;
}
BOTH float float_of(u32 u) {
    union { float f; u32 u; } v;
    v.u = u;
    return v.f == v.f ? v.f : 1.0f;
}
BOTH int int_of(float x) { return x > -2e9f && x < 2e9f ? (int)x : 7; }
BOTH i64 long_of(double x) { return x > -9e18 && x < 9e18 ? (i64)x : 9; }
BOTH u32 unsigned_of(float x) { return x >= 0.0f && x < 4e9f ? (u32)x : 11; }
#ifdef __CUDA_ARCH__
BOTH u32 ones(u32 x) { return __popc(x); }
BOTH u32 leading(u32 x) { return __clz(x); }
BOTH u32 reversed(u32 x) { return __brev(x); }
BOTH u32 upper(u32 x, u32 y) { return __umulhi(x, y); }
BOTH int upper_signed(int x, int y) { return __mulhi(x, y); }
BOTH u64 upper64(u64 x, u64 y) { return __umul64hi(x, y); }
BOTH u32 shifted(u32 low, u32 high, u32 by) { return __funnelshift_l(low, high, by); }
#else
BOTH u32 ones(u32 x) { return __builtin_popcount(x); }
BOTH u32 leading(u32 x) { return x ? __builtin_clz(x) : 32; }
BOTH u32 reversed(u32 x) {
    u32 y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1u) << (31 - i);
    return y;
}
BOTH u32 upper(u32 x, u32 y) { return (u64)x * y >> 32; }
BOTH int upper_signed(int x, int y) { return (i64)x * y >> 32; }
BOTH u64 upper64(u64 x, u64 y) { return (unsigned __int128)x * y >> 64; }
BOTH u32 shifted(u32 low, u32 high, u32 by) { return ((u64)high << 32 | low) << (by & 31) >> 32; }
#endif
"""

BINARY = {
    "u32": ["{a} + {b}", "{a} - {b}", "{a} * {b}", "{a} / ({b} | 1u)", "{a} % ({b} | 1u)",
            "{a} & {b}", "{a} | {b}", "{a} ^ {b}", "{a} << ({b} & 31u)", "{a} >> ({b} & 31u)",
            "upper({a}, {b})", "shifted({a}, {b}, {a} >> 27)", "({a} < {b} ? {a} : {b})",
            "(u32)({a} == {b})", "({a} & ~{b} | {b} >> 3)", "(u32)(unsigned char)({a} + {b})",
            "(u32)(short)({a} ^ {b})", "({a} * {b} + ({a} ^ 5u))"],
    "i64": ["(i64)((u64){a} + (u64){b})", "(i64)((u64){a} - (u64){b})",
            "(i64)((u64){a} * (u64){b})",
            "({b} == -1 ? 5 : {a} / ({b} | 1))", "({b} == -1 ? 6 : {a} % ({b} | 1))", "{a} & {b}",
            "{a} ^ {b}", "{a} >> ({b} & 63)", "(i64)((u64){a} << ({b} & 63))",
            "(i64)((u64){a} / ((u64){b} | 1))", "(i64)upper64({a}, {b})",
            "(i64)((u64){a} >> ({b} & 63))", "({a} > {b} ? {a} : {b})"],
    "float": ["{a} + {b}", "{a} - {b}", "{a} * {b}", "{a} / {b}", "({a} < {b} ? {a} : {b})",
              "({a} * {b} + {a})", "fmaf({a}, {b}, {a})"],
    "double": ["{a} + {b}", "{a} - {b}", "{a} * {b}", "{a} / {b}", "fma({a}, {b}, {b})",
               "({a} >= {b} ? {b} : {a})"],
}  # fmt: skip
UNARY = {
    "u32": ["~{a}", "ones({a})", "leading({a})", "reversed({a})", "(0u - {a})"],
    "i64": ["~{a}", "(i64)(0ull - (u64){a})", "({a} < 0 ? ~{a} : {a})"],
    "float": ["-({a})", "fabsf({a})", "sqrtf(fabsf({a}))", "floorf({a})", "truncf({a})",
              "rintf({a})", "ceilf({a})"],
    "double": ["-({a})", "fabs({a})", "sqrt(fabs({a}))", "floor({a})", "rint({a})"],
}  # fmt: skip
CASTS = {
    "u32": ["(u32){i64}", "bits({float})", "unsigned_of({float})", "(u32)int_of({float})",
            "(u32)((u64){i64} >> 32)", "(u32)upper_signed({u32}, {u32})", "table[{u32} & 7u]"],
    "i64": ["(i64){u32}", "(i64)(int){u32}", "long_of({double})", "(i64){u32} * (i64)(int){u32}",
            "(i64)bits({double})"],
    "float": ["(float){u32}", "(float)(int){u32}", "(float){double}", "(float){i64}",
              "float_of({u32})", "(float)(u64){i64}"],
    "double": ["(double){float}", "(double){u32}", "(double){i64}", "(double)(int){u32}"],
}  # fmt: skip
CONSTANTS = {
    "u32": ["0u", "1u", "0x80000000u", "0xffffffffu", "77u", "65536u"],
    "i64": ["0ll", "-1ll", "0x7fffffffffffffffll", "123456789012ll", "3ll"],
    "float": ["0.0f", "1.0f", "-2.5f", "1e-38f", "3e38f", "1e-42f", "0.3333333f"],
    "double": ["0.0", "1.0", "-0.1", "1e300", "1e-310", "4503599627370497.5"],
}
TYPES = list(BINARY)


class Writer:
    """Writes one function's text; `calls` are the functions that it may call."""

    def __init__(self, rng: random.Random, calls: list[str]) -> None:
        self.rng, self.calls, self.loops = rng, calls, 0

    def expression(self, kind: str, depth: int) -> str:
        rng = self.rng
        if depth == 0 or rng.random() < 0.15:
            if rng.random() < 0.25:
                return rng.choice(CONSTANTS[kind])
            return f"{kind[0]}{rng.randrange(3)}"
        choice = rng.random()
        if choice < 0.6:
            form = rng.choice(BINARY[kind])
            a, b = self.expression(kind, depth - 1), self.expression(kind, depth - 1)
            return "(" + form.format(a=a, b=b) + ")"
        if choice < 0.75:
            return "(" + rng.choice(UNARY[kind]).format(a=self.expression(kind, depth - 1)) + ")"
        if choice < 0.85 and kind == "u32" and self.calls and not self.loops:
            a, b = self.expression("u32", 0), self.expression("float", 0)
            return f"{rng.choice(self.calls)}({a}, {self.expression('u32', 0)}, {b}, d0)"
        parts = {t: self.expression(t, depth - 1) for t in TYPES}
        return "(" + rng.choice(CASTS[kind]).format(**parts) + ")"

    def condition(self) -> str:
        kind = self.rng.choice(TYPES)
        compare = self.rng.choice(["<", "<=", "==", "!=", ">", ">="])
        text = f"{self.expression(kind, 1)} {compare} {self.expression(kind, 1)}"
        if self.rng.random() < 0.3:
            join = self.rng.choice(["&&", "||"])
            text = f"({text}) {join} (u0 & {1 << self.rng.randrange(5)}u)"
        return text

    def block(self, depth: int, indent: str, looping: bool = False) -> str:
        count = self.rng.randint(1, 3)
        return "".join(self.statement(depth, indent, looping) for _ in range(count))

    def statement(self, depth: int, indent: str, looping: bool) -> str:
        rng, inner = self.rng, indent + "    "
        choice = rng.random() if depth > 0 else rng.random() * 0.45
        if choice < 0.36:
            kind = rng.choice(TYPES)
            return f"{indent}{kind[0]}{rng.randrange(3)} = {self.expression(kind, 2)};\n"
        if choice < 0.42:
            return (
                f"{indent}table[{self.expression('u32', 1)} & 7u] = {self.expression('u32', 1)};\n"
            )
        if choice < 0.45:
            if looping:
                return f"{indent}if ({self.condition()}) {rng.choice(['break', 'continue'])};\n"
            if rng.random() < 0.3:
                return f"{indent}if ({self.condition()}) return {self.expression('u32', 1)};\n"
            return f"{indent}u1 ^= bits(f0);\n"
        if choice < 0.72:
            text = f"{indent}if ({self.condition()}) {{\n{self.block(depth - 1, inner, looping)}"
            if rng.random() < 0.6:
                text += f"{indent}}} else {{\n{self.block(depth - 1, inner, looping)}"
            return text + f"{indent}}}\n"
        if choice < 0.82:
            cases = "".join(
                f"{indent}case {k}:\n{self.block(depth - 1, inner)}"
                + (f"{inner}break;\n" if rng.random() < 0.7 else "")
                for k in range(rng.randint(2, 5))
            )
            return f"{indent}switch ({self.expression('u32', 1)} % 6u) {{\n{cases}{indent}}}\n"
        self.loops += 1
        index = f"k{self.loops}"
        head = f"for (u32 {index} = 0; {index} < ({self.expression('u32', 1)} & 7u); {index}++)"
        if rng.random() < 0.4:
            head = f"for (u32 {index} = u0 & 15u; {index} != 0; {index}--)"
        return f"{indent}{head} {{\n{self.block(depth - 1, inner, True)}{indent}}}\n"

    def function(self, name: str) -> str:
        return (
            f"CALLED u32 {name}(u32 u0, u32 u1, float f0, double d0) {{\n"
            "    u32 u2 = u0 ^ 0x9e3779b9u, table[8] = {u0, u1, 3, 5, 8, 13, 21, 34};\n"
            "    i64 i0 = (i64)((u64)u0 << 32 | u1), i1 = (i64)u1 - 70000, i2 = -(i64)u0;\n"
            "    float f1 = (float)u1, f2 = f0 * 0.37f;\n"
            "    double d1 = (double)f0 + 1e-9, d2 = d0 * 3.0;\n"
            f"{self.block(2, '    ')}{self.block(3, '    ')}"
            "    u64 mixed = (u64)i0 * 3 ^ (u64)i1 * 5 ^ (u64)i2 * 7 ^ bits(d0) ^ bits(d1) * 3 ^\n"
            "                bits(d2) * 5 ^ (u64)bits(f0) << 7 ^ (u64)bits(f1) << 19 ^\n"
            "                (u64)bits(f2) * 11 ^ u0 ^ (u64)u1 << 32 ^ (u64)u2 << 13;\n"
            "    for (int k = 0; k < 8; k++) mixed = mixed * 31 + table[k];\n"
            "    return (u32)(mixed ^ mixed >> 32);\n}\n"
        )


def source(seed: int, count: int) -> str:
    """`count` functions, a kernel that calls each for every element, and the same for the host:
    u (n, 2), x (n,), z (n,) → out (count, n)."""
    rng = random.Random(seed)
    names = [f"function{k}" for k in range(count)]
    functions = [  # every other one may call the one before: chains of calls would grow too long
        Writer(random.Random(rng.getrandbits(64)), names[k - 1 : k] * (k % 2)).function(name)
        for k, name in enumerate(names)
    ]
    calls = "".join(
        f"    out[{k} * n + i] = {name}(u[2 * i], u[2 * i + 1], x[i], z[i]);\n"
        for k, name in enumerate(names)
    )
    arguments = "const u32* u, const float* x, const double* z, u32* out, int n"
    return (
        PRELUDE
        + "".join(functions)
        + "#ifdef __CUDACC__\n"
        + f'extern "C" __global__ void run_all({arguments}) {{\n'
        + "    int i = blockIdx.x * blockDim.x + threadIdx.x;\n    if (i >= n) return;\n"
        + calls
        + "}\n#else\n"
        + f'extern "C" void run_all({arguments}) {{\n    for (int i = 0; i < n; i++) {{\n'
        + calls
        + "    }\n}\n#endif\n"
    )
