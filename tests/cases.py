"""The table of cases: one line an operation, read by the tests and the benchmarks.

A case names an operation, inputs for it, what NumPy says it means in float64 (`reference`), the
same in PyTorch (`torch`, a function of the module and the tensors) and whether a second derivative
exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import minigrad as mg

Array = np.ndarray


@dataclass(frozen=True)
class Case:
    name: str
    op: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    reference: Callable[..., Any]
    torch: Callable[..., Any] | None = None
    low: float = -2.0
    high: float = 2.0
    second: bool = True
    differentiable: bool = True
    tolerance: float = 1.0  # times the table's

    def inputs(self, seed: int = 0) -> list[Array]:
        """float64 arrays, spread over [low, high] without ties."""
        rng = np.random.default_rng(seed + len(self.name))
        return [rng.uniform(self.low, self.high, s) for s in self.shapes]


_erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def selu(x: Array) -> Array:
    return 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))


def normed(x: Array, eps: float) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def attention(
    q: Array, k: Array, v: Array, causal: bool = False, window: int | None = None
) -> Array:
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    i = np.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
    j = np.arange(k.shape[2])[None]
    hidden = np.zeros((q.shape[2], k.shape[2]), bool)
    if causal:
        hidden |= j > i
    if window is not None:
        hidden |= j <= i - window
        if not causal:
            hidden |= j >= i + window
    return softmax(np.where(hidden, -np.inf, scores)) @ v


INDEX = np.array([[2, 0, 1, 2], [1, 1, 0, 3], [0, 3, 3, 2]])
TOKENS = np.array([[1, 3, 1], [0, 5, 1]])
TARGETS = np.array([2, 0, 4, -100, 1, 2])
FLAGS = np.array([[True, False, True, True], [False] * 4, [True] * 4])


def cross_entropy(x: Array, smoothing: float = 0.0) -> Array:
    logs = x - np.log(np.exp(x).sum(-1, keepdims=True))
    used = np.flatnonzero(TARGETS != -100)
    own = -logs[used, TARGETS[used]]
    return ((1 - smoothing) * own - smoothing * logs[used].mean(-1)).mean()


def rotary(x: Array) -> Array:
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[-2])[:, None] * 10000.0 ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    c, s = np.cos(angle), np.sin(angle)
    return np.concatenate([a * c - b * s, a * s + b * c], -1)


def unary(name: str, reference: Callable[..., Any], torch: Any = None, **options: Any) -> Case:
    return Case(name, getattr(mg, name), ((3, 37),), reference, torch, **options)


def binary(name: str, reference: Callable[..., Any], torch: Any, **options: Any) -> Case:
    return Case(name, getattr(mg, name), ((4, 1, 5), (3, 5)), reference, torch, **options)


ELEMENTWISE = [
    unary("neg", np.negative, lambda t, x: -x),
    unary("abs", np.abs, lambda t, x: x.abs()),
    unary("sign", np.sign, lambda t, x: x.sign()),
    unary("exp", np.exp, lambda t, x: x.exp()),
    unary("expm1", np.expm1, lambda t, x: x.expm1()),
    unary("log", np.log, lambda t, x: x.log(), low=0.1, high=4.0),
    unary("log1p", np.log1p, lambda t, x: x.log1p(), low=-0.9, high=4.0),
    unary("sqrt", np.sqrt, lambda t, x: x.sqrt(), low=0.1, high=4.0),
    unary("rsqrt", lambda x: 1 / np.sqrt(x), lambda t, x: x.rsqrt(), low=0.1, high=4.0),
    unary("sin", np.sin, lambda t, x: x.sin(), low=-9.0, high=9.0),
    unary("cos", np.cos, lambda t, x: x.cos(), low=-9.0, high=9.0),
    unary("erf", _erf, lambda t, x: x.erf()),
    unary("floor", np.floor, lambda t, x: x.floor()),
    unary("ceil", np.ceil, lambda t, x: x.ceil()),
    unary("round", np.round, lambda t, x: x.round()),
    unary("tanh", np.tanh, lambda t, x: x.tanh()),
    unary("sigmoid", sigmoid, lambda t, x: x.sigmoid(), low=-8.0, high=8.0),
    unary("softplus", lambda x: np.log1p(np.exp(x)), lambda t, x: t.nn.functional.softplus(x)),
    unary("silu", lambda x: x * sigmoid(x), lambda t, x: t.nn.functional.silu(x)),
    unary("relu", lambda x: np.maximum(x, 0), lambda t, x: x.relu()),
    unary(
        "leaky_relu",
        lambda x: np.where(x > 0, x, 0.01 * x),
        lambda t, x: t.nn.functional.leaky_relu(x),
    ),
    unary("elu", lambda x: np.where(x > 0, x, np.expm1(x)), lambda t, x: t.nn.functional.elu(x)),
    unary("selu", selu, lambda t, x: t.nn.functional.selu(x)),
    unary("gelu", gelu, lambda t, x: t.nn.functional.gelu(x), low=-4.0, high=4.0),
    Case(
        "gelu_tanh",
        lambda x: mg.gelu(x, "tanh"),
        ((3, 37),),
        gelu_tanh,
        lambda t, x: t.nn.functional.gelu(x, approximate="tanh"),
        low=-4.0,
        high=4.0,
    ),
    binary("add", np.add, lambda t, a, b: a + b),
    binary("sub", np.subtract, lambda t, a, b: a - b),
    binary("mul", np.multiply, lambda t, a, b: a * b),
    binary("div", np.divide, lambda t, a, b: a / b, low=0.5, high=3.0),
    binary("floor_divide", np.floor_divide, lambda t, a, b: t.div(a, b, rounding_mode="floor")),
    binary("remainder", np.remainder, lambda t, a, b: t.remainder(a, b)),
    binary("pow", np.power, lambda t, a, b: a**b, low=0.5, high=2.0),
    binary("maximum", np.maximum, lambda t, a, b: t.maximum(a, b)),
    binary("minimum", np.minimum, lambda t, a, b: t.minimum(a, b)),
    Case("scalars", lambda x: 2 - 3 / (x + 1) * x, ((5,),), lambda x: 2 - 3 / (x + 1) * x, low=0.1),
    Case("square", lambda x: x**2, ((5,),), np.square, lambda t, x: x**2),
    Case(
        "clip",
        lambda x: mg.clip(x, -1, 0.5),
        ((40,),),
        lambda x: np.clip(x, -1, 0.5),
        lambda t, x: x.clamp(-1, 0.5),
    ),
    Case(
        "where",
        lambda a, b: mg.where(mg.tensor(FLAGS), a, b),
        ((3, 4), (4,)),
        lambda a, b: np.where(FLAGS, a, b),
        lambda t, a, b: t.where(t.from_numpy(FLAGS), a, b),
    ),
]

REDUCTIONS = [
    Case("sum", lambda x: mg.sum(x, (0, 2)), ((3, 5, 7),), lambda x: x.sum((0, 2))),
    Case("sum_all", mg.sum, ((3, 5, 7),), np.sum, lambda t, x: x.sum()),
    Case("sum_columns", lambda x: mg.sum(x, 0), ((300, 9),), lambda x: x.sum(0), tolerance=8),
    Case("mean", lambda x: mg.mean(x, 1), ((4, 33),), lambda x: x.mean(1), lambda t, x: x.mean(1)),
    Case("var", lambda x: mg.var(x, -1, 1), ((4, 33),), lambda x: x.var(-1, ddof=1),
         lambda t, x: x.var(-1)),
    Case("std", lambda x: mg.std(x, 0), ((9, 4),), lambda x: x.std(0)),
    Case("norm", lambda x: mg.norm(x, 1), ((4, 9),), lambda x: np.linalg.norm(x, axis=1),
         lambda t, x: x.norm(dim=1)),
    Case("prod", lambda x: mg.prod(x, 1), ((4, 6),), lambda x: x.prod(1), lambda t, x: x.prod(1)),
    Case("max", lambda x: mg.max(x, 1), ((4, 40),), lambda x: x.max(1), lambda t, x: x.amax(1)),
    Case("min", lambda x: mg.min(x, (0, 1)), ((4, 9),), np.min, lambda t, x: x.min()),
    Case("cumsum", lambda x: mg.cumsum(x, 1), ((3, 40),), lambda x: x.cumsum(1),
         lambda t, x: x.cumsum(1)),
    Case("argmax", lambda x: mg.argmax(x, 1), ((4, 40),), lambda x: x.argmax(1),
         differentiable=False),
    Case("argmin", lambda x: mg.argmin(x, 0), ((40, 4),), lambda x: x.argmin(0),
         differentiable=False),
    Case("any", lambda x: mg.any(x > 1.9, 1), ((9, 9),), lambda x: (x > 1.9).any(1),
         differentiable=False),
    Case("all", lambda x: mg.all(x > -1.9, 1), ((9, 9),), lambda x: (x > -1.9).all(1),
         differentiable=False),
    Case("isfinite", lambda x: mg.isfinite(1 / mg.relu(x)), ((9, 9),), lambda x: x > 0,
         differentiable=False),
]  # fmt: skip

MOVEMENT = [
    Case("reshape", lambda x: mg.reshape(x, (4, -1)), ((2, 6, 2),), lambda x: x.reshape(4, -1)),
    Case("permute", lambda x: mg.permute(x, (2, 0, 1)), ((2, 3, 4),),
         lambda x: x.transpose(2, 0, 1)),
    Case("transpose", mg.transpose, ((2, 3, 4),), np.transpose),
    Case("transpose_method", lambda x: x.transpose(1, 2, 0), ((2, 3, 4),),
         lambda x: x.transpose(1, 2, 0)),
    Case("expand", lambda x: mg.expand(x, (4, 3, 5)), ((3, 1),),
         lambda x: np.broadcast_to(x, (4, 3, 5))),
    Case("squeeze", lambda x: mg.squeeze(x, 1), ((3, 1, 4),), lambda x: x.squeeze(1)),
    Case("expand_dims", lambda x: mg.expand_dims(x, 1), ((3, 4),), lambda x: x[:, None]),
    Case("concat", lambda a, b: mg.concat([a, b], 1), ((3, 4), (3, 2)),
         lambda a, b: np.concatenate([a, b], 1)),
    Case("stack", lambda a, b: mg.stack([a, b], 1), ((3, 4), (3, 4)),
         lambda a, b: np.stack([a, b], 1)),
    Case("split", lambda x: mg.split(x, [1, 4], 1)[1] * 2, ((3, 6),), lambda x: x[:, 1:4] * 2),
    Case("pad", lambda x: mg.pad(x, ((1, 2), (0, 3)), 1.5), ((3, 4),),
         lambda x: np.pad(x, ((1, 2), (0, 3)), constant_values=1.5)),
    Case("flip", lambda x: mg.flip(x, 1), ((3, 4),), lambda x: x[:, ::-1]),
    Case("roll", lambda x: mg.roll(x, 2, 1), ((3, 5),), lambda x: np.roll(x, 2, 1)),
    Case("repeat", lambda x: mg.repeat(x, 3, 1), ((2, 4),), lambda x: np.repeat(x, 3, 1)),
    Case("tril", lambda x: mg.tril(x, 1), ((4, 5),), lambda x: np.tril(x, 1)),
    Case("triu", mg.triu, ((2, 4, 4),), np.triu),
    Case("contiguous", lambda x: mg.permute(x, (1, 0)).contiguous(), ((70, 45),), lambda x: x.T),
]  # fmt: skip

INDEXING = [
    Case("slice", lambda x: x[1:, ::-2], ((4, 7),), lambda x: x[1:, ::-2]),
    Case("integer", lambda x: x[-1, ..., 2], ((4, 3, 5),), lambda x: x[-1, ..., 2]),
    Case("new_axis", lambda x: x[:, None, 1], ((4, 5),), lambda x: x[:, None, 1]),
    Case("array_index", lambda x: x[mg.tensor(INDEX), 1], ((4, 5),), lambda x: x[INDEX, 1]),
    Case("bool_index", lambda x: x[mg.tensor(FLAGS)], ((3, 4),), lambda x: x[FLAGS]),
    Case("take_along_axis", lambda x: mg.take_along_axis(x, INDEX, 1), ((3, 5),),
         lambda x: np.take_along_axis(x, INDEX, 1)),
    Case("scatter_add", lambda x, v: mg.scatter_add(x, INDEX, v, 1), ((3, 5), (3, 4)),
         lambda x, v: x + np.stack([np.bincount(i, w, 5) for i, w in zip(INDEX, v, strict=True)])),
    Case("sort", lambda x: mg.sort(x, 1), ((3, 9),), lambda x: np.sort(x, 1)),
    Case("sort_descending", lambda x: mg.sort(x, 0, descending=True), ((9, 3),),
         lambda x: -np.sort(-x, 0)),
    Case("topk", lambda x: mg.topk(x, 3)[0], ((4, 9),), lambda x: -np.sort(-x, 1)[:, :3]),
    Case("embedding", lambda w: mg.embedding(w, mg.tensor(TOKENS)), ((6, 5),), lambda w: w[TOKENS],
         lambda t, w: t.nn.functional.embedding(t.from_numpy(TOKENS), w)),
]  # fmt: skip

PRODUCTS = [
    Case("matmul", mg.matmul, ((5, 7), (7, 4)), np.matmul, lambda t, a, b: a @ b),
    Case("matmul_batch", mg.matmul, ((2, 1, 5, 7), (3, 7, 4)), np.matmul, lambda t, a, b: a @ b),
    Case("matmul_vector", mg.matmul, ((7,), (3, 7, 4)), np.matmul),
    Case("matmul_tall", mg.matmul, ((2, 33, 40), (40, 17)), np.matmul, tolerance=4),
    Case("linear", mg.linear, ((2, 3, 5), (4, 5), (4,)), lambda x, w, b: x @ w.T + b,
         lambda t, x, w, b: t.nn.functional.linear(x, w, b)),
    Case("linear_gelu", lambda x, w, b: mg.linear(x, w, b, "gelu"), ((6, 5), (4, 5), (4,)),
         lambda x, w, b: gelu(x @ w.T + b)),
    Case("linear_gelu_tanh", lambda x, w, b: mg.linear(x, w, b, "gelu_tanh"),
         ((6, 5), (4, 5), (4,)), lambda x, w, b: gelu_tanh(x @ w.T + b)),
    Case("linear_relu", lambda x, w, b: mg.linear(x, w, b, "relu"), ((6, 5), (4, 5), (4,)),
         lambda x, w, b: np.maximum(x @ w.T + b, 0)),
    Case("einsum", lambda a, b: mg.einsum("bhid,bhjd->bhij", a, b), ((2, 3, 4, 5), (2, 3, 6, 5)),
         lambda a, b: np.einsum("bhid,bhjd->bhij", a, b)),
    Case("einsum_three", lambda a, b, c: mg.einsum("ij,jk,...k->i...", a, b, c),
         ((3, 4), (4, 5), (2, 5)), lambda a, b, c: np.einsum("ij,jk,...k->i...", a, b, c)),
    Case("einsum_trace", lambda a: mg.einsum("ii", a), ((4, 4),), lambda a: np.einsum("ii", a)),
]  # fmt: skip

ROWS = [
    Case("softmax", mg.softmax, ((5, 33),), softmax, lambda t, x: x.softmax(-1)),
    Case("softmax_axis", lambda x: mg.softmax(x, 1), ((2, 5, 3),), lambda x: softmax(x, 1),
         lambda t, x: x.softmax(1)),
    Case("log_softmax", mg.log_softmax, ((5, 33),), lambda x: np.log(softmax(x)),
         lambda t, x: x.log_softmax(-1)),
    Case("logsumexp", lambda x: mg.logsumexp(x, 1), ((2, 9, 3),),
         lambda x: np.log(np.exp(x).sum(1)), lambda t, x: x.logsumexp(1)),
    Case("layer_norm", mg.layer_norm, ((3, 4, 19), (19,), (19,)),
         lambda x, w, b: normed(x, 1e-5) * w + b,
         lambda t, x, w, b: t.nn.functional.layer_norm(x, w.shape, w, b), tolerance=4),
    Case("layer_norm_residual", lambda x, w, b, r: sum(mg.layer_norm(x, w, b, residual=r)),
         ((5, 40), (40,), (40,), (5, 40)), lambda x, w, b, r: normed(x + r, 1e-5) * w + b + x + r,
         tolerance=4),
    Case("rms_norm", mg.rms_norm, ((5, 40), (40,)),
         lambda x, w: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w,
         lambda t, x, w: t.nn.functional.rms_norm(x, w.shape, w, 1e-6), tolerance=4),
    Case("rms_norm_residual", lambda x, w, r: sum(mg.rms_norm(x, w, residual=r)),
         ((5, 40), (40,), (5, 40)),
         lambda x, w, r: (x + r) / np.sqrt(((x + r) ** 2).mean(-1, keepdims=True) + 1e-6) * w
         + x + r, tolerance=4),
    Case("cross_entropy", lambda x: mg.cross_entropy(x, mg.tensor(TARGETS)), ((6, 5),),
         cross_entropy, lambda t, x: t.nn.functional.cross_entropy(x, t.from_numpy(TARGETS))),
    Case("cross_entropy_smooth",
         lambda x: mg.cross_entropy(x, mg.tensor(TARGETS), label_smoothing=0.1), ((6, 5),),
         lambda x: cross_entropy(x, 0.1),
         lambda t, x: t.nn.functional.cross_entropy(x, t.from_numpy(TARGETS), label_smoothing=0.1)),
    Case("linear_cross_entropy",
         lambda x, w, b: mg.linear_cross_entropy(x, w, mg.tensor(TARGETS), b),
         ((6, 3), (5, 3), (5,)), lambda x, w, b: cross_entropy(x @ w.T + b),
         lambda t, x, w, b: t.nn.functional.cross_entropy(
             t.nn.functional.linear(x, w, b), t.from_numpy(TARGETS)), second=False),
    Case("rotary", mg.rotary_embedding, ((2, 3, 6),), rotary),
]  # fmt: skip


def _sdpa(t: Any, q: Any, k: Any, v: Any, **options: Any) -> Any:
    return t.nn.functional.scaled_dot_product_attention(q, k, v, **options)


ATTENTION = [
    Case("attention", mg.attention, ((2, 2, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)), attention, _sdpa,
         second=False),
    Case("attention_causal", lambda q, k, v: mg.attention(q, k, v, causal=True),
         ((1, 2, 67, 16),) * 3, lambda q, k, v: attention(q, k, v, True),
         lambda t, q, k, v: _sdpa(t, q, k, v, is_causal=True), second=False),
    Case("attention_window", lambda q, k, v: mg.attention(q, k, v, causal=True, window=3),
         ((1, 1, 9, 4),) * 3, lambda q, k, v: attention(q, k, v, True, 3), second=False),
    Case("attention_band", lambda q, k, v: mg.attention(q, k, v, window=70),
         ((1, 1, 150, 4),) * 3, lambda q, k, v: attention(q, k, v, False, 70), second=False),
    Case("attention_grouped", lambda q, k, v: mg.attention(q, k, v, causal=True),
         ((2, 4, 6, 8), (2, 2, 9, 8), (2, 2, 9, 8)), lambda q, k, v: attention(q, k, v, True),
         second=False),
    Case("attention_composed", lambda q, k, v: mg.attention(q, k, v, causal=True, impl="composed"),
         ((1, 2, 4, 3),) * 3, lambda q, k, v: attention(q, k, v, True)),
    Case("attention_packed", lambda x: mg.attention_packed(x, 2, causal=True), ((1, 70, 6, 8),),
         lambda x: np.moveaxis(
             attention(*(np.moveaxis(p, 1, 2) for p in np.split(x, 3, 2)), True), 1, 2),
         second=False),
]  # fmt: skip

CASES = [*ELEMENTWISE, *REDUCTIONS, *MOVEMENT, *INDEXING, *PRODUCTS, *ROWS, *ATTENTION]

# Error allowed against float64, relative to 1 + |value|: (forward, gradient).
TOLERANCE = {
    "float64": (1e-12, 1e-11),
    "float32": (1e-6, 4e-6),
    "bfloat16": (2e-2, 6e-2),
    "float16": (3e-3, 8e-3),
}
