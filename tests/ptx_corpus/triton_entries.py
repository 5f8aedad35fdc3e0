"""The corpus's Triton entries: inputs, references in float64, tolerances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from minigrad.gpu import TritonLaunch
from minigrad.kernels.tl import attention as own_attention
from minigrad.kernels.tl import layer_norm as own_layer_norm
from minigrad.kernels.tl import softmax as own_softmax

from . import Entry, Run, aligned
from . import triton_matmul as products
from . import triton_rows as rows

# Of the largest result. float32: sums in another order and the .approx functions; halves: one
# rounding of the result, and of intermediate ones that are stored as halves.
TOLERANCE = {"float32": 4e-6, "float16": 2e-3, "bfloat16": 1.2e-2, "tf32": 2e-3}


def normal(rng: np.random.Generator, dtype: str, *shape: int, scale: float = 1.0) -> np.ndarray:
    values = rng.standard_normal(shape) * scale
    return aligned(values.astype(getattr(ml_dtypes, dtype, dtype)))


def zeros(dtype: str, *shape: int) -> np.ndarray:
    return aligned(np.zeros(shape, getattr(ml_dtypes, dtype, dtype)))


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


# ---- rows ----


def vector_add(seed: int) -> Run:
    rng = np.random.default_rng(seed)
    n = 1000
    x, y, out = normal(rng, "float32", n), normal(rng, "float32", n), zeros("float32", n)
    launch = TritonLaunch(rows.vector_add, (cdiv(n, 256),), [x, y, out, n], {"BLOCK": 256})
    return Run(launch, {2: x + y})


def softmax_of(x: np.ndarray) -> np.ndarray:
    e = np.exp(wide(x) - wide(x).max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


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


def normed(x: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean = wide(x).mean(-1)
    rstd = 1 / np.sqrt(wide(x).var(-1) + eps)
    return (wide(x) - mean[:, None]) * rstd[:, None], mean, rstd


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
        mean, rstd = aligned(m.astype(np.float32)), aligned(r.astype(np.float32))
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
        want = (
            wdy - unit * (unit * wdy).mean(1, keepdims=True) - wdy.mean(1, keepdims=True)
        ) * r[:, None]
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
        target = aligned(rng.integers(0, n_cols, n_rows))
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
    launch = TritonLaunch(
        rows.dropout, (cdiv(n, 512),), [x, out, kept, n, p, key], {"BLOCK": 512}
    )
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
    a = aligned(rng.integers(-128, 128, (m, k), np.int8))
    b = aligned(rng.integers(-128, 128, (n, k), np.int8))
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


# ---- the project's own ----


def own_softmax_fwd(dtype: str, n_cols: int) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        x = normal(np.random.default_rng(seed), dtype, 3, n_cols)
        out = zeros(dtype, 3, n_cols)
        return Run(own_softmax.describe_softmax_fwd(x, out), {1: softmax_of(x)})

    return make


def own_layer_norm_fwd(dtype: str, n_cols: int) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        x, r = normal(rng, dtype, 3, n_cols), normal(rng, dtype, 3, n_cols)
        w, b = normal(rng, dtype, n_cols), normal(rng, dtype, n_cols)
        out, summed = zeros(dtype, 3, n_cols), zeros(dtype, 3, n_cols)
        mean, rstd = zeros("float32", 3), zeros("float32", 3)
        launch = own_layer_norm.describe_layer_norm_fwd(x, r, w, b, out, summed, mean, rstd, 1e-5)
        total = (x.astype(np.float32) + r.astype(np.float32)).astype(x.dtype)
        unit, m, s = normed(total, 1e-5)
        return Run(launch, {4: unit * wide(w) + wide(b), 5: wide(total), 6: m, 7: s})

    return make


def attention_of(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, causal: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output, logarithm of the sums, and weights, of (..., T, D)."""
    s = wide(q) @ wide(k).swapaxes(-1, -2) * scale
    if causal:
        tq, tk = s.shape[-2:]
        s = np.where(np.arange(tk) <= np.arange(tq)[:, None] + tk - tq, s, -np.inf)
    top = s.max(-1, keepdims=True)
    total = np.exp(s - top).sum(-1, keepdims=True)
    p = np.exp(s - top) / total
    return p @ wide(v), (top + np.log(total))[..., 0], p


def own_attention_fwd(dtype: str, dim: int, causal: bool) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        q = normal(rng, dtype, 1, 2, 70, dim)
        k, v = normal(rng, dtype, 1, 1, 90, dim), normal(rng, dtype, 1, 1, 90, dim)
        out, lse = zeros(dtype, *q.shape), zeros("float32", 1, 2, 70)
        scale = dim**-0.5
        launch = own_attention.describe_attention_fwd(
            q, k, v, None, None, out, lse, scale, causal, -1, 0.0, None
        )
        want, sums, _ = attention_of(q, k, v, scale, causal)
        return Run(launch, {5: want, 6: sums})

    return make


ENTRIES = [
    Entry("tl_vector_add", vector_add),
    *(Entry(f"tl_softmax_{d}", softmax(d, 300), TOLERANCE[d]) for d in ("float32", "float16", "bfloat16")),
    Entry("tl_layer_norm_fwd_float32", layer_norm_fwd("float32", 600), TOLERANCE["float32"]),
    Entry("tl_layer_norm_fwd_bfloat16", layer_norm_fwd("bfloat16", 600), TOLERANCE["bfloat16"]),
    Entry("tl_layer_norm_bwd_float32", layer_norm_bwd("float32"), TOLERANCE["float32"]),
    Entry("tl_layer_norm_bwd_float16", layer_norm_bwd("float16"), TOLERANCE["float16"]),
    Entry("tl_column_sums", column_sums, TOLERANCE["float32"]),
    Entry("tl_cross_entropy_float32", cross_entropy("float32"), TOLERANCE["float32"]),
    Entry("tl_cross_entropy_bfloat16", cross_entropy("bfloat16"), TOLERANCE["bfloat16"]),
    Entry("tl_dropout", dropout, 1e-7),
    Entry("tl_random_words", random_words),
    Entry("tl_gelu", gelu, TOLERANCE["float32"]),
    Entry("tl_matmul_float16", matmul("float16", 100, 96, 80), TOLERANCE["float16"]),
    Entry("tl_matmul_bfloat16", matmul("bfloat16", 128, 64, 128, transposed=True), TOLERANCE["bfloat16"]),
    Entry("tl_matmul_float16_out32", matmul("float16", 64, 64, 128, out="float32", warps=8), TOLERANCE["float32"]),
    Entry("tl_matmul_tf32", matmul("float32", 64, 128, 96), TOLERANCE["tf32"]),
    Entry("tl_matmul_tf32x3", matmul("float32", 64, 64, 64, "tf32x3"), 1e-5),
    Entry("tl_matmul_ieee", matmul("float32", 64, 64, 64, "ieee", stages=2), TOLERANCE["float32"]),
    Entry("tl_matmul_odd", matmul("float16", 65, 35, 33), TOLERANCE["float16"]),
    Entry("tl_matmul_int8", matmul_int8),
    Entry("tl_matmul_descriptors", matmul_descriptors(products.matmul_descriptors, (2, 2)), TOLERANCE["float16"]),
    Entry("tl_matmul_descriptors_bfloat16", matmul_descriptors(products.matmul_descriptors, (2, 2), "bfloat16", tile=(64, 64, 32), warps=8), TOLERANCE["bfloat16"]),
    Entry("tl_matmul_specialised", matmul_descriptors(products.matmul_specialised, (4,), PERSISTENT=False), TOLERANCE["float16"]),
    Entry("tl_matmul_specialised_persistent", matmul_descriptors(products.matmul_specialised, (2,), PERSISTENT=True), TOLERANCE["float16"]),
    *(Entry(f"own_softmax_{n}_{d}", own_softmax_fwd(d, n), TOLERANCE[d]) for n, d in ((300, "float32"), (1024, "bfloat16"), (9000, "float16"))),
    *(Entry(f"own_layer_norm_{n}_{d}", own_layer_norm_fwd(d, n), TOLERANCE[d]) for n, d in ((300, "float32"), (1024, "bfloat16"), (9000, "float32"))),
    *(Entry(f"own_attention_{dim}_{d}" + "_causal" * causal, own_attention_fwd(d, dim, causal), TOLERANCE[d]) for d in ("float32", "float16", "bfloat16") for dim, causal in ((64, False), (40, True), (128, True))),
]  # fmt: skip
