"""Exact arithmetic for the tests of the PTX machine: floats as fractions, rounded once.

A `Format` turns bits into a `Value` (a fraction, or NaN or an infinity, with a sign) and back, in
any rounding mode, subnormals included; so a reference computes exactly and rounds at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

NAN, INFINITE, FINITE = "nan", "infinite", "finite"


@dataclass(frozen=True)
class Value:
    """A float: its kind, whether its sign is set, and its magnitude where it is finite."""

    kind: str
    negative: bool = False
    size: Fraction = Fraction(0)

    @property
    def exact(self) -> Fraction:
        return -self.size if self.negative else self.size


def finite(number: Fraction | int, negative_zero: bool = False) -> Value:
    number = Fraction(number)
    return Value(FINITE, number < 0 or (number == 0 and negative_zero), abs(number))


NOT_A_NUMBER = Value(NAN)


@dataclass(frozen=True)
class Format:
    """A binary format of IEEE 754's kind."""

    exponent_bits: int
    mantissa_bits: int

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def largest(self) -> Fraction:
        top = (1 << self.exponent_bits) - 2 - self.bias
        return Fraction(2) ** top * (2 - Fraction(1, 1 << self.mantissa_bits))

    def decode(self, bits: int) -> Value:
        negative = bool(bits >> (self.bits - 1))
        exponent = bits >> self.mantissa_bits & ((1 << self.exponent_bits) - 1)
        mantissa = bits & ((1 << self.mantissa_bits) - 1)
        if exponent == (1 << self.exponent_bits) - 1:
            return Value(NAN if mantissa else INFINITE, negative)
        if exponent:
            mantissa |= 1 << self.mantissa_bits
        power = max(exponent, 1) - self.bias - self.mantissa_bits
        return Value(FINITE, negative, mantissa * Fraction(2) ** power)

    def flush(self, value: Value) -> Value:
        """Subnormals become zeros of their sign."""
        small = value.kind == FINITE and value.size < Fraction(2) ** (1 - self.bias)
        return Value(FINITE, value.negative) if small else value

    def encode(self, value: Value, mode: str = "rn") -> int:
        """The bits of a value, rounded once: rn (ties to even), rna (ties away), rz, rm, rp."""
        sign = value.negative << (self.bits - 1)
        infinity = ((1 << self.exponent_bits) - 1) << self.mantissa_bits
        if value.kind == NAN:
            return infinity | (1 << self.mantissa_bits) - 1
        if value.kind == INFINITE:
            return sign | infinity
        if value.size == 0:
            return sign
        exponent = _exponent(value.size)
        power = max(exponent, 1 - self.bias) - self.mantissa_bits
        units = round_fraction(value.size / Fraction(2) ** power, mode, value.negative)
        rounded = units * Fraction(2) ** power
        if rounded > self.largest:
            away = mode in ("rn", "rna") or mode == ("rm" if value.negative else "rp")
            return sign | (infinity if away else infinity - 1)
        if units == 0:
            return sign
        exponent = max(_exponent(rounded), 1 - self.bias)
        units = int(rounded / Fraction(2) ** (exponent - self.mantissa_bits))
        if units < 1 << self.mantissa_bits:
            return sign | units
        return (
            sign | (exponent + self.bias) << self.mantissa_bits | units - (1 << self.mantissa_bits)
        )


def _exponent(size: Fraction) -> int:
    """Floor of the logarithm to base 2."""
    guess = size.numerator.bit_length() - size.denominator.bit_length()
    return guess if Fraction(2) ** guess <= size else guess - 1


def round_fraction(size: Fraction, mode: str, negative: bool) -> int:
    """A magnitude as a whole number."""
    whole = size.numerator // size.denominator
    rest = size - whole
    if mode in ("rn", "rni"):
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole & 1 == 1)
    elif mode == "rna":
        up = rest >= Fraction(1, 2)
    elif mode in ("rz", "rzi"):
        up = False
    else:
        up = rest > 0 and (mode in ("rm", "rmi")) == negative
    return whole + up


F16, BF16, F32, F64 = Format(5, 10), Format(8, 7), Format(8, 23), Format(11, 52)
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}


# ---- operations on values; `mode` matters for the sign of an exact zero only ----


def add(a: Value, b: Value, mode: str = "rn") -> Value:
    if NAN in (a.kind, b.kind):
        return NOT_A_NUMBER
    if a.kind == INFINITE or b.kind == INFINITE:
        if a.kind == b.kind and a.negative != b.negative:
            return NOT_A_NUMBER
        return a if a.kind == INFINITE else b
    total = a.exact + b.exact
    if total:
        return finite(total)
    negative = a.negative if a.negative == b.negative else mode == "rm"
    return Value(FINITE, negative)


def mul(a: Value, b: Value, mode: str = "rn") -> Value:
    if NAN in (a.kind, b.kind):
        return NOT_A_NUMBER
    negative = a.negative != b.negative
    if INFINITE in (a.kind, b.kind):
        zero = any(v.kind == FINITE and v.size == 0 for v in (a, b))
        return NOT_A_NUMBER if zero else Value(INFINITE, negative)
    return Value(FINITE, negative, a.size * b.size)


def fma(a: Value, b: Value, c: Value, mode: str = "rn") -> Value:
    return add(mul(a, b), c, mode)


def div(a: Value, b: Value, mode: str = "rn") -> Value:
    if NAN in (a.kind, b.kind) or (a.kind == b.kind == INFINITE):
        return NOT_A_NUMBER
    negative = a.negative != b.negative
    if a.kind == INFINITE:
        return Value(INFINITE, negative)
    if b.kind == INFINITE:
        return Value(FINITE, negative)
    if b.size == 0:
        return NOT_A_NUMBER if a.size == 0 else Value(INFINITE, negative)
    return Value(FINITE, negative, a.size / b.size)


def sqrt(a: Value, mode: str = "rn") -> Value:
    """Not exact, but with 160 bits, of which the last says whether more followed."""
    if a.kind == NAN or (a.negative and not (a.kind == FINITE and a.size == 0)):
        return NOT_A_NUMBER
    if a.kind == INFINITE or a.size == 0:
        return a
    scale = 320 - 2 * (_exponent(a.size) // 2)
    scaled = a.size * Fraction(2) ** scale
    root = math.isqrt(scaled.numerator // scaled.denominator)
    exact = root * root == scaled
    return Value(FINITE, False, Fraction(2 * root + (not exact), 2) / Fraction(2) ** (scale // 2))


def lowest(a: Value, b: Value, largest: bool, nan: bool = False) -> Value:
    """min or max: a number wins over NaN (or loses, `nan`), and -0 is below +0."""
    if a.kind == NAN or b.kind == NAN:
        if nan or a.kind == b.kind:
            return NOT_A_NUMBER
        return b if a.kind == NAN else a
    return max(a, b, key=_rank) if largest else min(a, b, key=_rank)


def _rank(v: Value) -> tuple[int, Fraction, int]:
    side = 0 if v.kind == FINITE else -1 if v.negative else 1
    return side, v.exact if v.kind == FINITE else Fraction(0), not v.negative


def compare(a: Value, b: Value, how: str) -> bool:
    """setp's comparisons of floats, unordered forms included."""
    if how in ("num", "nan"):
        return (NAN in (a.kind, b.kind)) == (how == "nan")
    unordered = how.endswith("u") and how not in ("u",)
    base = how[:-1] if unordered else how
    if NAN in (a.kind, b.kind):
        return unordered
    ra, rb = _rank(a)[:2], _rank(b)[:2]
    return COMPARISONS[base](ra, rb)


COMPARISONS: dict[str, Callable[..., bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "lo": lambda a, b: a < b, "ls": lambda a, b: a <= b, "hi": lambda a, b: a > b,
    "hs": lambda a, b: a >= b,
}  # fmt: skip


def saturate(value: Value) -> Value:
    """.sat: to [0, 1], NaN to 0."""
    if value.kind == NAN or value.negative:
        return Value(FINITE)
    if value.kind == INFINITE or value.size > 1:
        return finite(1)
    return value


def signed(bits: int, width: int) -> int:
    """Bits as a number in two's complement."""
    return bits - (1 << width) if bits >> (width - 1) else bits
