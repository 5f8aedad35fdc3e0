"""The corpus's Triton entries: inputs, references in float64, tolerances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from minigrad.kernels.tl import attention as own_attention
from minigrad.kernels.tl import layer_norm as own_layer_norm
from minigrad.kernels.tl import softmax as own_softmax

from minigrad.gpu import TritonLaunch

from . import Entry, Run, owned
from . import triton_attention as attentions
from . import triton_matmul as products
from . import triton_misc as misc
from . import triton_rows as rows
from .references import TOLERANCE, attention_of, normal, normed, softmax_of, wide, zeros


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


# ---- rows ----


def vector_add(seed: int) -> Run:
    rng = np.random.default_rng(seed)
    n = 1000
    x, y, out = normal(rng, "float32", n), normal(rng, "float32", n), zeros("float32", n)
    launch = TritonLaunch(rows.vector_add, (cdiv(n, 256),), [x, y, out, n], {"BLOCK": 256})
    return Run(launch, {2: x + y})


def softmax(dtype: str, n_cols: int) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        x = normal(np.random.default_rng(seed), dtype, 7, n_cols, scale=3.0)
        out = zeros(dtype, 7, n_cols)
        cols = 1 << (n_cols - 1).bit_length()
        launch = TritonLaunch(
            rows.softmax_rows, (3,), [x, out, 7, n_cols, n_cols, n_cols], {"COLS": cols}
        )
        return Run(launch, {1: softmax_of(x)})

    return make


def layer_norm_fwd(dtype: str, n_cols: int) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        x, out = normal(rng, dtype, 5, n_cols), zeros(dtype, 5, n_cols)
        w, b = normal(rng, "float32", n_cols), normal(rng, "float32", n_cols)
        mean, rstd = zeros("float32", 5), zeros("float32", 5)
        launch = TritonLaunch(
            rows.layer_norm_fwd,
            (5,),
            [x, w, b, out, mean, rstd, n_cols, n_cols, 1e-5],
            {"BLOCK": 256},
        )
        unit, m, r = normed(x, 1e-5)
        return Run(launch, {3: unit * wide(w) + wide(b), 4: m, 5: r})

    return make


def layer_norm_bwd(dtype: str) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        n_rows, n_cols, groups = 10, 200, 4
        x, dy = normal(rng, dtype, n_rows, n_cols), normal(rng, dtype, n_rows, n_cols)
        w = normal(rng, "float32", n_cols)
        unit, m, r = normed(x, 1e-5)
        mean, rstd = owned(m.astype(np.float32)), owned(r.astype(np.float32))
        dx = zeros(dtype, n_rows, n_cols)
        dw, db = zeros("float32", groups, n_cols), zeros("float32", groups, n_cols)
        lock = zeros("int32", 2 * groups)
        launch = TritonLaunch(
            rows.layer_norm_bwd_dx,
            (n_rows,),
            [dx, dy, dw, db, x, w, mean, rstd, lock, n_cols, n_cols],
            {"GROUPS": groups, "BLOCK": 256},
        )
        wdy = wide(w) * wide(dy)
        want = (wdy - unit * (unit * wdy).mean(1, keepdims=True) - wdy.mean(1, keepdims=True)) * r[
            :, None
        ]
        want_dw = np.stack([(wide(dy) * unit)[g::groups].sum(0) for g in range(groups)])
        want_db = np.stack([wide(dy)[g::groups].sum(0) for g in range(groups)])
        return Run(launch, {0: want, 2: want_dw, 3: want_db})

    return make


def column_sums(seed: int) -> Run:
    rng = np.random.default_rng(seed)
    dw, db = normal(rng, "float32", 40, 100), normal(rng, "float32", 40, 100)
    out = [zeros("float32", 100), zeros("float32", 100)]
    launch = TritonLaunch(
        rows.column_sums, (cdiv(100, 32),), [dw, db, *out, 40, 100], {"ROWS": 32, "COLS": 32}
    )
    return Run(launch, {2: wide(dw).sum(0), 3: wide(db).sum(0)})


def cross_entropy(dtype: str) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        n_rows, n_cols = 6, 700
        logits = normal(rng, dtype, n_rows, n_cols, scale=2.0)
        target = owned(rng.integers(0, n_cols, n_rows))
        target[2] = -100
        loss = zeros("float32", n_rows)
        p, at = softmax_of(logits), np.arange(n_rows)
        want = -np.log(p[at, target])
        grad = p.copy()
        grad[at, target] -= 1
        want[2], grad[2] = 0, 0
        launch = TritonLaunch(
            rows.cross_entropy_fwd_bwd,
            (n_rows,),
            [logits, target, loss, n_cols, n_cols, -100],
            {"BLOCK": 512},
        )
        return Run(launch, {0: grad, 2: want})

    return make


def philox(counter: np.ndarray, seed: int) -> list[np.ndarray]:
    """Four words a counter, as Triton counts: (index, 0, 0, 0), key = the seed's two halves."""
    c = [counter.astype(np.uint64), *(np.zeros(counter.shape, np.uint64) for _ in range(3))]
    k0, k1, low = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (b >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            b & low,
            (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            a & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def dropout(seed: int) -> Run:
    n, p, key = 1000, 0.3, 1234 + seed
    x, out = normal(np.random.default_rng(seed), "float32", n), zeros("float32", n)
    kept = zeros("int8", n)
    word = philox(np.arange(n), key)[0].astype(np.uint32).view(np.int32).astype(np.int64)
    uniform = np.where(word < 0, -word - 1, word).astype(np.float32) * np.float32(4.6566127342e-10)
    keep = uniform > np.float32(p)
    launch = TritonLaunch(rows.dropout, (cdiv(n, 512),), [x, out, kept, n, p, key], {"BLOCK": 512})
    return Run(launch, {1: np.where(keep, wide(x) / (1 - p), 0), 2: keep.astype(np.int8)})


def random_words(seed: int) -> Run:
    n, key = 500, 77 + seed
    out = zeros("int32", 4, n)
    want = np.stack(philox(np.arange(n), key)).astype(np.uint32).view(np.int32)
    launch = TritonLaunch(rows.random_words, (4,), [out, n, key], {"BLOCK": 128})
    return Run(launch, {0: want})


def gelu(seed: int) -> Run:
    n = 700
    x, out = normal(np.random.default_rng(seed), "float32", n, scale=2.0), zeros("float32", n)
    erf = np.array([math.erf(v * 0.7071067811865476) for v in wide(x)])
    launch = TritonLaunch(rows.gelu, (3,), [x, out, n], {"BLOCK": 256})
    return Run(launch, {1: 0.5 * wide(x) * (1 + erf)})


# ---- products ----


def matmul(
    dtype: str, m: int, n: int, k: int, precision: str = "tf32", transposed: bool = False,
    warps: int = 4, stages: int = 3, out: str | None = None,
) -> Callable[[int], Run]:  # fmt: skip
    def make(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        a = normal(rng, dtype, m, k)
        b = normal(rng, dtype, n, k) if transposed else normal(rng, dtype, k, n)
        c = zeros(out or dtype, m, n)
        b_strides = (1, k) if transposed else (n, 1)
        tiles = {"M": 64, "N": 64, "K": 32, "GROUP": 4, "PRECISION": precision}
        launch = TritonLaunch(
            products.matmul,
            (cdiv(m, 64) * cdiv(n, 64),),
            [a, b, c, m, n, k, k, 1, *b_strides, n, 1],
            tiles,
            num_warps=warps,
            num_stages=stages,
        )
        return Run(launch, {2: wide(a) @ (wide(b).T if transposed else wide(b))})

    return make


def matmul_int8(seed: int) -> Run:
    rng = np.random.default_rng(seed)
    m, n, k = 128, 64, 96
    a = owned(rng.integers(-128, 128, (m, k), np.int8))
    b = owned(rng.integers(-128, 128, (n, k), np.int8))
    c = zeros("int32", m, n)
    launch = TritonLaunch(
        products.matmul_int8, (2, 1), [a, b, c, m, n, k], {"M": 64, "N": 64, "K": 32}
    )
    return Run(launch, {2: a.astype(np.int32) @ b.astype(np.int32).T})


def matmul_descriptors(
    kernel: Any, grid: tuple[int, ...], dtype: str = "float16", warps: int = 4, stages: int = 3,
    m: int = 128, n: int = 128, k: int = 192, tile: tuple[int, int, int] = (64, 64, 64),
    **constants: Any,
) -> Callable[[int], Run]:  # fmt: skip
    def make(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        a, b = normal(rng, dtype, m, k), normal(rng, dtype, n, k)
        c = zeros(dtype, m, n)
        launch = TritonLaunch(
            kernel,
            grid,
            [a, b, c, m, n, k],
            {**dict(zip("MNK", tile, strict=True)), **constants},
            num_warps=warps,
            num_stages=stages,
        )
        return Run(launch, {2: wide(a) @ wide(b).T})

    return make


# ---- attention ----


def attention_fwd(
    dtype: str, causal: bool, n: int = 128, dim: int = 64, keys: int = 32, stages: int = 3
) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        q, k, v = (normal(rng, dtype, 2, n, dim) for _ in range(3))
        out, lse, scale = zeros(dtype, 2, n, dim), zeros("float32", 2, n), dim**-0.5
        launch = TritonLaunch(
            attentions.attention_fwd,
            (n // 64, 2),
            [q, k, v, out, lse, scale, n],
            {"D": dim, "QUERIES": 64, "KEYS": keys, "CAUSAL": causal},
            num_stages=stages,
        )
        want, sums, _ = attention_of(q, k, v, scale, causal)
        return Run(launch, {3: want, 4: sums / np.log(2)})

    return make


def attention_descriptors(
    specialised: bool, dtype: str = "float16", warps: int = 4, queries: int = 64
) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        q, k, v = (normal(rng, dtype, 2, 192, 64) for _ in range(3))
        out = zeros(dtype, 2, 192, 64)
        launch = TritonLaunch(
            attentions.attention_fwd_descriptors,
            (192 // queries, 2),
            [q, k, v, out, 0.125, 2, 192],
            {"D": 64, "QUERIES": queries, "KEYS": 64, "SPECIALISED": specialised},
            num_warps=warps,
        )
        return Run(launch, {3: attention_of(q, k, v, 0.125, False)[0]})

    return make


def attention_bwd(
    part: str, dtype: str, causal: bool, n: int = 128, dim: int = 64
) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        q, k, v, grad = (normal(rng, dtype, 2, n, dim) for _ in range(4))
        scale = dim**-0.5
        out, sums, p = attention_of(q, k, v, scale, causal)
        lse = owned((sums / np.log(2)).astype(np.float32))
        delta = (out * wide(grad)).sum(-1)
        held = owned(delta.astype(np.float32))
        ds = p * (wide(grad) @ wide(v).swapaxes(1, 2) - delta[..., None])
        dq = ds @ wide(k) * scale
        dk = ds.swapaxes(1, 2) @ wide(q) * scale
        dv = p.swapaxes(1, 2) @ wide(grad)
        inputs = [q, k, v, grad, lse, held]
        outputs = [zeros("float32" if part == "atomic" else dtype, 2, n, dim)]
        outputs += [zeros(dtype, 2, n, dim) for _ in range(2)]
        constants = {"D": dim, "QUERIES": 32, "KEYS": 64, "CAUSAL": causal}
        if part == "keys":
            launch = TritonLaunch(
                attentions.attention_bwd_keys, (n // 64, 2), [*inputs, *outputs[1:], scale, n],
                constants,
            )  # fmt: skip
            return Run(launch, {6: dk, 7: dv})
        if part == "queries":
            constants |= {"QUERIES": 64, "KEYS": 32}
            launch = TritonLaunch(
                attentions.attention_bwd_queries, (n // 64, 2), [*inputs, outputs[0], scale, n],
                constants,
            )  # fmt: skip
            return Run(launch, {6: dq})
        del constants["CAUSAL"]
        launch = TritonLaunch(
            attentions.attention_bwd_atomic, (n // 64, 2), [*inputs, *outputs, scale, n], constants
        )
        return Run(launch, {6: dq, 7: dk, 8: dv})

    return make


def row_dots(seed: int) -> Run:
    rng = np.random.default_rng(seed)
    out, grad = normal(rng, "float16", 64, 32), normal(rng, "float16", 64, 32)
    delta = zeros("float32", 64)
    launch = TritonLaunch(attentions.row_dots, (2,), [out, grad, delta, 64], {"D": 32, "ROWS": 32})
    return Run(launch, {2: (wide(out) * wide(grad)).sum(1)})


# ---- the rest of the language ----


def atomics(seed: int) -> Run:
    rng = np.random.default_rng(seed)
    n = 300
    x, at = normal(rng, "float32", n), owned(rng.integers(0, 8, n).astype(np.int32))
    sums, halves, ints = zeros("float32", 8), zeros("float16", 8), zeros("int32", 8)
    top, low = owned(np.full(8, -np.inf, np.float32)), owned(np.full(8, np.inf, np.float32))
    bits = zeros("int32", 24)
    bits[:8] = 0xFFFF
    i = np.arange(n)
    parts = [i[at == k] for k in range(8)]
    want_bits = np.zeros((3, 8), np.int32)
    want_bits[0] = 0xFFFF
    for k, part in enumerate(parts):
        for j in part:
            want_bits[0, k] &= ~(1 << (j & 15))
            want_bits[1, k] |= 1 << (j & 15)
            want_bits[2, k] ^= j
    launch = TritonLaunch(
        misc.atomics, (3,), [x, at, sums, halves, top, low, ints, bits, n], {"BLOCK": 128}
    )
    expected = {
        2: np.array([wide(x)[p].sum() for p in parts]),
        3: np.array([(k + 1.0) * len(p) for k, p in enumerate(parts)]),
        4: np.array([x[p].max() for p in parts]),
        5: np.array([x[p].min() for p in parts]),
        6: np.array([p.sum() for p in parts]),
        7: want_bits.ravel(),
    }
    return Run(launch, expected)


def locked_sum(seed: int) -> Run:
    n = 900
    x = owned(np.abs(normal(np.random.default_rng(seed), "float32", n)))
    out, lock = zeros("float32", 1), zeros("int32", 1)
    launch = TritonLaunch(misc.locked_sum, (4,), [x, out, lock, n], {"BLOCK": 256})
    return Run(launch, {1: wide(x).sum(keepdims=True), 2: np.array([0])})


def histogram(seed: int) -> Run:
    x = owned(np.random.default_rng(seed).integers(0, 32, 1024).astype(np.int32))
    out = zeros("int32", 32)
    launch = TritonLaunch(misc.histogram, (2,), [x, out, 1024], {"BLOCK": 512, "BINS": 32})
    return Run(launch, {1: np.bincount(x, minlength=32)})


def scans(seed: int) -> Run:
    rng = np.random.default_rng(seed)
    x = normal(rng, "float32", 16, 64)
    y = owned(rng.uniform(0.8, 1.0, (16, 64)).astype(np.float32))
    out = zeros("float32", 5, 16, 64)
    h, state = np.zeros((16, 64)), np.zeros(16)
    for t in range(64):
        state = wide(y)[:, t] * state + wide(x)[:, t]
        h[:, t] = state
    want = [wide(x).cumsum(1), wide(y).cumprod(1), wide(x)[:, ::-1].cumsum(1)[:, ::-1],
            wide(x).cumsum(0), h]  # fmt: skip
    launch = TritonLaunch(misc.scans, (1,), [x, y, out], {"ROWS": 16, "COLS": 64})
    return Run(launch, {2: np.stack(want)})


def sorts(seed: int) -> Run:
    x = normal(np.random.default_rng(seed), "float32", 8, 64)
    out, top = zeros("float32", 8, 64), zeros("float32", 8, 8)
    launch = TritonLaunch(misc.sorts, (1,), [x, out, top], {"ROWS": 8, "COLS": 64})
    return Run(launch, {1: np.sort(x, 1), 2: np.sort(x, 1)[:, :-9:-1]})


def reductions(seed: int) -> Run:
    x = normal(np.random.default_rng(seed), "float32", 16, 100)
    out, index = zeros("float32", 4, 16), zeros("int32", 2, 16)
    bits = np.bitwise_xor.reduce(x.view(np.int32) & 0x7FFFFF, 1)
    want = np.stack([wide(x).sum(1), x.max(1), x.min(1), bits])
    launch = TritonLaunch(
        misc.reductions, (1,), [x, out, index, 100], {"ROWS": 16, "COLS": 128}, num_warps=8
    )
    return Run(launch, {1: want, 2: np.stack([x.argmax(1), x.argmin(1)])})


def gathers(seed: int) -> Run:
    rng = np.random.default_rng(seed)
    x = normal(rng, "float32", 16, 32)
    index = owned(rng.integers(0, 32, (16, 32)).astype(np.int32))
    out, turned = zeros("float32", 16, 32), zeros("float32", 32, 32)
    launch = TritonLaunch(misc.gathers, (1,), [x, index, out, turned], {"ROWS": 16, "COLS": 32})
    both = np.stack([x.T, -x.T], -1).reshape(32, 32)
    return Run(launch, {2: np.take_along_axis(x, index, 1), 3: both})


def functions(seed: int) -> Run:
    n = 300
    x = owned(np.random.default_rng(seed).uniform(0.01, 4, n).astype(np.float32))
    out, a = zeros("float32", 13, n), wide(x)
    erf = np.array([math.erf(v) for v in a])
    want = [np.exp(a), np.log(a), np.sin(a), np.cos(a), np.sqrt(a), 1 / np.sqrt(a),
            1 / (1 + np.exp(-a)), 1 / a, 1 / a, np.sqrt(a), np.floor(a) + np.ceil(a), erf,
            a * a + a]  # fmt: skip
    launch = TritonLaunch(misc.functions, (3,), [x, out, n], {"BLOCK": 128})
    return Run(launch, {1: np.stack(want)})


def casts(seed: int) -> Run:
    rng, n = np.random.default_rng(seed), 200
    x = owned((rng.standard_normal(n) * 20).astype(np.float32))
    y = owned(rng.integers(-50, 50, n))
    int8, half, bfloat = zeros("int8", n), zeros("float16", n), zeros("bfloat16", n)
    int64, e5 = zeros("int64", n), zeros("float32", n)
    bf = x.astype(bfloat.dtype).astype(np.float32) + y.astype(np.float32)
    quotient = (np.abs(y) // 7) * np.sign(y)
    rest = np.fmod(y, 5)
    expected = {
        2: np.trunc(x).astype(np.int8),
        3: x.astype(np.float16) * y.astype(np.float16),
        4: bf.astype(bfloat.dtype).astype(np.float32),
        5: quotient + rest + np.trunc(x).astype(np.int64) * 3,
        6: x.astype(ml_dtypes.float8_e5m2).astype(np.float32),
    }
    launch = TritonLaunch(
        misc.casts, (2,), [x, y, int8, half, bfloat, int64, e5, n], {"BLOCK": 128}
    )
    return Run(launch, expected)


def says(seed: int) -> Run:
    x = owned(np.arange(32, dtype=np.int32))
    return Run(TritonLaunch(misc.says, (1,), [x], {"BLOCK": 32}, num_warps=1), {})


SAID = "".join(f"pid (0, 0, 0) idx ({i:2d}) x: {i}\n" for i in range(32))


def convolution(seed: int) -> Run:
    rng = np.random.default_rng(seed)
    h, w, c, f = 10, 13, 16, 32
    x, taps = normal(rng, "float16", h, w, c), normal(rng, "float16", 3, 3, c, f, scale=0.1)
    out = zeros("float16", h, w, f)
    padded = np.pad(wide(x), ((1, 1), (1, 1), (0, 0)))
    want = sum(padded[i : i + h, j : j + w] @ wide(taps)[i, j] for i in range(3) for j in range(3))
    launch = TritonLaunch(
        misc.convolution, (cdiv(h * w, 64),), [x, taps, out, h, w],
        {"CHANNELS": c, "FILTERS": f, "PIXELS": 64},
    )  # fmt: skip
    return Run(launch, {2: np.asarray(want)})


def adam(seed: int) -> Run:
    rng, n = np.random.default_rng(seed), 500
    w, g, m = (normal(rng, "float32", n) for _ in range(3))
    v = owned(np.abs(normal(rng, "float32", n)))
    numbers = [0.1, 0.9, 0.99, 1e-8, 0.5, 0.3]
    rate, beta1, beta2, eps, c1, c2 = (float(np.float32(x)) for x in numbers)
    m1 = beta1 * wide(m) + (1 - beta1) * wide(g)
    v1 = beta2 * wide(v) + (1 - beta2) * wide(g) ** 2
    w1 = wide(w) - rate * (m1 / c1) / (np.sqrt(v1 / c2) + eps)
    launch = TritonLaunch(misc.adam, (2,), [w, g, m, v, n, *numbers], {"BLOCK": 256})
    return Run(launch, {0: w1, 2: m1, 3: v1})


def embedding_bwd(seed: int) -> Run:
    rng = np.random.default_rng(seed)
    index, grad = owned(rng.integers(0, 10, 50)), normal(rng, "float32", 50, 32)
    out, want = zeros("float32", 10, 32), np.zeros((10, 32))
    np.add.at(want, index, wide(grad))
    launch = TritonLaunch(misc.embedding_bwd, (4,), [index, grad, out, 50], {"D": 32, "ROWS": 16})
    return Run(launch, {2: want})


# ---- the project's own ----


def own_softmax_fwd(dtype: str, n_cols: int) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        x = normal(np.random.default_rng(seed), dtype, 3, n_cols)
        out = zeros(dtype, 3, n_cols)
        return Run(own_softmax.softmax_fwd(x, out), {1: softmax_of(x)})

    return make


def own_layer_norm_fwd(dtype: str, n_cols: int) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        x, r = normal(rng, dtype, 3, n_cols), normal(rng, dtype, 3, n_cols)
        w, b = normal(rng, dtype, n_cols), normal(rng, dtype, n_cols)
        out, summed = zeros(dtype, 3, n_cols), zeros(dtype, 3, n_cols)
        mean, rstd = zeros("float32", 3), zeros("float32", 3)
        launch = own_layer_norm.layer_norm_fwd(x, r, w, b, out, summed, mean, rstd, 1e-5)
        total = (x.astype(np.float32) + r.astype(np.float32)).astype(x.dtype)
        unit, m, s = normed(total, 1e-5)
        return Run(launch, {4: unit * wide(w) + wide(b), 5: wide(total), 6: m, 7: s})

    return make


def own_attention_fwd(dtype: str, dim: int, causal: bool) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        q = normal(rng, dtype, 1, 2, 70, dim)
        k, v = normal(rng, dtype, 1, 1, 90, dim), normal(rng, dtype, 1, 1, 90, dim)
        out, lse = zeros(dtype, *q.shape), zeros("float32", 1, 2, 70)
        scale = dim**-0.5
        launch = own_attention.attention_fwd(
            q, k, v, None, None, out, lse, scale, causal, -1, 0.0, None
        )
        want, sums, _ = attention_of(q, k, v, scale, causal)
        return Run(launch, {5: want, 6: sums})

    return make


FLOAT, HALF, BFLOAT, TF32 = (TOLERANCE[d] for d in ("float32", "float16", "bfloat16", "tf32"))
ENTRIES = [
    Entry("tl_vector_add", vector_add),
    *(
        Entry(f"tl_softmax_{d}", softmax(d, 300), TOLERANCE[d])
        for d in ("float32", "float16", "bfloat16")
    ),
    Entry("tl_layer_norm_fwd_float32", layer_norm_fwd("float32", 600), FLOAT),
    Entry("tl_layer_norm_fwd_bfloat16", layer_norm_fwd("bfloat16", 600), BFLOAT),
    Entry("tl_layer_norm_bwd_float32", layer_norm_bwd("float32"), FLOAT),
    Entry("tl_layer_norm_bwd_float16", layer_norm_bwd("float16"), HALF),
    Entry("tl_column_sums", column_sums, FLOAT),
    Entry("tl_cross_entropy_float32", cross_entropy("float32"), FLOAT),
    Entry("tl_cross_entropy_bfloat16", cross_entropy("bfloat16"), BFLOAT),
    Entry("tl_dropout", dropout, 1e-7),
    Entry("tl_random_words", random_words),
    Entry("tl_gelu", gelu, FLOAT),
    Entry("tl_matmul_float16", matmul("float16", 100, 96, 80), HALF),
    Entry("tl_matmul_bfloat16", matmul("bfloat16", 128, 64, 128, transposed=True), BFLOAT),
    Entry("tl_matmul_float16_out32", matmul("float16", 64, 64, 128, out="float32", warps=8), FLOAT),
    Entry("tl_matmul_tf32", matmul("float32", 64, 128, 96), TF32),
    Entry("tl_matmul_tf32x3", matmul("float32", 64, 64, 64, "tf32x3"), 1e-5),
    Entry("tl_matmul_ieee", matmul("float32", 64, 64, 64, "ieee", stages=2), FLOAT),
    Entry("tl_matmul_odd", matmul("float16", 65, 35, 33), HALF),
    Entry("tl_matmul_int8", matmul_int8),
    Entry("tl_matmul_descriptors", matmul_descriptors(products.matmul_descriptors, (2, 2)), HALF),
    Entry(
        "tl_matmul_descriptors_bfloat16",
        matmul_descriptors(
            products.matmul_descriptors, (2, 2), "bfloat16", tile=(64, 64, 32), warps=8
        ),
        BFLOAT,
    ),
    Entry(
        "tl_matmul_specialised",
        matmul_descriptors(products.matmul_specialised, (4,), PERSISTENT=False),
        HALF,
    ),
    Entry(
        "tl_matmul_specialised_persistent",
        matmul_descriptors(products.matmul_specialised, (2,), PERSISTENT=True),
        HALF,
    ),
    Entry("tl_attention_fwd_float16", attention_fwd("float16", False), HALF),
    Entry("tl_attention_fwd_float16_causal", attention_fwd("float16", True, dim=128), HALF),
    Entry("tl_attention_fwd_bfloat16", attention_fwd("bfloat16", True), BFLOAT),
    Entry("tl_attention_fwd_tf32", attention_fwd("float32", False, dim=32, stages=2), TF32),
    Entry("tl_attention_descriptors", attention_descriptors(False), HALF),
    Entry("tl_attention_specialised", attention_descriptors(True), HALF),
    Entry("tl_row_dots", row_dots, FLOAT),
    Entry("tl_attention_bwd_keys", attention_bwd("keys", "float16", False), HALF),
    Entry("tl_attention_bwd_keys_causal", attention_bwd("keys", "bfloat16", True), BFLOAT),
    Entry("tl_attention_bwd_queries", attention_bwd("queries", "bfloat16", False), BFLOAT),
    Entry("tl_attention_bwd_queries_causal", attention_bwd("queries", "float16", True), HALF),
    Entry("tl_attention_bwd_atomic", attention_bwd("atomic", "float16", False), HALF),
    Entry("tl_atomics", atomics, FLOAT),
    Entry("tl_locked_sum", locked_sum, FLOAT),
    Entry("tl_histogram", histogram),
    Entry("tl_scans", scans, FLOAT),
    Entry("tl_sorts", sorts),
    Entry("tl_reductions", reductions, FLOAT),
    Entry("tl_gathers", gathers),
    Entry("tl_functions", functions, FLOAT),
    Entry("tl_casts", casts),
    Entry("tl_says", says, prints=SAID),
    Entry("tl_convolution", convolution, HALF),
    Entry("tl_adam", adam, FLOAT),
    Entry("tl_embedding_bwd", embedding_bwd, FLOAT),
    *(
        Entry(f"own_softmax_{n}_{d}", own_softmax_fwd(d, n), TOLERANCE[d])
        for n, d in ((300, "float32"), (1024, "bfloat16"), (9000, "float16"))
    ),
    *(
        Entry(f"own_layer_norm_{n}_{d}", own_layer_norm_fwd(d, n), TOLERANCE[d])
        for n, d in ((300, "float32"), (1024, "bfloat16"), (9000, "float32"))
    ),
    *(
        Entry(
            f"own_attention_{dim}_{d}" + "_causal" * causal,
            own_attention_fwd(d, dim, causal),
            TOLERANCE[d],
        )
        for d, dim, causal in (
            ("float32", 40, True),
            ("float16", 128, True),
            ("bfloat16", 64, False),
        )
    ),
]
