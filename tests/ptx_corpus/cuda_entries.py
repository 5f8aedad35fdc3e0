"""The corpus's CUDA entries: inputs, references, tolerances."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from minigrad.kernels.cu import attention as own_attention
from minigrad.kernels.cu import layer_norm as own_layer_norm
from minigrad.kernels.cu import softmax as own_softmax

from . import CudaStart, Entry, Run, owned
from .references import TOLERANCE, attention_of, normal, normed, softmax_of, wide, zeros

SEEDED = np.random.default_rng


def ints(rng: np.random.Generator, low: int, high: int, *shape: int) -> np.ndarray:
    return owned(rng.integers(low, high, shape, dtype=np.int64).astype(np.int32))


# ---- lanes, warps, blocks ----


def shuffles(seed: int) -> Run:
    x = ints(SEEDED(seed), 0, 1000, 32)
    out = zeros("int32", 10, 32)
    lane = np.arange(32)

    def taken(source: np.ndarray, valid: np.ndarray) -> np.ndarray:
        return x[np.where(valid, source, lane)]

    always = lane >= 0
    odd = np.where(lane % 3 == 0, taken(np.where(lane + 3 < 32, lane + 3, 0), always), -1)
    want = [
        taken((lane * 7 + 3) % 32, always),
        taken(lane - 3, lane >= 3),
        taken(lane + 5, lane + 5 < 32),
        taken(lane ^ 9, always),
        taken(lane // 8 * 8 + 2, always),
        taken(lane - 2, lane % 8 >= 2),
        taken(lane + 3, lane % 16 + 3 < 16),
        # clamp = 31 in the segment of 8: a lane below the segment's own end is still read
        taken(lane ^ 12, (lane ^ 12) <= lane // 8 * 8 + 7),
        taken(np.full(32, 5), always),
        odd,
    ]
    return Run(CudaStart("warps.cu", "shuffles", (1,), (32,), [x, out]), {1: np.stack(want)})


def votes(seed: int) -> Run:
    x = ints(SEEDED(seed), 0, 1000, 32)
    out = zeros("uint32", 14, 32)
    lanes = range(32)

    def ballot(condition: np.ndarray, of: range = lanes) -> int:
        return sum(1 << i for i in of if condition[i])

    def join(start: int, op: Callable[[int, int], int], values: list[int]) -> int:
        for v in values:
            start = op(start, v)
        return start & 0xFFFFFFFF

    low, high = range(20), range(20, 32)
    all_same = len(set(x >> 10)) == 1
    rows: list[Any] = [
        int(np.any(x == x[5])),
        int(np.all(x >= 0)),
        ballot(x & 1),
        [ballot((x & 3) == (x[i] & 3)) for i in lanes],
        0xFFFFFFFF if all_same else 0,
        int(all_same),
        int(x.sum()) & 0xFFFFFFFF,
        int((-x).max()) & 0xFFFFFFFF,
        min((int(v) << 24) & 0xFFFFFFFF for v in x),
        join(0xFFFFFFFF, lambda a, b: a & b, [int(v) | 12 for v in x]),
        join(0, lambda a, b: a | b, [int(v) & 12 for v in x]),
        join(0, lambda a, b: a ^ b, [int(v) for v in x]),
        [ballot(x & 1, high) if i >= 20 else ballot(x & 2, low) for i in lanes],
        [int(x[20:].sum()) if i >= 20 else ballot((x & 3) == (x[i] & 3), low) for i in lanes],
    ]
    want = np.stack([np.broadcast_to(np.array(r, np.uint32), (32,)) for r in rows])
    return Run(CudaStart("warps.cu", "votes", (1,), (32,), [x, out]), {1: want})


def collatz(seed: int) -> Run:
    n = 150
    start = owned(SEEDED(seed).integers(1, 60000, n).astype(np.uint32))
    steps, largest = zeros("int32", n), zeros("uint32", n)
    want, tops = [], []
    for value in start:
        x = top = int(value)
        count = 0
        while x != 1 and count < 100:
            count += 1
            x = x // 2 if x % 2 == 0 else 3 * x + 1
            top = max(top, x)
        want.append(count)
        tops.append(top & 0xFFFFFFFF)
    launch = CudaStart("warps.cu", "collatz", (3,), (64,), [start, steps, largest, np.int32(n)])
    return Run(launch, {1: np.array(want), 2: np.array(tops, np.uint32)})


def branches(seed: int) -> Run:
    n = 200
    x, out = ints(SEEDED(seed), 0, 5000, n), zeros("int32", n)

    def one(v: int) -> int:
        kind, total = v % 6, 0
        if kind == 0:
            return v * 3
        if kind in (1, 2):
            return (v - 7 if kind == 1 else 0) + (v ^ 0x55)
        if kind == 3:
            for a in range(v % 13):
                for b in range(a):
                    total += a * b
                    if total > 200:
                        return -total
            return total
        return v.bit_count() if kind == 4 else v << (v & 7)

    want = np.array([one(int(v)) for v in x])
    launch = CudaStart("warps.cu", "branches", (2,), (128,), [x, out, np.int32(n)])
    return Run(launch, {1: want})


def block_sums(seed: int) -> Run:
    n = 1500
    x, out = normal(SEEDED(seed), "float32", n), zeros("float32", 3)
    part = np.arange(n) // 128 % 3
    want = np.array([wide(x)[part == b].sum() for b in range(3)])
    launch = CudaStart(
        "warps.cu", "block_sums", (3,), (128,), [x, out, np.int32(n)], shared_bytes=512
    )
    return Run(launch, {1: want})


def block_scan(seed: int) -> Run:
    x, out, counts = ints(SEEDED(seed), 0, 100, 2, 160), zeros("int32", 2, 160), zeros("int32", 2)
    launch = CudaStart(
        "warps.cu", "block_scan", (2,), (160,), [x, out, counts], shared_bytes=2 * 160 * 4
    )
    flags = (x & 1).sum(1) * 4 + (x > 90).any(1) * 2 + (x >= 0).all(1)
    return Run(launch, {1: x.cumsum(1), 2: flags})


def transpose(seed: int) -> Run:
    x, out = normal(SEEDED(seed), "float32", 45, 70), zeros("float32", 70, 45)
    launch = CudaStart(
        "warps.cu", "transpose", (3, 2), (32, 8), [x, out, np.int32(45), np.int32(70)]
    )
    return Run(launch, {1: x.T.copy()})


def hand_over(seed: int) -> Run:
    x, out = ints(SEEDED(seed), 0, 1000, 5, 32), zeros("int32", 5, 32)
    launch = CudaStart("warps.cu", "hand_over", (1,), (64,), [x, out, np.int32(5)])
    return Run(launch, {1: x[:, ::-1] * 2})


# ---- memory ----


def atomics(seed: int) -> Run:
    n = 200
    x = ints(SEEDED(seed), 1, 1000, n)
    words = zeros("uint32", 8)
    words[0], words[5] = 0xFFFFFFFF, 0xFFFFFFFF
    signed = zeros("int32", 8)
    signed[2] = 5000
    floats, doubles = zeros("float32", 8), zeros("float64", 2)
    longs = zeros("uint64", 4)
    halves, bfloats = zeros("float16", 8, 2), zeros("bfloat16", 8, 2)
    bits = [1 << (int(v) & 31) for v in x]
    want_signed = [x.sum(), -x.sum(), x.min(), x.max(), 17, 23, 0, 0]
    either, odd = 0, 0
    for b in bits:
        either, odd = either | b, odd ^ b
    down = 0
    for _ in x:
        down = 6 if down == 0 or down > 6 else down - 1
    want_words = [~either & 0xFFFFFFFF, either, odd, n % 7, down, x.min(), x.max(), 0]
    want_floats = [0.25 * x[np.arange(n) % 4 == k].sum() for k in range(4)] + [1.5, 0, 0, 0]
    want_longs = [x.sum(), int(x.max()) << 33, 5, 0]
    want_halves = np.stack([np.array([25.0, 12.5])] * 8)
    arguments = [x, signed, words, floats, doubles, longs, halves, bfloats, np.int32(n)]
    expected = {
        1: np.array(want_signed),
        2: np.array(want_words, np.uint32),
        3: np.array(want_floats),
        4: np.array([0.125 * x.sum(), 0]),
        5: np.array(want_longs, np.uint64),
        6: want_halves,
        7: np.stack([np.array([25.0, 50.0])] * 8),
    }
    return Run(CudaStart("memory.cu", "atomics", (2,), (128,), arguments), expected)


def tickets(seed: int) -> Run:
    following, taken = zeros("int32", 1), zeros("int32", 150)
    launch = CudaStart("memory.cu", "tickets", (3,), (64,), [following, taken, np.int32(150)])
    return Run(launch, {0: np.array([150]), 1: np.ones(150)})


def histogram(seed: int) -> Run:
    x = owned(SEEDED(seed).integers(0, 256, 3000).astype(np.uint8))
    out = zeros("uint32", 64)
    launch = CudaStart("memory.cu", "histogram", (3,), (96,), [x, out, np.int32(3000)])
    return Run(launch, {1: np.bincount(x % 64, minlength=64)})


def float_max(seed: int) -> Run:
    x, out = owned(np.abs(normal(SEEDED(seed), "float32", 300))), zeros("float32", 1)
    launch = CudaStart("memory.cu", "float_max", (3,), (128,), [x, out, np.int32(300)])
    return Run(launch, {1: x.max(keepdims=True)})


def spin_lock(seed: int) -> Run:
    lock, count, order = zeros("int32", 1), zeros("int32", 1), zeros("int32", 80)
    launch = CudaStart("memory.cu", "spin_lock", (2,), (40,), [lock, count, order])
    return Run(launch, {0: np.array([0]), 1: np.array([80])})


def spin_lock_flag(seed: int) -> Run:
    lock, count = zeros("int32", 1), zeros("int32", 1)
    launch = CudaStart("memory.cu", "spin_lock_flag", (2,), (64,), [lock, count])
    return Run(launch, {0: np.array([0]), 1: np.array([128])})


def last_block_sums(seed: int) -> Run:
    x = owned(np.abs(normal(SEEDED(seed), "float32", 2000)))
    parts, out, finished = zeros("float32", 4), zeros("float32", 1), zeros("uint32", 1)
    launch = CudaStart(
        "memory.cu", "last_block_sums", (4,), (128,), [x, parts, out, finished, np.int32(2000)]
    )
    want = np.array([wide(x)[np.arange(2000) // 128 % 4 == b].sum() for b in range(4)])
    return Run(launch, {1: want, 2: want.sum(keepdims=True), 3: np.array([0])})


def chained_scan(seed: int) -> Run:
    x, out = ints(SEEDED(seed), 0, 100, 5, 64), zeros("int32", 5, 64)
    state, following = owned(np.full(5, -1, np.int32)), zeros("int32", 1)
    launch = CudaStart("memory.cu", "chained_scan", (5,), (64,), [x, out, state, following])
    return Run(launch, {1: x.ravel().cumsum().reshape(5, 64)})


def waits_for_later(seed: int) -> Run:
    flag, out = zeros("int32", 1), zeros("int32", 2)
    launch = CudaStart("memory.cu", "waits_for_later", (2,), (1,), [flag, out])
    return Run(launch, {1: np.array([42, 1])})


def ring_sums(seed: int) -> Run:
    x, out = normal(SEEDED(seed), "float32", 7, 256), zeros("float32", 256)
    launch = CudaStart("memory.cu", "ring_sums", (1,), (64,), [x, out, np.int32(7)])
    return Run(launch, {1: wide(x).sum(0)})


def partial_copies(valid: int) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        x, out = ints(SEEDED(seed), 1, 1000, 128), zeros("int32", 128)
        slot = x.copy()
        slot[33:64:2] = 0
        slot[64:].reshape(32, 2)[:, valid // 4 :] = 0
        launch = CudaStart("memory.cu", "partial_copies", (1,), (32,), [x, out, np.int32(valid)])
        return Run(launch, {1: slot[np.arange(128) ^ 2]})

    return make


def group_sums(seed: int) -> Run:
    x, out = ints(SEEDED(seed), 0, 100, 64), zeros("int32", 3, 64)
    lane = np.arange(64)
    down = x[np.where(lane % 8 < 6, lane + 2, lane)] + 100 * (lane // 8)
    third = x % 3 == 0
    rank = [int(third[i // 32 * 32 : i].sum()) for i in lane]
    size = third.reshape(2, 32).sum(1).repeat(32)
    want = np.stack([x.reshape(8, 8).sum(1).repeat(8), down, np.where(third, size * 100 + rank, 0)])
    launch = CudaStart("groups.cu", "group_sums", (1,), (64,), [x, out])
    return Run(launch, {1: want})


def bitonic(seed: int) -> Run:
    x, out = normal(SEEDED(seed), "float32", 4, 32), zeros("float32", 4, 32)
    return Run(CudaStart("groups.cu", "bitonic", (2,), (64,), [x, out]), {1: np.sort(x, 1)})


def widths(seed: int) -> Run:
    n = 40
    x = owned(SEEDED(seed).integers(0, 256, (n, 32)).astype(np.uint8))
    out = zeros("uint8", 2 * n * 32 + 2 * n)
    sums = x.view(np.int8).astype(np.int16).sum(1, dtype=np.int16)
    want = np.concatenate([x.ravel(), x.ravel(), sums.view(np.uint8)])
    return Run(CudaStart("groups.cu", "widths", (1,), (64,), [x, out, np.int32(n)]), {1: want})


def tiled_product(seed: int) -> Run:
    rng = SEEDED(seed)
    m, n, k = 40, 35, 50
    a, b = normal(rng, "float32", m, k), normal(rng, "float32", k, n)
    c, total = zeros("float32", m, n), zeros("float64", 1)
    arguments = [a, b, c, total, np.int32(m), np.int32(n), np.int32(k)]
    launch = CudaStart("groups.cu", "tiled_product", (3, 3), (16, 16), arguments)
    return Run(launch, {2: wide(a) @ wide(b)})


# ---- the language ----


def calls(seed: int) -> Run:
    n = 70
    x, out, small = normal(SEEDED(seed), "float32", n), zeros("float32", n), zeros("int32", 2 * n)
    slope, shift, offset, parts = 1.5, 1, 0.25, (3, -4, 5)
    by = struct.pack("<fid3h2x", slope, shift, offset, *parts)
    i = np.arange(n)
    factor = np.where(i % 2, 1, 2)
    want = factor * (slope * wide(x) + offset + parts[shift])
    fibonacci = np.array([0, 1, 1, 2, 3, 5, 8, 13, 21])
    arguments = [x, out, small, by, np.int32(n)]
    launch = CudaStart("language.cu", "calls", (2,), (64,), arguments)
    return Run(launch, {1: want, 2: np.stack([i, fibonacci[i % 9]], 1).ravel()})


def local_sort(seed: int) -> Run:
    n = 50
    x, out = ints(SEEDED(seed), 0, 40, n, 12), zeros("int32", n, 12)
    want = np.sort(x, 1)
    same = (want[:, :, None] & 15) == (want[:, None, :] & 15)
    launch = CudaStart("language.cu", "local_sort", (1,), (64,), [x, out, np.int32(n)])
    return Run(launch, {1: want * 100 + same.sum(2)})


def constants(seed: int) -> Run:
    n = 40
    x, out, numbers = normal(SEEDED(seed), "float32", n), zeros("float32", n), zeros("int32", 2, n)
    weights = np.array([0.5, -1.0, 2.0, 0.25, 3.0, -0.125, 1.5, 4.0])
    picks, i = np.array([[1, 2, 3], [4, 5, 6]]), np.arange(n)
    table = np.arange(1, 7) * 10
    letters = np.array([[97, 98, 0], [99, 100, 101]])
    want = np.stack([picks[i % 2, i % 3] + table[i % 6], letters[i % 2, i % 3]])
    launch = CudaStart("language.cu", "constants", (1,), (64,), [x, out, numbers, np.int32(n)])
    return Run(launch, {1: wide(x) * weights[i % 8] + weights[3], 2: want})


PRINTED = "".join(
    f"thread {i} of block: {0.5 * i:.3f} {7 + i:5d}|{-i:<4d}|{1 << (40 + i)} "
    f"{'abc'[i]} {255 - i:x} %\n"
    for i in range(3)
)


def prints(seed: int) -> Run:
    x = owned(np.arange(3, dtype=np.float32) * 0.5)
    return Run(CudaStart("language.cu", "prints", (1,), (32,), [x, np.int32(3)]), {})


def asserts(seed: int) -> Run:
    x = ints(SEEDED(seed), 0, 10, 20)
    return Run(CudaStart("language.cu", "asserts", (1,), (32,), [x, np.int32(20)]), {})


def pairs(entry: str, dtype: str) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = SEEDED(seed)
        x, y, z = (normal(rng, dtype, 32, 2, scale=4.0) for _ in range(3))
        z[3] = np.nan
        out = zeros(dtype, 12, 32, 2)
        a, b, c = wide(x), wide(y), wide(z)
        with np.errstate(invalid="ignore"):
            fma = a * b + c
            relu = np.where(np.isnan(fma), np.nan, np.maximum(fma, 0))
        higher = np.where(np.isnan(c), np.nan, np.maximum(a, c))
        results = [a + b, a - b, a * b, fma, relu, np.minimum(a, b), np.maximum(a, b), -a,
                   np.abs(a), (a > b).astype(float), higher, a[:, ::-1]]  # fmt: skip
        want = wide(np.stack(results).astype(x.dtype))
        return Run(CudaStart("language.cu", entry, (1,), (32,), [x, y, z, out]), {3: want})

    return make


def integers(seed: int) -> Run:
    n, rng = 64, SEEDED(seed)
    x, y = ints(rng, -(2**31), 2**31, n), ints(rng, -(2**31), 2**31, n)
    x[:4], y[:4] = [0, -1, 2**31 - 1, -(2**31)], [7, -1, -(2**31), 1]
    out, longs = zeros("int32", 20, n), zeros("int64", 8, n)
    columns = [integers_of(int(a), int(b)) for a, b in zip(x, y, strict=True)]
    small = np.array([c[0] for c in columns]).T
    large = np.array([c[1] for c in columns]).T
    arguments = [x, y, out, longs, np.int32(n)]
    launch = CudaStart("language.cu", "integers", (1,), (64,), arguments)
    return Run(launch, {2: small, 3: large})


M32, M64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


def signed(value: int, bits: int = 32) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return -quotient if (a < 0) != (b < 0) else quotient


def integers_of(a: int, b: int) -> tuple[list[int], list[int]]:
    """What language.cu's `integers` computes for one pair, in Python's integers."""
    u, v = a & M32, b & M32
    u4, v4 = [u >> s & 255 for s in (0, 8, 16, 24)], [v >> s & 255 for s in (0, 8, 16, 24)]
    bytes8 = u4 + v4
    selector = 0x6420 + (u & 7)
    permuted = sum(bytes8[selector >> 4 * k & 7] << 8 * k for k in range(4))
    pairs16 = [max(signed(u >> s, 16), signed(v >> s, 16)) & 0xFFFF for s in (0, 16)]
    small = [
        a * b >> 32,
        u * v >> 32,
        32 - u.bit_length(),
        u.bit_count(),
        int(f"{u:032b}"[::-1], 2),
        (u & -u).bit_length(),
        permuted,
        (v << 32 | u) << 13 >> 32,
        (v << 32 | u) >> 13,
        abs(a - b) + 5,
        0 if b == 0 else u // (v | 1),
        0 if b in (0, -1) else a - truncated(a, b | 1) * (b | 1),
        sum(signed(p, 8) * signed(q, 8) for p, q in zip(u4, v4, strict=True)) + 100,
        sum(p * q for p, q in zip(u4, v4, strict=True)) + 100,
        sum(((p + q) & 255) << 8 * k for k, (p, q) in enumerate(zip(u4, v4, strict=True))),
        pairs16[0] | pairs16[1] << 16,
        (min(a, b) & M32) ^ max(u, v),
        abs(a) + (a < b),
        (a + b) >> 1,
        (a & b) | (~a ^ (b << 3)),
    ]
    wide_l, wide_m = signed(a << 20, 64) | v, b * 77 + 3
    l64 = wide_l & M64
    large = [
        wide_l * wide_m,
        truncated(wide_l, wide_m | 1),
        l64 % ((wide_m | 1) & M64),
        wide_l * wide_m >> 64,
        l64.bit_count() * 100 + 64 - l64.bit_length(),
        int(f"{l64:064b}"[::-1], 2),
        wide_l >> (v & 63),
        l64 << (u & 63),
    ]
    return [signed(r) for r in small], [signed(r, 64) for r in large]


def conversions(seed: int) -> Run:
    rng = SEEDED(seed)
    edges = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, np.inf, -np.inf, np.nan, 3e9, -3e9, 5e9, 1e19,
             -1e19, 2e19, 65504.0, 65520.0, 70000.0, 6e-8, 3e-8, 2.98e-8, 1e-40, 3.4e38,
             2147483520.0, 0.99999997, 1.00390625, 1.01171875, 2**-25, 2**-14 * 0.9999]  # fmt: skip
    x = np.concatenate([edges, rng.standard_normal(34) * 10.0 ** rng.integers(-6, 6, 34)])
    n = len(x)
    a = owned(x.astype(np.float32))
    b = owned(np.concatenate([np.array(edges) * (1 + 2**-30), x[30:] * 1.000000119]))
    out, longs = zeros("int32", 12, n), zeros("int64", 3, n)
    floats, doubles = zeros("float32", 11, n), zeros("float64", 4, n)
    wide_a = wide(a)
    with np.errstate(all="ignore"):
        halves = a.astype(np.float16)
        cut_half = toward_zero(a, halves)
        bfloats = a.astype(ml_dtypes.bfloat16)
        cut_bfloat = toward_zero(a, bfloats)
        half_of_double = b.astype(np.float16)
        singles = b.astype(np.float32)
        whole = [
            clamped(np.rint(wide_a), 32),
            clamped(np.trunc(wide_a), 32),
            clamped(np.ceil(wide_a), 32),
            clamped(np.floor(wide_a), 32),
            clamped(np.trunc(wide_a), 32, False),
            clamped(np.trunc(b), 32, source=64),
            clamped(np.rint(b), 32, False, source=64),
            bits16(halves),
            bits16(cut_half),
            bits16(bfloats),
            bits16(cut_bfloat),
            [signed(v, 16) for v in bits16(half_of_double)],
        ]
        long = [
            clamped(np.trunc(wide_a), 64),
            clamped(np.rint(wide_a), 64, False),
            clamped(np.rint(b), 64),
        ]
        integer_parts = np.array([float(v) for v in clamped(np.trunc(b), 64)]).astype(np.float32)
        bits = a.view(np.uint32).astype(np.float64)
        pieces = [
            singles,
            toward_zero(b, singles),
            np.where(np.isnan(a), 0, np.clip(a, 0, 1)),
            np.floor(a),
            np.rint(a),
            np.trunc(a),
            np.ceil(a),
            integer_parts,
            toward_zero(bits, bits.astype(np.float32)),
            np.fmin(a, singles),
            np.fmax(a, singles),
        ]
        shifted = (b.view(np.int64) >> 3).astype(np.float64)
        large = [wide_a, np.rint(b), np.fmin(b, 1.5), shifted]
    launch = CudaStart(
        "language.cu", "conversions", (1,), (64,), [a, b, out, longs, floats, doubles, np.int32(n)]
    )
    return Run(
        launch,
        {
            2: np.array([[signed(v) for v in row] for row in whole]),
            3: np.array([[signed(v, 64) for v in row] for row in long]),
            4: np.stack(pieces),
            5: np.stack(large),
        },
    )


def bits16(halves: np.ndarray) -> list[int]:
    """Bits; a half's NaN is 0x7fff on the GPU, whatever NumPy makes of it."""
    return np.where(np.isnan(halves.astype(np.float32)), 0x7FFF, halves.view(np.uint16)).tolist()


def toward_zero(exact: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """`nearest`, a rounding of `exact`, moved to the value next to it where it is too large."""
    integer = {2: np.int16, 4: np.int32}[nearest.itemsize]
    bits = nearest.copy().view(integer)
    over = np.abs(wide(nearest)) > np.abs(wide(exact))
    return (bits - over.astype(integer)).view(nearest.dtype)


def clamped(values: np.ndarray, bits: int, is_signed: bool = True, source: int = 32) -> list[int]:
    """Float to integer as the GPU converts: saturating; NaN to 0, or to 2^(bits - 1) where either
    side has 64 bits (PTX ISA, cvt)."""
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    nan = 0 if bits == source == 32 else low or 1 << bits - 1
    found = []
    for v in values:
        if np.isnan(v):
            found.append(nan)
        elif np.isinf(v):
            found.append(high if v > 0 else low)
        else:
            found.append(min(max(int(v), low), high))
    return found


def exact_floats(seed: int) -> Run:
    rng, n = SEEDED(seed), 64
    x, y, z = (
        owned((rng.standard_normal(n) * 10.0 ** rng.integers(-3, 4, n)).astype(np.float32))
        for _ in range(3)
    )
    out, doubles = zeros("float32", 12, n), zeros("float64", 6, n)
    from fractions import Fraction

    a, b, c = ([Fraction(float(v)) for v in w] for w in (x, y, z))
    both = list(zip(a, b, c, strict=True))
    root = np.sqrt(np.abs(wide(x)))
    singles = [
        rounded([p + q for p, q, _ in both], np.float32),
        rounded([p - q for p, q, _ in both], np.float32),
        rounded([p * q for p, q, _ in both], np.float32),
        rounded([p * q + r for p, q, r in both], np.float32),
        rounded([p / q for p, q, _ in both], np.float32),
        root.astype(np.float32),
        rounded([1 / q for q in b], np.float32),
        rounded([p + q for p, q, _ in both], np.float32, "zero"),
        rounded([p * q for p, q, _ in both], np.float32, "up"),
        rounded([p * q + r for p, q, r in both], np.float32, "down"),
        rounded([p + q for p, q, _ in both], np.float32, "down"),
        np.copysign(x, y),
    ]
    tiny = [Fraction(float(v) * 1e-9) for v in y]
    more = [Fraction(float(v) + 1e-9) for v in y]
    least = [Fraction(float(v) * 1e-10) for v in z]
    exact = [
        rounded([p + q for p, q in zip(a, tiny, strict=True)], np.float64),
        rounded([p * q for p, q in zip(a, more, strict=True)], np.float64),
        rounded([p * q + r for p, q, r in zip(a, b, least, strict=True)], np.float64),
        rounded([p / q for p, q in zip(a, b, strict=True)], np.float64),
        root,
        rounded([p + q for p, q in zip(a, tiny, strict=True)], np.float64, "zero"),
    ]
    launch = CudaStart(
        "language.cu", "exact_floats", (1,), (64,), [x, y, z, out, doubles, np.int32(n)]
    )
    return Run(launch, {3: np.stack(singles), 4: np.stack(exact)})


def rounded(values: list[Any], dtype: Any, mode: str = "nearest") -> np.ndarray:
    """Fractions rounded once to float32 or float64. Values must be normal numbers."""
    from fractions import Fraction
    from math import ceil, floor

    bits = {np.float32: 24, np.float64: 53}[dtype]
    found = []
    for value in values:
        if value == 0:
            found.append(0.0)
            continue
        exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
        if abs(value) < Fraction(2) ** exponent:
            exponent -= 1
        unit = Fraction(2) ** (exponent - bits + 1)
        steps = value / unit
        if mode == "nearest":
            whole = round(steps)  # ties to even
        elif mode == "zero":
            whole = floor(steps) if steps > 0 else ceil(steps)
        else:
            whole = ceil(steps) if mode == "up" else floor(steps)
        found.append(float(whole * unit))
    return np.array(found, dtype)


def functions(seed: int) -> Run:
    rng, n = SEEDED(seed), 64
    x = owned(rng.uniform(0.01, 4, n).astype(np.float32))
    out, doubles = zeros("float32", 18, n), zeros("float64", 4, n)
    a = wide(x)
    from math import erf

    want = [np.exp(a), np.log(a), np.sin(a), np.cos((np.float32(100) * x).astype(float)),
            np.tanh(a), a ** float(np.float32(1.7)), np.sqrt(a), 1 / np.sqrt(a),
            np.array([erf(v) for v in a]), np.exp(a), np.log(wide(x + np.float32(1))), np.sin(a),
            np.cos(a), 1 / a, np.exp2(a), np.log2(a), np.arctan2(a, 2), np.cbrt(a)]  # fmt: skip
    exact = [np.exp(a), np.log(a), np.sin(a), 1 / np.sqrt(a)]
    launch = CudaStart("language.cu", "functions", (1,), (64,), [x, out, doubles, np.int32(n)])
    return Run(launch, {1: np.stack(want), 2: np.stack(exact)})


# ---- matrix products ----


def one_product(
    entry: str, dtype: str, k: int, start: tuple[float, ...] = (0, 0, 0, 0), out: str = "float32"
) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = SEEDED(seed)
        a, b = normal(rng, dtype, 16, k), normal(rng, dtype, 8, k)
        c = zeros(out, 16, 8)
        if entry == "mma_tf32":  # ten bits of mantissa: the products are exact
            a, b = ((w.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for w in (a, b))
            a, b = owned(a), owned(b)
        initial = np.zeros((16, 8))
        initial[:8, 0::2], initial[:8, 1::2] = start[:2]
        initial[8:, 0::2], initial[8:, 1::2] = start[2:]
        want = initial + wide(a) @ wide(b).T
        return Run(CudaStart("mma.cu", entry, (1,), (32,), [a, b, c]), {2: want})

    return make


def mma_s8_u8(seed: int) -> Run:
    rng = SEEDED(seed)
    a = owned(rng.integers(-128, 128, (16, 32)).astype(np.int8))
    b = owned(rng.integers(0, 256, (8, 32)).astype(np.uint8))
    c = zeros("int32", 16, 8)
    want = a.astype(np.int32) @ b.astype(np.int32).T
    return Run(CudaStart("mma.cu", "mma_s8_u8", (1,), (32,), [a, b, c]), {2: want})


def matrices(seed: int) -> Run:
    x = owned(SEEDED(seed).integers(0, 65536, (32, 8)).astype(np.uint16))
    out = zeros("uint32", 7, 32)
    blocks = x.reshape(4, 8, 8)
    turned = blocks.transpose(0, 2, 1)
    fragments = [*blocks, turned[0], turned[1], turned[3]]
    want = np.stack([f.reshape(-1).copy().view(np.uint32) for f in fragments])
    return Run(CudaStart("mma.cu", "matrices", (1,), (32,), [x, out]), {1: want})


def attention(causal: bool) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = SEEDED(seed)
        n_heads, n_queries, n_keys = 2, 128, 160
        q, k, v = (normal(rng, "float16", n_heads, t, 64) for t in (n_queries, n_keys, n_keys))
        out = zeros("float16", n_heads, n_queries, 64)
        scale = 0.125 * 1.4426950408889634
        arguments = [q, k, v, out, np.int32(n_queries), np.int32(n_keys), np.float32(scale),
                     np.int32(causal)]  # fmt: skip
        shared = (64 + 4 * 32) * 72 * 2
        launch = CudaStart(
            "mma.cu", "attention", (n_queries // 64, n_heads), (128,), arguments,
            shared_bytes=shared,
        )  # fmt: skip
        return Run(launch, {3: attention_of(q, k, v, 0.125, causal)[0]})

    return make


# ---- sm_90 ----


def bulk_sums(seed: int) -> Run:
    x, out = normal(SEEDED(seed), "float32", 7, 64), zeros("float32", 64)
    launch = CudaStart("hopper.cu", "bulk_sums", (1,), (96,), [x, out, np.int32(7)])
    return Run(launch, {1: wide(x).sum(0)})


def bulk_store(seed: int) -> Run:
    x, out = normal(SEEDED(seed), "float32", 3, 64), zeros("float32", 3, 64)
    launch = CudaStart("hopper.cu", "bulk_store", (3,), (64,), [x, out])
    return Run(launch, {1: 2 * x})


def boxes(swizzle: int) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        n_rows, n_cols, row, col = 20, 72, 15, 40  # the last rows and columns lie outside
        x = normal(SEEDED(seed), "float16", n_rows, n_cols)
        width = 64 if swizzle == 0 else 8 << swizzle
        seen, out, maps = (
            zeros("float16", 8, width),
            zeros("float16", *x.shape),
            zeros("uint8", 256),
        )
        padded = np.zeros((row + 8, col + 64), np.float16)
        padded[:n_rows, :n_cols] = x
        box = padded[row : row + 8, col : col + width]
        # 16-byte chunk number XOR the number bits three above it, as many as the swizzle's width.
        chunk = np.arange(width)
        mixed = chunk ^ (chunk >> 3 & ((1 << swizzle) - 1))
        lying = np.empty((width, 8), np.float16)
        lying[mixed] = box.reshape(width, 8)
        want = np.zeros_like(x)
        inside = (slice(row, n_rows), slice(col, min(n_cols, col + width)))
        want[inside] = 2 * x[inside]
        arguments = [x, seen, out, maps, *map(np.int32, (n_rows, n_cols, row, col, swizzle))]
        launch = CudaStart("hopper.cu", "boxes", (1,), (32,), arguments)
        return Run(launch, {1: lying.reshape(8, width), 2: want})

    return make


def wgmma_tma(seed: int) -> Run:
    rng = SEEDED(seed)
    m, n, k = 128, 64, 192
    a, b, c = normal(rng, "float16", m, k), normal(rng, "float16", n, k), zeros("float32", m, n)
    maps = zeros("uint8", 2, 256)
    launch = CudaStart(
        "hopper.cu", "wgmma_tma", (2, 1), (128,),
        [a, b, c, maps, np.int32(m), np.int32(n), np.int32(k)], shared_bytes=2 * 16384 + 1024,
    )  # fmt: skip
    return Run(launch, {2: wide(a) @ wide(b).T})


def wgmma_one(entry: str, k: int, transposed: bool = False) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = SEEDED(seed)
        shape = (k, 64) if transposed else (64, k)
        a, b, c = (
            normal(rng, "float16", *shape),
            normal(rng, "float16", *shape),
            zeros("float32", 64, 64),
        )
        want = wide(a).T @ wide(b) if transposed else wide(a) @ wide(b).T
        return Run(CudaStart("hopper.cu", entry, (1,), (128,), [a, b, c]), {2: want})

    return make


# ---- the project's own ----


def own(kernel: str, dtype: str) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = SEEDED(seed)
        if kernel == "softmax":
            x, out = normal(rng, dtype, 3, 300), zeros(dtype, 3, 300)
            return Run(CudaStart.of(own_softmax.softmax_fwd(x, out)), {1: softmax_of(x)})
        if kernel == "layer_norm":
            x, w, b, out = (normal(rng, dtype, *s) for s in ((3, 300), (300,), (300,), (3, 300)))
            mean, rstd = zeros("float32", 3), zeros("float32", 3)
            launch = own_layer_norm.layer_norm_fwd(x, None, w, b, out, None, mean, rstd, 1e-5)
            held = {id(a): i for i, a in enumerate(launch.arguments)}
            unit, m, s = normed(x, 1e-5)
            want = {held[id(out)]: unit * wide(w) + wide(b), held[id(mean)]: m, held[id(rstd)]: s}
            return Run(CudaStart.of(launch), want)
        q, k, v = (normal(rng, dtype, 1, 2, t, 40) for t in (20, 35, 35))
        out, lse = zeros(dtype, *q.shape), zeros("float32", 1, 2, 20)
        launch = own_attention.attention_fwd(
            q, k, v, None, None, out, lse, 0.2, True, -1, 0.0, None
        )
        held = {id(a): i for i, a in enumerate(launch.arguments)}
        want_out, sums, _ = attention_of(q, k, v, 0.2, True)
        return Run(CudaStart.of(launch), {held[id(out)]: want_out, held[id(lse)]: sums})

    return make


HOPPER = (90,)
FLOAT, HALF = TOLERANCE["float32"], TOLERANCE["float16"]
ENTRIES = [
    *(Entry(f"cu_{m.__name__}", m) for m in (shuffles, votes, collatz, branches, block_scan,
      transpose, hand_over, atomics, tickets, histogram, float_max, spin_lock, spin_lock_flag,
      chained_scan, waits_for_later, local_sort, group_sums, bitonic,
      widths, integers, conversions, exact_floats, asserts)),
    *(Entry(f"cu_{m.__name__}", m, FLOAT) for m in (block_sums, last_block_sums, ring_sums, calls,
      constants, tiled_product)),
    Entry("cu_partial_copies_4", partial_copies(4)),
    Entry("cu_partial_copies_0", partial_copies(0)),
    Entry("cu_prints", prints, prints=PRINTED),
    Entry("cu_functions", functions, FLOAT),
    Entry("cu_half_pairs", pairs("half_pairs", "float16")),
    Entry("cu_bfloat_pairs", pairs("bfloat_pairs", "bfloat16")),
    Entry("cu_mma_f16", one_product("mma_f16", "float16", 16), FLOAT),
    Entry("cu_mma_f16_f16", one_product("mma_f16_f16", "float16", 16, out="float16"), HALF),
    Entry("cu_mma_bf16", one_product("mma_bf16", "bfloat16", 16, (1, 2, 3, 4)), FLOAT),
    Entry("cu_mma_tf32", one_product("mma_tf32", "float32", 8), FLOAT),
    Entry("cu_mma_s8_u8", mma_s8_u8),
    Entry("cu_matrices", matrices),
    Entry("cu_attention", attention(False), HALF),
    Entry("cu_attention_causal", attention(True), HALF),
    Entry("cu_bulk_sums", bulk_sums, FLOAT, HOPPER),
    Entry("cu_bulk_store", bulk_store, 0, HOPPER),
    *(Entry(f"cu_boxes_{s}", boxes(s), 0, HOPPER) for s in range(4)),
    Entry("cu_wgmma_tma", wgmma_tma, FLOAT, HOPPER),
    Entry("cu_wgmma_plain", wgmma_one("wgmma_plain", 16), FLOAT, HOPPER),
    Entry("cu_wgmma_transposed", wgmma_one("wgmma_transposed", 16, True), FLOAT, HOPPER),
    Entry("cu_wgmma_swizzle64", wgmma_one("wgmma_swizzle64", 32), FLOAT, HOPPER),
    Entry("cu_wgmma_swizzle32", wgmma_one("wgmma_swizzle32", 16), FLOAT, HOPPER),
    *(Entry(f"own_cu_{k}_{d}", own(k, d), TOLERANCE[d]) for k in ("softmax", "layer_norm",
      "attention") for d in ("float32", "bfloat16")),
]  # fmt: skip
