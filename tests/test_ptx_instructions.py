"""The PTX machine's instructions, one by one, against exact references: integers by Python's,
floats by fractions rounded once (`ptx_reference.py`), approximations within the manual's bounds."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import ptx_reference as ref
import pytest
from ptx_one import execute
from ptx_reference import FINITE, FORMATS, INFINITE, NAN, Format, Value, signed

from minigrad import ptx

pytestmark = pytest.mark.skipif(not ptx.levels(), reason="the PTX machine is not built")

# ---- values ----


def integers(bits: int, n: int = 12) -> list[int]:
    """Numbers at the edges, and some at random."""
    top = 1 << bits
    rng = random.Random(bits)
    edges = [0, 1, 2, 3, 31, 32, 33, top // 2 - 1, top // 2, top // 2 + 1, top - 2, top - 1]
    return [e % top for e in edges] + [rng.randrange(top) for _ in range(n)]


def floats(kind: str, n: int = 10) -> list[int]:
    """Bits: zeros, subnormals, normals at the edges, infinities, NaN, and some at random."""
    f = FORMATS[kind]
    one = f.bias << f.mantissa_bits
    smallest, infinity = 1 << f.mantissa_bits, ((1 << f.exponent_bits) - 1) << f.mantissa_bits
    edges = [0, 1, smallest - 1, smallest, smallest + 1, one, one + 1, one - 1, one + smallest // 2,
             infinity - 1, infinity, infinity | smallest // 2]  # fmt: skip
    rng = random.Random(f.bits)
    near = [one + rng.randrange(-8, 8) * smallest + rng.randrange(smallest) for _ in range(n)]
    some = edges + near + [rng.randrange(infinity) for _ in range(4)]
    return some + [b | 1 << (f.bits - 1) for b in some]


def pairs(values: list[int], most: int = 2048) -> tuple[list[int], list[int]]:
    both = list(itertools.product(values, values))
    random.Random(0).shuffle(both)
    return [a for a, _ in both[:most]], [b for _, b in both[:most]]


def triples(values: list[int], most: int = 3072) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.choice(values) for _ in range(most)] for _ in range(3)]


def same(got: int, want: int, f: Format) -> bool:
    """Equal bits, or both NaN."""
    return got == want or f.decode(got).kind == f.decode(want).kind == NAN


def check(got: list[int], want: list[int], *inputs: list[int], f: Format | None = None) -> None:
    wrong = [
        (i, [hex(x[i]) for x in inputs], hex(g), hex(w))
        for i, (g, w) in enumerate(zip(got, want, strict=True))
        if (g != w if f is None else not same(g, w, f))
    ]
    assert not wrong, f"{len(wrong)} of {len(got)} differ; inputs, got, expected: {wrong[:4]}"


# ---- integers ----


def mask(bits: int) -> int:
    return (1 << bits) - 1


def clamp(value: int, kind: str) -> int:
    bits = int(kind[1:])
    low, high = (-(1 << bits - 1), mask(bits - 1)) if kind[0] == "s" else (0, mask(bits))
    return max(low, min(high, value)) & mask(bits)


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


Two = Callable[[int, int], int]
BINARY: dict[str, Two] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul.lo": lambda a, b: a * b,
    "min": min, "max": max,
    "div": lambda a, b: quotient(a, b) if b else -1,
    "rem": lambda a, b: a - b * quotient(a, b) if b else a,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", [*BINARY, "mul.hi", "mul.wide"])
def test_integer_binary(name: str, kind: str) -> None:
    bits = int(kind[1:])
    if name == "mul.wide" and bits == 64:
        pytest.skip("there is no 128-bit result")
    a, b = pairs(integers(bits))
    if name in ("div", "rem"):  # by zero, and the smallest by -1, the manual leaves open
        overflow = (1 << bits - 1, mask(bits)) if kind[0] == "s" else None
        keep = [i for i, both in enumerate(zip(a, b, strict=True)) if both[1] and both != overflow]
        a, b = [a[i] for i in keep], [b[i] for i in keep]
    out = 2 * bits if name == "mul.wide" else bits
    [got] = execute(f"{name}.{kind} %d0, %s0, %s1;", (out,), (bits, a), (bits, b))
    read: Callable[[int], int] = (lambda x: signed(x, bits)) if kind[0] == "s" else (lambda x: x)
    function = BINARY.get(name, lambda x, y: x * y)
    shift = bits if name == "mul.hi" else 0
    want = [(function(read(x), read(y)) >> shift) & mask(out) for x, y in zip(a, b, strict=True)]
    check(got, want, a, b)


TERNARY: dict[str, tuple[str, int, int, Callable[[int, int, int], int]]] = {
    "mad.lo.s32": ("s", 32, 32, lambda a, b, c: a * b + c),
    "mad.lo.u64": ("u", 64, 64, lambda a, b, c: a * b + c),
    "mad.lo.s16": ("s", 16, 16, lambda a, b, c: a * b + c),
    "mad.hi.s32": ("s", 32, 32, lambda a, b, c: (a * b >> 32) + c),
    "mad.hi.u32": ("u", 32, 32, lambda a, b, c: (a * b >> 32) + c),
    "mad.wide.s32": ("s", 32, 64, lambda a, b, c: a * b + c),
    "mad.wide.u32": ("u", 32, 64, lambda a, b, c: a * b + c),
    "mad.wide.u16": ("u", 16, 32, lambda a, b, c: a * b + c),
    "sad.s32": ("s", 32, 32, lambda a, b, c: abs(a - b) + c),
    "sad.u32": ("u", 32, 32, lambda a, b, c: abs(a - b) + c),
}


@pytest.mark.parametrize("name", list(TERNARY))
def test_integer_ternary(name: str) -> None:
    sign, bits, out, function = TERNARY[name]
    a, b, _ = triples(integers(bits))
    c = triples(integers(out))[2]
    text = f"{name} %d0, %s0, %s1, %s2;"
    [got] = execute(text, (out,), (bits, a), (bits, b), (out, c))
    width = (lambda x, w: signed(x, w)) if sign == "s" else (lambda x, w: x)
    want = [function(width(x, bits), width(y, bits), width(z, out)) & mask(out)
            for x, y, z in zip(a, b, c, strict=True)]  # fmt: skip
    check(got, want, a, b, c)


def popc(x: int) -> int:
    return bin(x).count("1")


def bfind(x: int, bits: int, is_signed: bool) -> int:
    if is_signed and x >> (bits - 1):
        x ^= mask(bits)
    return x.bit_length() - 1 & mask(32)


UNARY: dict[str, tuple[int, int, Callable[[int], int]]] = {
    "abs.s32": (32, 32, lambda x: abs(signed(x, 32))),
    "abs.s16": (16, 16, lambda x: abs(signed(x, 16))),
    "neg.s32": (32, 32, lambda x: -x), "neg.s64": (64, 64, lambda x: -x),
    "neg.s16": (16, 16, lambda x: -x),
    "not.b16": (16, 16, lambda x: ~x), "not.b32": (32, 32, lambda x: ~x),
    "not.b64": (64, 64, lambda x: ~x), "cnot.b32": (32, 32, lambda x: int(x == 0)),
    "popc.b32": (32, 32, popc), "popc.b64": (64, 32, popc),
    "clz.b32": (32, 32, lambda x: 32 - x.bit_length()),
    "clz.b64": (64, 32, lambda x: 64 - x.bit_length()),
    "brev.b32": (32, 32, lambda x: int(f"{x:032b}"[::-1], 2)),
    "brev.b64": (64, 64, lambda x: int(f"{x:064b}"[::-1], 2)),
    "bfind.u32": (32, 32, lambda x: bfind(x, 32, False)),
    "bfind.s32": (32, 32, lambda x: bfind(x, 32, True)),
    "bfind.u64": (64, 32, lambda x: bfind(x, 64, False)),
    "bfind.shiftamt.u32": (32, 32, lambda x: 32 - x.bit_length() if x else -1),
}  # fmt: skip
UNARY["bfind.shiftamt.u32"] = (32, 32, lambda x: 32 - x.bit_length() if x else -1)


@pytest.mark.parametrize("name", list(UNARY))
def test_integer_unary(name: str) -> None:
    bits, out, function = UNARY[name]
    values = integers(bits, 60)
    [got] = execute(f"{name} %d0, %s0;", (out,), (bits, values))
    check(got, [function(x) & mask(out) for x in values], values)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("name", ["shl.b", "shr.u", "shr.s", "shr.b"])
def test_shift_clamps(name: str, bits: int) -> None:
    """A shift by the width or more gives zeros, or signs."""
    a, amount = pairs(integers(bits))
    amount = [x % 100 if i % 3 else x & mask(32) for i, x in enumerate(amount)]
    [got] = execute(f"{name}{bits} %d0, %s0, %s1;", (bits,), (bits, a), (32, amount))
    want = []
    for x, n in zip(a, amount, strict=True):
        n = min(n, bits)
        value = signed(x, bits) >> n if name == "shr.s" else x >> n
        want.append((x << n if name == "shl.b" else value) & mask(bits))
    check(got, want, a, amount)


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
@pytest.mark.parametrize("side", ["l", "r"])
def test_funnel_shift(side: str, mode: str) -> None:
    a, b, c = triples(integers(32), 1024)
    text = f"shf.{side}.{mode}.b32 %d0, %s0, %s1, %s2;"
    [got] = execute(text, (32,), (32, a), (32, b), (32, c))
    want = []
    for low, high, n in zip(a, b, c, strict=True):
        n = n & 31 if mode == "wrap" else min(n, 32)
        both = high << 32 | low
        want.append((both << n >> 32 if side == "l" else both >> n) & mask(32))
    check(got, want, a, b, c)


def bfe(x: int, pos: int, length: int, kind: str) -> int:
    bits = int(kind[1:])
    pos, length, top = pos & 255, length & 255, bits - 1
    sign = 0 if kind[0] == "u" or not length else x >> min(pos + length - 1, top) & 1
    out = 0
    for i in range(bits):
        inside = i < length and pos + i <= top
        out |= (x >> (pos + i) & 1 if inside else sign) << i
    return out


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_field(kind: str) -> None:
    bits = int(kind[1:])
    a, pos, length = triples(integers(bits), 1024)
    rng = random.Random(3)
    pos = [rng.choice([0, 1, 5, 31, 32, 33, 63, 64, 255, 256]) for _ in pos]
    length = [rng.choice([0, 1, 7, 31, 32, 33, 64, 200]) for _ in length]
    text = f"bfe.{kind} %d0, %s0, %s1, %s2;"
    [got] = execute(text, (bits,), (bits, a), (32, pos), (32, length))
    want = [bfe(x, p, n, kind) for x, p, n in zip(a, pos, length, strict=True)]
    check(got, want, a, pos, length)
    b = triples(integers(bits), 1024)[1]
    text = f"bfi.b{bits} %d0, %s0, %s1, %s2, %s3;"
    [got] = execute(text, (bits,), (bits, a), (bits, b), (32, pos), (32, length))
    want = []
    for x, y, p, n in zip(a, b, pos, length, strict=True):
        for i in range(n & 255):
            if (p & 255) + i >= bits:
                break
            at = (p & 255) + i
            y = y & ~(1 << at) | (x >> i & 1) << at
        want.append(y)
    check(got, want, a, b, pos, length)


@pytest.mark.parametrize("table", [0x00, 0x96, 0xE8, 0xCA, 0x1D, 0xFF])
def test_lop3(table: int) -> None:
    a, b, c = triples(integers(32), 256)
    text = f"lop3.b32 %d0, %s0, %s1, %s2, {table};"
    [got] = execute(text, (32,), (32, a), (32, b), (32, c))
    want = []
    for x, y, z in zip(a, b, c, strict=True):
        rows = [(x >> i & 1) << 2 | (y >> i & 1) << 1 | z >> i & 1 for i in range(32)]
        want.append(sum((table >> r & 1) << i for i, r in enumerate(rows)))
    check(got, want, a, b, c)


def prmt(a: int, b: int, c: int, mode: str) -> int:
    data = (b << 32 | a).to_bytes(8, "little")
    n = c & 3
    if not mode:
        out = []
        for i in range(4):
            s = c >> 4 * i & 15
            byte = data[s & 7]
            out.append((255 if byte >> 7 else 0) if s & 8 else byte)
        return int.from_bytes(bytes(out), "little")
    chosen = {
        "f4e": [n + i for i in range(4)], "b4e": [(n - i) % 8 for i in range(4)],
        "rc8": [n] * 4, "ecl": [max(i, n) for i in range(4)], "ecr": [min(i, n) for i in range(4)],
        "rc16": [(2 * (n & 1)) + i % 2 for i in range(4)],
    }[mode]  # fmt: skip
    return int.from_bytes(bytes(data[s] for s in chosen), "little")


@pytest.mark.parametrize("mode", ["", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"])
def test_prmt(mode: str) -> None:
    a, b, c = triples(integers(32, 40), 512)
    text = f"prmt.b32{'.' + mode if mode else ''} %d0, %s0, %s1, %s2;"
    [got] = execute(text, (32,), (32, a), (32, b), (32, c))
    check(got, [prmt(*x, mode) for x in zip(a, b, c, strict=True)], a, b, c)


@pytest.mark.parametrize("kinds", ["u32.u32", "s32.s32", "u32.s32", "s32.u32"])
def test_dot_products(kinds: str) -> None:
    one, two = (k[0] for k in kinds.split("."))
    a, b, c = triples(integers(32, 40), 512)
    text = f"dp4a.{kinds} %d0, %s0, %s1, %s2;"
    [got] = execute(text, (32,), (32, a), (32, b), (32, c))

    def part(x: int, i: int, size: int, kind: str) -> int:
        v = x >> size * i & mask(size)
        return signed(v, size) if kind == "s" else v

    want = [(sum(part(x, i, 8, one) * part(y, i, 8, two) for i in range(4)) + z) & mask(32)
            for x, y, z in zip(a, b, c, strict=True)]  # fmt: skip
    check(got, want, a, b, c)
    for half in ("lo", "hi"):
        text = f"dp2a.{half}.{kinds} %d0, %s0, %s1, %s2;"
        [got] = execute(text, (32,), (32, a), (32, b), (32, c))
        first = 2 * (half == "hi")
        want = [
            (sum(part(x, i, 16, one) * part(y, first + i, 8, two) for i in range(2)) + z) & mask(32)
            for x, y, z in zip(a, b, c, strict=True)
        ]
        check(got, want, a, b, c)


def test_saturating_and_carrying() -> None:
    a, b = pairs(integers(32))
    s = [signed(x, 32) for x in a], [signed(x, 32) for x in b]
    for name, function in (("add", int.__add__), ("sub", int.__sub__)):
        [got] = execute(f"{name}.sat.s32 %d0, %s0, %s1;", (32,), (32, a), (32, b))
        check(got, [clamp(function(x, y), "s32") for x, y in zip(*s, strict=True)], a, b)
    x, y = pairs(integers(64))
    text = (
        "mov.b64 {{%u0, %u1}}, %s0; mov.b64 {{%u2, %u3}}, %s1;"
        "{0}.cc.u32 %u4, %u0, %u2; {0}c.u32 %u5, %u1, %u3; mov.b64 %d0, {{%u4, %u5}};"
    )
    for name, function in (("add", int.__add__), ("sub", int.__sub__)):
        [got] = execute(text.format(name), (64,), (64, x), (64, y))
        check(got, [function(p, q) & mask(64) for p, q in zip(x, y, strict=True)], x, y)


def test_mul24_and_masks() -> None:
    a, b = pairs(integers(32))
    low = [(x & mask(24)) * (y & mask(24)) for x, y in zip(a, b, strict=True)]
    [got] = execute("mul24.lo.u32 %d0, %s0, %s1;", (32,), (32, a), (32, b))
    check(got, [p & mask(32) for p in low], a, b)
    [got] = execute("mul24.hi.u32 %d0, %s0, %s1;", (32,), (32, a), (32, b))
    check(got, [p >> 16 & mask(32) for p in low], a, b)
    at, width = pairs([0, 1, 7, 31, 32, 33, 64])
    [got] = execute("bmsk.clamp.b32 %d0, %s0, %s1;", (32,), (32, at), (32, width))
    want = [mask(min(w, 32)) << min(p, 32) & mask(32) for p, w in zip(at, width, strict=True)]
    check(got, want, at, width)
    [got] = execute("szext.clamp.s32 %d0, %s0, %s1;", (32,), (32, a), (32, b))
    want = []
    for x, n in zip(a, b, strict=True):
        n = min(n, 32)
        want.append(signed(x & mask(n), n) & mask(32) if n else 0)
    check(got, want, a, b)


# ---- floats ----

Op = Callable[..., Value]
MODES = ["rn", "rz", "rm", "rp"]
FLOAT_OPS: dict[str, tuple[int, Op]] = {
    "add": (2, ref.add), "sub": (2, lambda a, b, m: ref.add(a, negate(b), m)), "mul": (2, ref.mul),
    "fma": (3, ref.fma), "div": (2, ref.div), "sqrt": (1, ref.sqrt),
    "rcp": (1, lambda a, m: ref.div(ref.finite(1), a, m)),
}  # fmt: skip


def negate(v: Value) -> Value:
    return Value(v.kind, not v.negative, v.size)


def float_case(name: str, kind: str, mode: str = "", ftz: bool = False, sat: bool = False) -> None:
    n, function = FLOAT_OPS[name]
    f = FORMATS[kind]
    values = floats(kind)
    sets = {1: [values], 2: list(pairs(values, 1600)), 3: triples(values, 1600)}[n]
    words = ".".join([name, *([mode] if mode else []), *["ftz"] * ftz, *["sat"] * sat, kind])
    operands = ", ".join(f"%s{i}" for i in range(n))
    [got] = execute(f"{words} %d0, {operands};", (f.bits,), *[(f.bits, s) for s in sets])
    want = []
    for bits in zip(*sets, strict=True):
        read = [f.decode(b) for b in bits]
        if ftz:
            read = [f.flush(v) for v in read]
        value = function(*read, mode or "rn")
        if sat:
            value = ref.saturate(value)
        result = f.encode(value, mode or "rn")
        if ftz:  # what is subnormal before rounding, to any width of exponent
            result = f.encode(f.flush(f.decode(result)))
        want.append(result)
    check(got, want, *sets, f=f)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("name", list(FLOAT_OPS))
def test_float_rounding(name: str, kind: str, mode: str) -> None:
    float_case(name, kind, mode)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma", "div", "sqrt", "rcp"])
def test_float_flushing(name: str) -> None:
    float_case(name, "f32", "rn", ftz=True)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_float_saturation(name: str) -> None:
    float_case(name, "f32", "rn", sat=True)
    float_case(name, "f32", "rz", ftz=True, sat=True)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_floats(name: str, kind: str) -> None:
    float_case(name, kind, "rn")
    if kind == "f16":
        float_case(name, kind, "rn", ftz=True)
        float_case(name, kind, "rn", sat=True)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma", "min", "max"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_packed_halves(name: str, kind: str) -> None:
    f = FORMATS[kind]
    values = floats(kind, 6)
    n = 3 if name == "fma" else 2
    rng = random.Random(5)
    low, high = ([[rng.choice(values) for _ in range(1024)] for _ in range(n)] for _ in range(2))
    mode = "" if name in ("min", "max") else ".rn"
    operands = ", ".join(f"%s{i}" for i in range(n))
    packed = [
        [h << 16 | x for x, h in zip(a, b, strict=True)] for a, b in zip(low, high, strict=True)
    ]
    [got] = execute(f"{name}{mode}.{kind}x2 %d0, {operands};", (32,), *[(32, p) for p in packed])
    for shift, sets in ((0, low), (16, high)):
        want = []
        for bits in zip(*sets, strict=True):
            read = [f.decode(b) for b in bits]
            if name in ("min", "max"):
                want.append(f.encode(ref.lowest(*read, largest=name == "max")))
            else:
                want.append(f.encode(FLOAT_OPS[name][1](*read, "rn")))
        check([g >> shift & mask(16) for g in got], want, *sets, f=f)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("name", ["min", "max", "min.NaN", "max.NaN"])
def test_float_min_max(name: str, kind: str) -> None:
    if kind == "f64" and "NaN" in name:
        pytest.skip("not in PTX")
    f = FORMATS[kind]
    a, b = pairs(floats(kind), 1600)
    [got] = execute(f"{name}.{kind} %d0, %s0, %s1;", (f.bits,), (f.bits, a), (f.bits, b))
    want = [
        f.encode(ref.lowest(f.decode(x), f.decode(y), "max" in name, "NaN" in name))
        for x, y in zip(a, b, strict=True)
    ]
    check(got, want, a, b, f=f)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("name", ["abs", "neg"])
def test_float_signs(name: str, kind: str) -> None:
    f = FORMATS[kind]
    values = floats(kind)
    [got] = execute(f"{name}.{kind} %d0, %s0;", (f.bits,), (f.bits, values))
    top = 1 << f.bits - 1
    check(got, [x & ~top if name == "abs" else x ^ top for x in values], values, f=f)


def test_copysign_and_testp() -> None:
    f = FORMATS["f32"]
    a, b = pairs(floats("f32"), 512)
    [got] = execute("copysign.f32 %d0, %s0, %s1;", (32,), (32, a), (32, b))
    top = 1 << 31
    check(got, [y & ~top | x & top for x, y in zip(a, b, strict=True)], a, b, f=f)
    values = floats("f32")
    kinds: dict[str, Callable[[Value], bool]] = {
        "finite": lambda v: v.kind == FINITE, "infinite": lambda v: v.kind == INFINITE,
        "number": lambda v: v.kind != NAN, "notanumber": lambda v: v.kind == NAN,
        "subnormal": lambda v: v.kind == FINITE and v.size != 0 and f.flush(v).size == 0,
        "normal": lambda v: v.kind == FINITE and f.flush(v).size != 0,
    }  # fmt: skip
    for name, function in kinds.items():
        [got] = execute(f"testp.{name}.f32 %d0, %s0;", (1,), (32, values))
        check(got, [int(function(f.decode(x))) for x in values], values)


# ---- approximations, against the manual's bounds ----


def relative(
    got: list[int], want: list[float], bound: float, floor: float, inputs: list[int]
) -> None:
    values = np.array(got, np.uint32).view(np.float32).astype(np.float64)
    for g, w, x in zip(values, want, inputs, strict=True):
        if math.isnan(w) or math.isinf(w):
            assert g == w or (math.isnan(w) and math.isnan(g)), (hex(x), g, w)
        else:
            assert abs(g - w) <= bound * abs(w) + floor, (hex(x), g, w, abs(g - w) / (abs(w) or 1))


def quietly(function: Callable[[float], float]) -> Callable[[float], float]:
    def call(x: float) -> float:
        try:
            return function(x)
        except (ValueError, ZeroDivisionError):
            return math.nan
        except OverflowError:
            return math.inf

    return call


def inverse(x: float) -> float:
    return math.copysign(math.inf, x) if x == 0 else 1 / x


APPROXIMATE: dict[str, tuple[Callable[[float], float], float, float]] = {
    # bound relative to the result, and an absolute one
    "ex2.approx.ftz.f32": (lambda x: math.inf if x >= 128 else 2.0**x, 2.0**-22, 2.0**-126),
    "ex2.approx.f32": (lambda x: math.inf if x >= 128 else 2.0**x, 2.0**-22, 2.0**-149),
    "lg2.approx.f32": (lambda x: math.log2(x) if x else -math.inf, 2.0**-22, 2.0**-22),
    "rcp.approx.ftz.f32": (inverse, 2.0**-23, 2.0**-126),
    "rcp.approx.f32": (inverse, 2.0**-23, 2.0**-149),
    "sqrt.approx.f32": (lambda x: x if x == 0 else math.sqrt(x), 2.0**-22, 0),
    "rsqrt.approx.f32": (lambda x: inverse(x if x == 0 else math.sqrt(x)), 2.0**-22.4, 0),
    "tanh.approx.f32": (math.tanh, 2.0**-11, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", list(APPROXIMATE))
def test_approximations(name: str) -> None:
    function, bound, floor = APPROXIMATE[name]
    values = floats("f32", 100)
    if "ftz" in name:
        values = [
            FORMATS["f32"].encode(FORMATS["f32"].flush(FORMATS["f32"].decode(v))) for v in values
        ]
    numbers = np.array(values, np.uint32).view(np.float32).astype(np.float64).tolist()
    [got] = execute(f"{name} %d0, %s0;", (32,), (32, values))
    want = [quietly(function)(x) for x in numbers]
    largest = float(np.finfo(np.float32).max)
    want = [math.copysign(math.inf, w) if abs(w) > largest * (1 + 2.0**-25) else w for w in want]
    relative(got, want, bound, floor, values)


def test_exponential_flushes() -> None:
    """With .ftz a denormal result is 0, and all others are as without; denormal operands give 1."""
    lowest = np.linspace(-151, -124, 109, dtype=np.float32).view(np.uint32).tolist()
    values = floats("f32", 20) + lowest
    [kept] = execute("ex2.approx.f32 %d0, %s0;", (32,), (32, values))
    [flushed] = execute("ex2.approx.ftz.f32 %d0, %s0;", (32,), (32, values))
    check(flushed, [0 if x < 1 << 23 else x for x in kept], values)
    denormal = [i for i, x in enumerate(values) if x & mask(31) < 1 << 23]
    assert {flushed[i] for i in denormal} == {0x3F800000}


def test_sine_and_cosine() -> None:
    rng = np.random.default_rng(0)
    x = (rng.random(512).astype(np.float32) * 2 - 1) * np.float32(math.pi)
    bits = x.view(np.uint32).tolist()
    for name, function in (("sin", np.sin), ("cos", np.cos)):
        [got] = execute(f"{name}.approx.f32 %d0, %s0;", (32,), (32, bits))
        error = np.abs(np.array(got, np.uint32).view(np.float32) - function(x.astype(np.float64)))
        assert error.max() <= 2.0**-20.5


@pytest.mark.parametrize("name", ["div.full.f32", "div.approx.f32"])
def test_approximate_division(name: str) -> None:
    rng = np.random.default_rng(0)
    a, b = np.exp2(rng.uniform(-60, 60, (2, 1024))).astype(np.float32)
    [got] = execute(f"{name} %d0, %s0, %s1;", (32,), (32, a.view(np.uint32).tolist()),
                    (32, b.view(np.uint32).tolist()))  # fmt: skip
    exact = a.astype(np.float64) / b
    relative(got, exact.tolist(), 2.0**-22, 2.0**-126, a.view(np.uint32).tolist())


# ---- comparison and selection ----

INTEGER_TESTS = ["eq", "ne", "lt", "le", "gt", "ge"]
FLOAT_TESTS = [*INTEGER_TESTS, "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64", "b32"])
def test_setp_integers(kind: str) -> None:
    bits = int(kind[1:])
    a, b = pairs(integers(bits), 512)
    b[::5] = a[::5]
    read = (lambda x: signed(x, bits)) if kind[0] == "s" else (lambda x: x)
    names = {"b": ["eq", "ne"], "s": INTEGER_TESTS, "u": [*INTEGER_TESTS, "lo", "ls", "hi", "hs"]}
    for name in names[kind[0]]:
        [got] = execute(f"setp.{name}.{kind} %d0, %s0, %s1;", (1,), (bits, a), (bits, b))
        want = [int(ref.COMPARISONS[name](read(x), read(y))) for x, y in zip(a, b, strict=True)]
        check(got, want, a, b)


@pytest.mark.parametrize("name", FLOAT_TESTS)
@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_setp_floats(kind: str, name: str) -> None:
    f = FORMATS[kind]
    a, b = pairs(floats(kind, 4), 1200)
    b[::5] = a[::5]
    [got] = execute(f"setp.{name}.{kind} %d0, %s0, %s1;", (1,), (f.bits, a), (f.bits, b))
    want = [int(ref.compare(f.decode(x), f.decode(y), name)) for x, y in zip(a, b, strict=True)]
    check(got, want, a, b)


def test_setp_with_a_predicate() -> None:
    a, b = pairs(integers(32), 256)
    p = [i & 1 for i in range(256)]
    functions = {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}
    for name, function in functions.items():
        text = f"setp.lt.{name}.s32 %d0|%d1, %s0, %s1, !%s2;"
        one, two = execute(text, (1, 1), (32, a), (32, b), (1, p))
        less = [int(signed(x, 32) < signed(y, 32)) for x, y in zip(a, b, strict=True)]
        check(one, [function(v, 1 - q) for v, q in zip(less, p, strict=True)], a, b, p)
        check(two, [function(1 - v, 1 - q) for v, q in zip(less, p, strict=True)], a, b, p)
    [got] = execute("selp.b32 %d0, %s0, %s1, %s2;", (32,), (32, a), (32, b), (1, p))
    check(got, [x if q else y for x, y, q in zip(a, b, p, strict=True)], a, b, p)
    [got] = execute("set.lt.u32.s32 %d0, %s0, %s1;", (32,), (32, a), (32, b))
    check(got, [mask(32) * v for v in less], a, b)
    [got] = execute("set.lt.f32.s32 %d0, %s0, %s1;", (32,), (32, a), (32, b))
    check(got, [0x3F800000 * v for v in less], a, b)
    [got] = execute("slct.b32.s32 %d0, %s0, %s1, %s2;", (32,), (32, a), (32, b), (32, a))
    check(got, [x if signed(x, 32) >= 0 else y for x, y in zip(a, b, strict=True)], a, b)


def test_predicates() -> None:
    p, q = [0, 0, 1, 1] * 8, [0, 1, 0, 1] * 8
    for name, function in (("and", int.__and__), ("or", int.__or__), ("xor", int.__xor__)):
        [got] = execute(f"{name}.pred %d0, %s0, %s1;", (1,), (1, p), (1, q))
        check(got, [function(x, y) for x, y in zip(p, q, strict=True)], p, q)
    [got] = execute("not.pred %d0, %s0;", (1,), (1, p))
    check(got, [1 - x for x in p], p)
    [got] = execute("mov.pred %d0, -1; @%s0 mov.pred %d0, 0;", (1,), (1, p))
    check(got, [1 - x for x in p], p)


# ---- conversion ----

INTEGER_KINDS = ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"]


def register(kind: str) -> int:
    return max(16, int(kind[1:]))


@pytest.mark.parametrize("out", INTEGER_KINDS)
@pytest.mark.parametrize("kind", INTEGER_KINDS)
def test_convert_integers(kind: str, out: str) -> None:
    bits, width = int(kind[1:]), int(out[1:])
    values = integers(register(kind), 40)
    for sat in ("", ".sat"):
        text = f"cvt{sat}.{out}.{kind} %d0, %s0;"
        [got] = execute(text, (register(out),), (register(kind), values))
        want = []
        for x in values:
            x &= mask(bits)
            number = signed(x, bits) if kind[0] == "s" else x
            result = clamp(number, out) if sat else number & mask(width)
            if out[0] == "s":
                result = signed(result, width) & mask(register(out))
            want.append(result)
        check(got, want, values)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["s16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("out", ["f16", "f32", "f64"])
def test_convert_to_float(out: str, kind: str, mode: str) -> None:
    f, bits = FORMATS[out], int(kind[1:])
    values = integers(bits, 60)
    [got] = execute(f"cvt.{mode}.{out}.{kind} %d0, %s0;", (f.bits,), (bits, values))
    read = (lambda x: signed(x, bits)) if kind[0] == "s" else (lambda x: x)
    check(got, [f.encode(ref.finite(read(x)), mode) for x in values], values, f=f)


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("out", ["s32", "u32", "s64", "u64", "s16"])
@pytest.mark.parametrize("kind", ["f16", "f32", "f64"])
def test_convert_to_integer(kind: str, out: str, mode: str) -> None:
    f, bits = FORMATS[kind], int(out[1:])
    one = f.bias << f.mantissa_bits
    rng = random.Random(7)
    wide = [one + rng.randrange(-3, min(66, f.bias)) * (1 << f.mantissa_bits)
            + rng.randrange(1 << f.mantissa_bits) for _ in range(80)]  # fmt: skip
    halves = [f.encode(ref.finite(ref.Fraction(n, 2))) for n in range(-9, 10)]
    values = floats(kind) + wide + [w | 1 << f.bits - 1 for w in wide] + halves
    [got] = execute(f"cvt.{mode}.{out}.{kind} %d0, %s0;", (bits,), (f.bits, values))
    want = []
    for x in values:
        v = f.decode(x)
        if v.kind == NAN:
            want.append(0 if bits < 64 and kind != "f64" else 1 << bits - 1)
        elif v.kind == INFINITE:
            want.append(clamp(-(1 << 99) if v.negative else 1 << 99, out))
        else:
            size = ref.round_fraction(v.size, mode, v.negative)
            want.append(clamp(-size if v.negative else size, out))
    check(got, want, values)


@pytest.mark.parametrize(
    ("out", "kind"),
    [("f16", "f32"), ("bf16", "f32"), ("f32", "f64"), ("f16", "f64"), ("f32", "f16"),
     ("f64", "f32"), ("f32", "bf16"), ("f64", "f16")],
)  # fmt: skip
def test_convert_between_floats(out: str, kind: str) -> None:
    f, g = FORMATS[out], FORMATS[kind]
    values = floats(kind, 60)
    rng = random.Random(8)
    if f.bits < g.bits:  # near ties of the narrower one
        drop = g.mantissa_bits - f.mantissa_bits
        base = [f.decode(b) for b in floats(out, 30)]
        ties = [g.encode(v) for v in base if v.kind == FINITE]
        values += [max(0, t + rng.choice([-1, 0, 1]) + (1 << drop - 1)) for t in ties]
    narrower = f.bits < g.bits
    modes = (
        (["rn", "rz"] if out in ("f16", "bf16") and kind == "f32" else MODES) if narrower else [""]
    )
    for mode in modes:
        text = f"cvt{'.' + mode if mode else ''}.{out}.{kind} %d0, %s0;"
        [got] = execute(text, (f.bits,), (g.bits, values))
        check(got, [f.encode(g.decode(x), mode or "rn") for x in values], values, f=f)


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_round_to_integral(mode: str) -> None:
    f = FORMATS["f32"]
    values = floats("f32", 60) + [f.encode(ref.finite(ref.Fraction(n, 2))) for n in range(-9, 10)]
    [got] = execute(f"cvt.{mode}.f32.f32 %d0, %s0;", (32,), (32, values))
    want = []
    for x in values:
        v = f.decode(x)
        if v.kind == FINITE:
            v = Value(
                FINITE, v.negative, ref.Fraction(ref.round_fraction(v.size, mode, v.negative))
            )
        want.append(f.encode(v))
    check(got, want, values, f=f)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_convert_packed(kind: str) -> None:
    f, g = FORMATS[kind], FORMATS["f32"]
    high, low = pairs(floats("f32", 20), 1024)
    for words in ("rn", "rn.relu"):
        text = f"cvt.{words}.{kind}x2.f32 %d0, %s0, %s1;"
        [got] = execute(text, (32,), (32, high), (32, low))
        for shift, values in ((16, high), (0, low)):
            read = [g.decode(x) for x in values]
            if words == "rn.relu":
                read = [Value(FINITE) if v.negative and v.kind != NAN else v for v in read]
            want = [f.encode(v) for v in read]
            check([r >> shift & mask(16) for r in got], want, values, f=f)


def test_convert_tf32() -> None:
    """To 10 bits of mantissa, ties away from zero."""
    f, g = Format(8, 10), FORMATS["f32"]
    values = [v for v in floats("f32", 60) if g.decode(v).kind == FINITE]
    values += [v & ~mask(13) | 1 << 12 for v in values]
    values = [v for v in values if g.decode(v).size < f.largest]
    [got] = execute("cvt.rna.tf32.f32 %d0, %s0;", (32,), (32, values))
    check(got, [f.encode(g.decode(x), "rna") << 13 for x in values], values)


def test_half_nan_is_canonical() -> None:
    for kind in ("f16", "bf16"):
        [got] = execute(f"cvt.rn.{kind}.f32 %d0, %s0;", (16,), (32, [0x7FC00001, 0xFF812345]))
        assert got == [0x7FFF, 0x7FFF]


def test_move_parts() -> None:
    values = integers(64, 40)
    text = "mov.b64 {%u0, %u1}, %s0; mov.b64 %d0, {%u1, %u0};"
    [got] = execute(text, (64,), (64, values))
    check(got, [(x >> 32 | x << 32) & mask(64) for x in values], values)
    text = "mov.b64 {%h0, %h1, %h2, %h3}, %s0; mov.b32 %d0, {%h3, %h0};"
    [got] = execute(text, (32,), (64, values))
    check(got, [(x & 0xFFFF) << 16 | x >> 48 for x in values], values)


# ---- the lanes of a warp ----


def shuffle(values: list[int], lane: int, b: int, c: int, mode: str) -> tuple[int, bool]:
    """The manual's pseudocode (9.7.9.6)."""
    b, clamp_at, segment = b & 31, c & 31, c >> 8 & 31
    most = (lane & segment) | (clamp_at & ~segment)
    least = lane & segment
    at, ok = {
        "up": (lane - b, lane - b >= most), "down": (lane + b, lane + b <= most),
        "bfly": (lane ^ b, (lane ^ b) <= most),
        "idx": (least | b & ~segment & 31, (least | b & ~segment & 31) <= most),
    }[mode]  # fmt: skip
    return values[at if ok else lane], ok


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("c", [0x1F, 0x00, 0x1C1F, 0x1807, 0x1800])
def test_shfl(mode: str, c: int) -> None:
    values = [1000 + i for i in range(32)]
    rng = random.Random(c)
    for given in [*([b] * 32 for b in (0, 1, 3, 5, 16, 31)), [rng.randrange(64) for _ in values]]:
        text = f"shfl.sync.{mode}.b32 %d0|%d1, %s0, %s1, {c}, -1;"
        got, ok = execute(text, (32, 1), (32, values), (32, given))
        want = [shuffle(values, lane, b, c, mode) for lane, b in enumerate(given)]
        check(got, [w for w, _ in want], given)
        check(ok, [int(v) for _, v in want], given)


def test_vote_and_match() -> None:
    rng = random.Random(9)
    p = [rng.randrange(2) for _ in range(32)]
    bits = sum(v << i for i, v in enumerate(p))
    [got] = execute("vote.sync.ballot.b32 %d0, %s0, -1;", (32,), (1, p))
    assert got == [bits] * 32
    for name, want in (("all", all(p)), ("any", any(p)), ("uni", len(set(p)) == 1)):
        [got] = execute(f"vote.sync.{name}.pred %d0, %s0, -1;", (1,), (1, p))
        assert got == [int(want)] * 32, name
    values = [rng.randrange(4) for _ in range(32)]
    [got] = execute("match.any.sync.b32 %d0, %s0, -1;", (32,), (32, values))
    assert got == [sum((v == w) << i for i, w in enumerate(values)) for v in values]
    got, ok = execute("match.all.sync.b32 %d0|%d1, %s0, -1;", (32, 1), (32, values))
    assert (got, ok) == ([0] * 32, [0] * 32)
    got, ok = execute("match.all.sync.b32 %d0|%d1, %s0, -1;", (32, 1), (32, [7] * 32))
    assert (got, ok) == ([mask(32)] * 32, [1] * 32)


REDUCTIONS: dict[str, Callable[[list[int]], int]] = {
    "add.s32": sum, "add.u32": sum, "and.b32": lambda v: int(np.bitwise_and.reduce(v)),
    "or.b32": lambda v: int(np.bitwise_or.reduce(v)),
    "xor.b32": lambda v: int(np.bitwise_xor.reduce(v)), "min.u32": min, "max.u32": max,
    "min.s32": lambda v: min(signed(x, 32) for x in v),
    "max.s32": lambda v: max(signed(x, 32) for x in v),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REDUCTIONS))
def test_redux(name: str) -> None:
    values = [random.Random(i).randrange(1 << 32) for i in range(32)]
    [got] = execute(f"redux.sync.{name} %d0, %s0, -1;", (32,), (32, values))
    assert got == [REDUCTIONS[name](values) & mask(32)] * 32


def test_lane_registers() -> None:
    names = ["laneid", "lanemask_eq", "lanemask_lt", "lanemask_le", "lanemask_gt", "lanemask_ge"]
    text = " ".join(f"mov.u32 %d{i}, %{name};" for i, name in enumerate(names))
    got = execute(text, (32,) * 6, (32, [0] * 32))
    for lane in range(32):
        below = mask(lane)
        want = [lane, 1 << lane, below, below | 1 << lane, mask(32) & ~(below | 1 << lane),
                mask(32) & ~below]  # fmt: skip
        assert [g[lane] for g in got] == want


# ---- atomics: each lane at its own place, then all at one ----

ATOMIC: dict[str, tuple[int, Callable[[int, int], int]]] = {
    "add.u32": (32, lambda a, b: a + b), "add.u64": (64, lambda a, b: a + b),
    "min.s32": (32, lambda a, b: min(signed(a, 32), signed(b, 32))), "max.u32": (32, max),
    "min.u64": (64, min), "and.b32": (32, lambda a, b: a & b), "or.b32": (32, lambda a, b: a | b),
    "xor.b32": (32, lambda a, b: a ^ b), "exch.b32": (32, lambda a, b: b),
    "exch.b64": (64, lambda a, b: b), "inc.u32": (32, lambda a, b: 0 if a >= b else a + 1),
    "dec.u32": (32, lambda a, b: b if a == 0 or a > b else a - 1),
}  # fmt: skip


def atomic_text(name: str, bits: int, spread: bool) -> str:
    step = bits // 8 if spread else 0
    return f""".version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 cells, .param .u64 given, .param .u64 old) {{
    .reg .b32 %t; .reg .b64 %a<4>, %at; .reg .b{bits} %v, %o;
    mov.u32 %t, %tid.x; cvt.u64.u32 %at, %t;
    ld.param.u64 %a0, [cells]; ld.param.u64 %a1, [given]; ld.param.u64 %a2, [old];
    mad.lo.u64 %a0, %at, {step}, %a0;
    mad.lo.u64 %a1, %at, {bits // 8}, %a1; mad.lo.u64 %a2, %at, {bits // 8}, %a2;
    ld.global.b{bits} %v, [%a1];
    atom.global.{name} %o, [%a0], %v;
    st.global.b{bits} [%a2], %o;
    ret;
}}
"""


@pytest.mark.parametrize("name", list(ATOMIC))
def test_atomics(name: str) -> None:
    bits, function = ATOMIC[name]
    kind = np.uint32 if bits == 32 else np.uint64
    cells = np.array(integers(bits, 20), kind)
    given = np.array(integers(bits, 20)[::-1], kind)
    before, old = cells.copy(), np.zeros_like(cells)
    ptx.run(atomic_text(name, bits, True), "k", 1, 32, [cells, given, old])
    want = [function(int(a), int(b)) & mask(bits) for a, b in zip(before, given, strict=True)]
    check(cells.tolist(), want, before.tolist(), given.tolist())
    assert old.tolist() == before.tolist()
    one = np.array([5], kind)
    ptx.run(atomic_text(name, bits, False), "k", 1, 32, [one, given, old])
    if name.split(".")[0] in ("add", "min", "max", "and", "or", "xor"):
        expected = 5
        for v in given.tolist():
            expected = function(expected, v) & mask(bits)
        assert one.tolist() == [expected]


@pytest.mark.parametrize(("name", "kind"), [("add.f32", np.float32), ("add.f64", np.float64)])
def test_float_atomics(name: str, kind: Any) -> None:
    """In lane order, so that they reproduce."""
    given = np.random.default_rng(0).standard_normal(32).astype(kind)
    total, old = np.zeros(1, kind), np.zeros(32, kind)
    ptx.run(atomic_text(name, given.itemsize * 8, False), "k", 1, 32, [total, given, old])
    sums = np.cumsum(np.concatenate([[kind(0)], given]), dtype=kind)
    np.testing.assert_array_equal(old, sums[:-1])
    assert total[0] == sums[-1]


def test_compare_and_swap() -> None:
    text = atomic_text("cas.b32", 32, True).replace("[%a0], %v;", "[%a0], 7, %v;")
    cells = np.array([7, 8] * 16, np.uint32)
    given, old = np.arange(100, 132, dtype=np.uint32), np.zeros(32, np.uint32)
    ptx.run(text, "k", 1, 32, [cells, given, old])
    assert cells.tolist() == [100 + i if i % 2 == 0 else 8 for i in range(32)]
    assert old.tolist() == [7, 8] * 16


# ---- matrices: fragments by the manual's layouts, whole numbers, so that sums are exact ----


def fragments(lane_of: Callable[[int, int], tuple[int, int]], n: int) -> np.ndarray:
    """Row and column of element i of each lane: (32, n, 2)."""
    return np.array([[lane_of(lane, i) for i in range(n)] for lane in range(32)])


def packed(matrix: np.ndarray, where: np.ndarray) -> list[list[int]]:
    """A lane's elements as registers of 32 bits, lowest first: one list a register."""
    elements = np.ascontiguousarray(matrix[where[..., 0], where[..., 1]])
    words = elements.view(np.uint8).reshape(32, -1).view(np.uint32)
    return [words[:, i].tolist() for i in range(words.shape[1])]


def a_place(per_word: int) -> Callable[[int, int], tuple[int, int]]:
    """Of A (16 rows): words of `per_word` neighbours in k; rows 8 further, then k further."""

    def place(lane: int, i: int) -> tuple[int, int]:
        word, part = divmod(i, per_word)
        row = lane // 4 + 8 * (word % 2)
        return row, lane % 4 * per_word + part + 4 * per_word * (word // 2)

    return place


def b_place(per_word: int) -> Callable[[int, int], tuple[int, int]]:
    def place(lane: int, i: int) -> tuple[int, int]:
        word, part = divmod(i, per_word)
        return lane % 4 * per_word + part + 4 * per_word * word, lane // 4

    return place


def c_place(lane: int, i: int) -> tuple[int, int]:
    return lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2


PRODUCTS = {
    "m16n8k16.row.col.f32.f16.f16.f32": (np.float16, np.float16, np.float32, 16),
    "m16n8k8.row.col.f32.f16.f16.f32": (np.float16, np.float16, np.float32, 8),
    "m16n8k16.row.col.f32.bf16.bf16.f32": (ml_dtypes.bfloat16, ml_dtypes.bfloat16, np.float32, 16),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (np.float32, np.float32, np.float32, 8),
    "m16n8k16.row.col.f16.f16.f16.f16": (np.float16, np.float16, np.float16, 16),
    "m16n8k32.row.col.s32.s8.s8.s32": (np.int8, np.int8, np.int32, 32),
    "m16n8k32.row.col.s32.u8.s8.s32": (np.uint8, np.int8, np.int32, 32),
    "m16n8k32.row.col.satfinite.s32.s8.s8.s32": (np.int8, np.int8, np.int32, 32),
}


@pytest.mark.parametrize("shape", list(PRODUCTS))
def test_mma(shape: str) -> None:
    a_kind, b_kind, c_kind, k = PRODUCTS[shape]
    rng = np.random.default_rng(0)
    low = 0 if a_kind is np.uint8 else -8
    a, b = rng.integers(low, 9, (16, k)).astype(a_kind), rng.integers(-8, 9, (k, 8)).astype(b_kind)
    c = rng.integers(-100, 100, (16, 8)).astype(c_kind)
    per_word = 4 // np.dtype(a_kind).itemsize
    a_words = packed(a, fragments(a_place(per_word), 16 * k // 32))
    b_words = packed(b, fragments(b_place(per_word), 8 * k // 32))
    c_words = packed(c, fragments(c_place, 4))
    groups, at = [], 0
    for words in (a_words, b_words, c_words):
        groups.append("{" + ", ".join(f"%s{at + i}" for i in range(len(words))) + "}")
        at += len(words)
    n_out = len(c_words)
    d = "{" + ", ".join(f"%d{i}" for i in range(n_out)) + "}"
    text = f"mma.sync.aligned.{shape} {d}, {', '.join(groups)};"
    got = execute(text, (32,) * n_out, *[(32, w) for w in a_words + b_words + c_words])
    want = (a.astype(np.float64) @ b.astype(np.float64) + c.astype(np.float64)).astype(c_kind)
    assert got == packed(want, fragments(c_place, 4))


def rows_of() -> str:
    """Text that stores a lane's 16 bytes (%s0 to %s3) in shared memory, at %u0."""
    return (
        ".shared .align 16 .b8 rows[512]; mov.u32 %u0, %laneid; shl.b32 %u0, %u0, 4; "
        "mov.u32 %u1, rows; add.u32 %u0, %u0, %u1; "
        "st.shared.v4.b32 [%u0], {%s0, %s1, %s2, %s3}; bar.warp.sync -1; "
    )


def test_matrix_copies() -> None:
    halves = np.arange(32 * 8, dtype=np.uint16).reshape(32, 8)  # a row of a matrix each
    words = [(32, halves.view(np.uint32)[:, i].tolist()) for i in range(4)]
    matrices = halves.reshape(4, 8, 8)
    for name, turned in (("", matrices), (".trans", matrices.transpose(0, 2, 1))):
        text = f"ldmatrix.sync.aligned.m8n8.x4{name}.shared.b16 {{%d0, %d1, %d2, %d3}}, [%u0];"
        got = execute(rows_of() + text, (32,) * 4, *words)
        want = np.ascontiguousarray(turned).view(np.uint32).reshape(4, 32)
        assert got == want.tolist()
        text = (
            f"stmatrix.sync.aligned.m8n8.x4{name}.shared.b16 [%u0], {{%s0, %s1, %s2, %s3}}; "
            "bar.warp.sync -1; ld.shared.v4.b32 {%d0, %d1, %d2, %d3}, [%u0];"
        )
        registers = np.array([w for _, w in words], np.uint32)  # each a matrix, 4 lanes a row
        stored = registers.view(np.uint16).reshape(4, 8, 8)
        stored = stored.transpose(0, 2, 1) if name else stored
        lanes = np.ascontiguousarray(stored).reshape(32, 8).view(np.uint32)
        got = execute(rows_of() + text, (32,) * 4, *words)
        assert got == lanes.T.tolist()
    one = halves[:8].view(np.uint32).reshape(32).tolist()
    [got1] = execute("movmatrix.sync.aligned.m8n8.trans.b16 %d0, %s0;", (32,), (32, one))
    turned = np.ascontiguousarray(halves[:8].T).view(np.uint32).reshape(32)
    assert got1 == turned.tolist()


@pytest.mark.parametrize("address", ["%u0", "%w0"])
@pytest.mark.parametrize("n", [1, 2])
def test_copies_of_fewer_matrices(n: int, address: str) -> None:
    """Only the first lanes name rows; what the others hold is no address."""
    halves = np.arange(32 * 8, dtype=np.uint16).reshape(32, 8)
    words = [(32, halves.view(np.uint32)[:, i].tolist()) for i in range(4)]
    others = (
        f"cvt.u64.u32 %w0, %u0; mov.u32 %u2, %laneid; setp.ge.u32 %q0, %u2, {8 * n}; "
        "@%q0 mov.b32 %u0, -1; @%q0 mov.b64 %w0, -1; "
    )
    d = ", ".join(f"%d{i}" for i in range(n))
    for name in ("", ".trans"):
        text = f"ldmatrix.sync.aligned.m8n8.x{n}{name}.shared.b16 {{{d}}}, [{address}];"
        got = execute(rows_of() + others + text, (32,) * n, *words)
        matrices = halves[: 8 * n].reshape(n, 8, 8)
        turned = matrices.transpose(0, 2, 1) if name else matrices
        assert got == np.ascontiguousarray(turned).view(np.uint32).reshape(n, 32).tolist()


@pytest.mark.parametrize(
    ("kind", "dtype", "largest"),
    [("e4m3", ml_dtypes.float8_e4m3fn, 448), ("e5m2", ml_dtypes.float8_e5m2, 57344)],
)
def test_convert_to_8_bits(kind: str, dtype: Any, largest: int) -> None:
    values = floats("f32", 40)
    rng = np.random.default_rng(0)
    near = (rng.standard_normal(400) * np.exp2(rng.integers(-12, 12, 400))).astype(np.float32)
    values = [*values, *near.view(np.uint32).tolist()]
    numbers = np.array(values, np.uint32).view(np.float32)
    want = np.clip(numbers, -largest, largest).astype(dtype).view(np.uint8)
    text = f"cvt.rn.satfinite.{kind}x2.f32 %d0, %s0, %s1;"
    [got] = execute(text, (16,), (32, values), (32, values[::-1]))
    halves = [(g >> 8, g & 255) for g in got]
    nan = np.isnan(numbers)
    for i, (high, low) in enumerate(halves):
        j = len(values) - 1 - i
        assert high == want[i] or nan[i], (hex(values[i]), high, want[i])
        assert low == want[j] or nan[j], (hex(values[j]), low, want[j])
        assert not nan[i] or high & 0x7F == 0x7F, hex(high)
    every = [a << 8 | b for a in range(256) for b in (a ^ 1, 255 - a)]
    [got] = execute(f"cvt.rn.f16x2.{kind}x2 %d0, %s0;", (32,), (16, every))
    for x, g in zip(every, got, strict=True):
        for shift in (0, 8):
            byte = np.array([x >> shift & 255], np.uint8).view(dtype).astype(np.float16)
            result = np.array([g >> 2 * shift & mask(16)], np.uint16).view(np.float16)
            np.testing.assert_array_equal(result, byte)


# ---- blocks and asynchronous copies ----


def test_barrier_reductions() -> None:
    p = [int(i % 3 == 0) for i in range(64)]
    text = (
        "bar.red.popc.u32 %d0, 0, %s0; bar.red.and.pred %d1, 0, %s0; bar.red.or.pred %d2, 0, %s0;"
    )
    count, every, some = execute(text, (32, 1, 1), (1, p))
    assert (count, every, some) == ([sum(p)] * 64, [0] * 64, [1] * 64)
    [count] = execute("bar.red.popc.u32 %d0, 0, !%s0;", (32,), (1, p))
    assert count == [64 - sum(p)] * 64


def test_copies_of_part_of_their_bytes() -> None:
    """cp.async fills the rest with zeros; %a1 is where the last input lies."""
    data, sizes = integers(32, 20), [i % 5 for i in range(32)]
    text = (
        ".shared .align 16 .b8 cells[128]; mov.u32 %u0, %laneid; shl.b32 %u0, %u0, 2; "
        "mov.u32 %u1, cells; add.u32 %u0, %u0, %u1; "
        "cp.async.ca.shared.global [%u0], [%a1], 4, %s0; cp.async.commit_group; "
        "cp.async.wait_group 0; ld.shared.b32 %d0, [%u0];"
    )
    [got] = execute(text, (32,), (32, sizes), (32, data))
    check(got, [x & mask(8 * n) for x, n in zip(data, sizes, strict=True)], data, sizes)


def test_groups_of_copies_are_a_lanes_own() -> None:
    """All but the latest group: the first one for lanes that commit two, none for the others."""
    text = (
        ".shared .align 16 .b8 cells[256]; mov.u32 %u0, %laneid; setp.lt.u32 %q0, %u0, 16; "
        "shl.b32 %u0, %u0, 2; mov.u32 %u1, cells; add.u32 %u0, %u0, %u1; mov.b32 %d0, 0; "
        "cp.async.ca.shared.global [%u0], [%a1], 4; cp.async.commit_group; "
        "@%q0 cp.async.ca.shared.global [%u0+128], [%a1], 4; @%q0 cp.async.commit_group; "
        "cp.async.wait_group 1; "
    )
    data = list(range(100, 132))
    [got] = execute(text + "@%q0 ld.shared.b32 %d0, [%u0];", (32,), (32, data))
    assert got == data[:16] + [0] * 16
    for early in ("@!%q0 ld.shared.b32 %d0, [%u0];", "@%q0 ld.shared.b32 %d0, [%u0+128];"):
        with pytest.raises(ptx.PtxFault) as found:
            execute(text + early, (32,), (32, data))
        assert found.value.kind == "pending"


def test_packed_atomics() -> None:
    cells = np.arange(64, dtype=np.float16)
    given = (np.arange(64, dtype=np.float16) / 4).copy()
    before, old = cells.copy(), np.zeros(64, np.float16)
    ptx.run(atomic_text("add.noftz.f16x2", 32, True), "k", 1, 32, [cells, given, old])
    np.testing.assert_array_equal(cells, before + given)
    np.testing.assert_array_equal(old, before)


def fns(bits: int, base: int, offset: int) -> int:
    """The manual's pseudocode (9.7.1.19)."""
    found, step = 0, 1 if offset > 0 else -1
    if offset == 0:
        return base if bits >> base & 1 else mask(32)
    at = base
    while 0 <= at < 32:
        if bits >> at & 1:
            found += 1
            if found == abs(offset):
                return at
        at += step
    return mask(32)


def test_nth_set_bit() -> None:
    rng = random.Random(4)
    bits = [rng.randrange(1 << 32) for _ in range(256)]
    base, offset = [rng.randrange(32) for _ in bits], [rng.randrange(-6, 7) for _ in bits]
    [got] = execute("fns.b32 %d0, %s0, %s1, %s2;", (32,), (32, bits), (32, base),
                    (32, [o & mask(32) for o in offset]))  # fmt: skip
    check(got, [fns(*x) for x in zip(bits, base, offset, strict=True)], bits, base)
