"""Masked multi-head attention: softmax(q kᵀ · scale + bias, masked) v, without ever holding the T ×
T weights.

    causal, Tq = 3, Tk = 5          window = 2, causal          (x: may attend)
    x x x . .                       . x x . .
    x x x x .                       . . x x .
    x x x x x                       . . . x x

The fused form tiles over keys with a running softmax (Milakov and Gimelshein 2018; Dao et al. 2022)
and recomputes the weights in backward (Dao 2023). A row with every key masked gives zeros and zero
gradients. It has no second derivative: `impl="composed"` builds the same from differentiable
operations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad import dtypes
from minigrad.arguments import integer, number, probability
from minigrad.autograd import Function, Node, is_grad_enabled
from minigrad.cost import Cost, nbytes, product_cost
from minigrad.dispatch import empty, launch
from minigrad.ops.binary import mul, sub
from minigrad.ops.creation import (
    as_tensor,
    cast,
    constant,
    contiguous,
    has_unit_columns,
    to,
    unit_columns,
)
from minigrad.ops.dropout import dropout as dropout_
from minigrad.ops.dropout import keep_mask
from minigrad.ops.matmul import matmul
from minigrad.ops.movement import expand, reshape, swapaxes
from minigrad.ops.reduce import all as all_
from minigrad.ops.reduce import max as max_
from minigrad.ops.reduce import sum as sum_
from minigrad.ops.select import eq as eq_
from minigrad.ops.select import logical_and, logical_not, where
from minigrad.ops.select import ne as ne_
from minigrad.ops.unary import exp, isfinite
from minigrad.random import Generator, next_cell
from minigrad.tensor import Tensor, TensorLike

__all__ = ["attention", "attention_packed"]

Optional = np.ndarray | None


# ---- reference ----


def visible(n_queries: int, n_keys: int, causal: bool, window: int) -> np.ndarray:
    """The (Tq, Tk) mask of causality and window alone; the last query stands at the last key."""
    query = np.arange(n_queries)[:, None] + (n_keys - n_queries)
    key = np.arange(n_keys)[None, :]
    mask = np.ones((n_queries, n_keys), dtype=np.bool_)
    if causal:
        mask &= key <= query
    if window >= 0:
        mask &= key > query - window
        if not causal:
            mask &= key < query + window
    return mask


def _weights_ref(
    q: np.ndarray,
    k: np.ndarray,
    mask: Optional,
    bias: Optional,
    scale: float,
    causal: bool,
    window: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (B, Hq, Tq, Tk) before dropout, and lse (B, Hq, Tq); k has Hq heads already."""
    allowed = np.broadcast_to(
        visible(q.shape[2], k.shape[2], causal, window), (*q.shape[:3], k.shape[2])
    )
    if mask is not None:
        allowed = allowed & mask
    scores = np.einsum("bhid,bhjd->bhij", q, k) * scale
    if bias is not None:
        scores = scores + bias.astype(np.float64)
    scores = np.where(allowed, scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    e = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = e.sum(-1, keepdims=True)
    lse = np.where(total > 0, np.log(np.where(total > 0, total, 1)) + top, -np.inf)
    return e / np.where(total > 0, total, 1), lse[..., 0]


def _clean(x: np.ndarray, heads: int) -> np.ndarray:
    """float64, grouped heads repeated."""
    return np.repeat(x.astype(np.float64), heads // x.shape[1], axis=1)


def _product(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """weights @ values in which a weight of 0 stops NaN and infinity."""
    finite = np.where(np.isfinite(values), values, 0)
    out = weights @ finite
    bad = ~np.isfinite(values)
    if bad.any():
        out = out + np.where((weights != 0).astype(float) @ bad.astype(float) > 0, np.nan, 0)
    return out


def attention_fwd_ref(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: Optional,
    bias: Optional,
    out: np.ndarray,
    lse: np.ndarray,
    scale: float,
    causal: bool,
    window: int,
    dropout_p: float,
    rng: Optional,
    first_weight: int = 0,
) -> None:
    heads = q.shape[1]
    with np.errstate(all="ignore"):
        weights, total = _weights_ref(
            _clean(q, heads), _clean(k, heads), mask, bias, scale, causal, window
        )
        if dropout_p > 0 and rng is not None:
            weights = (
                weights * keep_mask(weights.shape, dropout_p, rng, first_weight) / (1 - dropout_p)
            )
        out[...] = _product(weights, _clean(v, heads)).astype(out.dtype)
    lse[...] = total


def attention_bwd_ref(
    g: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: Optional,
    bias: Optional,
    out: np.ndarray,
    lse: np.ndarray,
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
    scale: float,
    causal: bool,
    window: int,
    dropout_p: float,
    rng: Optional,
    first_weight: int = 0,
) -> None:
    heads, kv_heads = q.shape[1], k.shape[1]
    wide_q, wide_k, wide_v = _clean(q, heads), _clean(k, heads), _clean(v, heads)
    gw = g.astype(np.float64)
    with np.errstate(all="ignore"):
        weights, _ = _weights_ref(wide_q, wide_k, mask, bias, scale, causal, window)
        kept = np.ones_like(weights)
        if dropout_p > 0 and rng is not None:
            kept = keep_mask(weights.shape, dropout_p, rng, first_weight) / (1 - dropout_p)
        d_weights = np.where(weights > 0, gw @ np.swapaxes(wide_v, -1, -2), 0) * kept
        inner = (d_weights * weights).sum(-1, keepdims=True)
        d_scores = weights * (d_weights - inner) * scale
        dq[...] = _product(d_scores, wide_k).astype(dq.dtype)
        full_dk = _product(np.swapaxes(d_scores, -1, -2), wide_q)
        full_dv = _product(np.swapaxes(weights * kept, -1, -2), gw)

    def grouped(x: np.ndarray) -> np.ndarray:
        return x.reshape(x.shape[0], kv_heads, heads // kv_heads, *x.shape[2:]).sum(2)

    dk[...], dv[...] = grouped(full_dk).astype(dk.dtype), grouped(full_dv).astype(dv.dtype)


REFERENCE = {"attention_fwd": attention_fwd_ref, "attention_bwd": attention_bwd_ref}


def visible_pairs(q: np.ndarray, k: np.ndarray, causal: bool, window: int) -> int:
    """Visible (query, key) pairs; for square causal attention half, as the field counts it."""
    n_queries, n_keys = q.shape[2], k.shape[2]
    if not causal and window < 0:
        per_head = n_queries * n_keys
    elif causal and window < 0 and n_queries == n_keys:
        per_head = n_queries * n_keys // 2
    else:
        per_head = int(visible(n_queries, n_keys, causal, window).sum())
    return q.shape[0] * q.shape[1] * per_head


def _fwd_cost(
    q: Any, k: Any, v: Any, mask: Any, bias: Any, out: Any, lse: Any, scale: float, causal: bool,
    window: int, dropout_p: float, rng: Any,
) -> Cost:  # fmt: skip
    operations = 4 * q.shape[3] * visible_pairs(q, k, causal, window)
    return product_cost(nbytes(q, k, v, mask, bias, out, lse), operations, q.dtype)


def _bwd_cost(
    g: Any, q: Any, k: Any, v: Any, mask: Any, bias: Any, out: Any, lse: Any, dq: Any, dk: Any,
    dv: Any, scale: float, causal: bool, window: int, dropout_p: float, rng: Any,
) -> Cost:  # fmt: skip
    operations = 10 * q.shape[3] * visible_pairs(q, k, causal, window)
    return product_cost(nbytes(g, q, k, v, mask, bias, out, lse, dq, dk, dv), operations, q.dtype)


COST = {"attention_fwd": _fwd_cost, "attention_bwd": _bwd_cost}


# ---- differentiable ----


def heads_last(x: np.ndarray) -> np.ndarray:
    """Memory for (B, H, T, D) laid out as (B, T, H, D), so that merging heads is a view."""
    b, h, t, d = x.shape
    return empty((b, t, h, d), x.dtype).transpose(0, 2, 1, 3)


def gradient_memory(x: np.ndarray) -> np.ndarray:
    """Memory for the gradient of x (B, H, T, D), laid out as x is: contiguous, or heads last."""
    return empty(x.shape, x.dtype) if x.flags.c_contiguous else heads_last(x)


def _lse(q: np.ndarray) -> np.ndarray:
    wide = dtypes.float64 if q.dtype == dtypes.float64 else dtypes.float32
    return empty(q.shape[:3], wide)


def refuse_second_derivative(op: str, instead: str) -> None:
    if is_grad_enabled():
        raise NotImplementedError(f"{op}: the fused form has no second derivative; use {instead}")


class Attention(Function):
    @staticmethod
    def forward(
        ctx: Node,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        mask: Optional,
        bias: Optional,
        **options: Any,
    ) -> np.ndarray:
        ctx.options = tuple(options.values())
        ctx.save_inputs(0, 1, 2, 3, 4)
        ctx.save_outputs(0)
        out = heads_last(q)
        ctx.lse = _lse(q)
        launch("attention_fwd", q, k, v, mask, bias, out, ctx.lse, *ctx.options)
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("attention", 'attention(..., impl="composed")')
        arrays: list[Any] = [None if t is None else t._array for t in ctx.saved]
        q, k, v, mask, bias, out = arrays
        dq, dk, dv = gradient_memory(q), gradient_memory(k), gradient_memory(v)
        launch(
            "attention_bwd", unit_columns(g._array), q, k, v, mask, bias, out, ctx.lse, dq, dk, dv,
            *ctx.options,
        )  # fmt: skip
        return Tensor._wrap(dq), Tensor._wrap(dk), Tensor._wrap(dv), None, None


class AttentionPacked(Function):
    """qkv (B, T, Hq + 2 Hkv, D) → (B, T, Hq, D)."""

    @staticmethod
    def forward(
        ctx: Node, qkv: np.ndarray, mask: Optional, bias: Optional, n_heads: int, **options: Any
    ) -> np.ndarray:
        ctx.options, ctx.n_heads = tuple(options.values()), n_heads
        ctx.save_inputs(0, 1, 2)
        ctx.save_outputs(0)
        q, k, v = _unpacked(qkv, n_heads)
        out = empty((qkv.shape[0], qkv.shape[1], n_heads, qkv.shape[3]), qkv.dtype)
        ctx.lse = _lse(q)
        launch(
            "attention_fwd", q, k, v, mask, bias, out.transpose(0, 2, 1, 3), ctx.lse, *ctx.options
        )
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("attention", 'attention(..., impl="composed")')
        arrays: list[Any] = [None if t is None else t._array for t in ctx.saved]
        qkv, mask, bias, out = arrays
        gradient = empty(qkv.shape, qkv.dtype)
        launch(
            "attention_bwd", unit_columns(g._array).transpose(0, 2, 1, 3),
            *_unpacked(qkv, ctx.n_heads), mask, bias, out.transpose(0, 2, 1, 3), ctx.lse,
            *_unpacked(gradient, ctx.n_heads), *ctx.options,
        )  # fmt: skip
        return Tensor._wrap(gradient), None, None


def _unpacked(qkv: np.ndarray, n_heads: int) -> tuple[np.ndarray, ...]:
    """Views (B, H, T, D) of q, k and v."""
    heads = qkv.transpose(0, 2, 1, 3)
    kv = (qkv.shape[2] - n_heads) // 2
    return heads[:, :n_heads], heads[:, n_heads : n_heads + kv], heads[:, n_heads + kv :]


# ---- public ----


def checked_mask(op: str, x: TensorLike, what: str, shape: tuple[int, ...]) -> Tensor | None:
    if x is None:
        return None
    x = as_tensor(x)
    if (x.dtype == dtypes.bool_) != (what == "mask"):
        hint = "bool, True = may attend" if what == "mask" else "of a floating dtype"
        raise TypeError(f"{op}: {what} must be {hint}; got {x.dtype.name}")
    try:
        fits = np.broadcast_shapes(x.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{op}: {what} of shape {x.shape} does not broadcast to (B, Hq, Tq, Tk) = {shape}"
        )
    return expand(x, shape)


def attention_options(
    op: str,
    head_dim: int,
    lengths: int,
    causal: bool,
    window: int | None,
    dropout: float,
    scale: float | None,
    generator: Generator | None,
) -> dict[str, Any]:
    """The kernel's trailing arguments, in its order; `lengths` is Tq + Tk."""
    if head_dim == 0:
        raise ValueError(f"{op}: head_dim (the last axis of q, k and v) must be at least 1, got 0")
    dropout = probability(op, "dropout", dropout)
    if window is not None:
        window = integer(op, "window", window, 1)
    if scale is not None:
        scale = number(op, "scale", scale)
    rng = next_cell(op, generator) if dropout > 0 else None
    return {
        "scale": 1 / math.sqrt(head_dim) if scale is None else float(scale),
        "causal": bool(causal),
        "window": -1 if window is None else min(window, lengths),  # more is the same
        "dropout_p": float(dropout),
        "rng": rng,
    }


def _refuse_bias_gradient(op: str, bias: TensorLike) -> None:
    if isinstance(bias, Tensor) and bias.requires_grad and is_grad_enabled():
        raise NotImplementedError(
            f'{op}: the fused form gives bias no gradient; use attention(..., impl="composed"), or '
            "detach the bias"
        )


def attention(
    q: TensorLike,
    k: TensorLike,
    v: TensorLike,
    *,
    causal: bool = False,
    mask: TensorLike = None,
    bias: TensorLike = None,
    window: int | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    impl: str = "fused",
    generator: Generator | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale + bias) v for every head: (B, Hq, Tq, D).

    q (B, Hq, Tq, D); k and v (B, Hkv, Tk, D), Hq a multiple of Hkv (grouped queries). `mask` is
    bool, True = may attend, broadcastable to (B, Hq, Tq, Tk); `bias` is added to the scaled scores
    and broadcasts likewise. `causal` aligns the last query with the last key; `window` lets a query
    see the last `window` keys up to its own (and, if not causal, as many ahead). `scale` defaults
    to 1 / sqrt(D). `dropout` zeroes weights with that probability and scales the rest.

    What a query (row) may see of the keys (columns), with 3 queries and 5 keys:

        causal      causal, window=2    causal, 5 queries, 3 keys
        1 1 1 . .   . 1 1 . .           . . .
        1 1 1 1 .   . . 1 1 .           . . .
        1 1 1 1 1   . . . 1 1           1 . .
                                        1 1 .
                                        1 1 1

    A row with every key masked gives zeros and zero gradients. `impl="composed"` builds the same
    from differentiable operations and holds all (Tq, Tk) weights; only that form has second
    derivatives and a gradient of `bias`. Raises ValueError or TypeError, before anything runs, on
    shapes, dtypes and options that do not fit.
    """
    op = "attention"
    q, k, v = as_tensor(q), as_tensor(k), as_tensor(v)
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(f"{op}: expected q (B, Hq, Tq, D), k and v (B, Hkv, Tk, D); got {shapes}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"{op}: batch or head_dim differ: {shapes}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{op}: Hq must be a multiple of Hkv: {shapes}")
    if len({q.dtype, k.dtype, v.dtype}) > 1 or not dtypes.is_floating(q.dtype):
        names = [t.dtype.name for t in (q, k, v)]
        raise TypeError(f"{op}: q, k, v must share one floating dtype; got {', '.join(names)}")
    options = attention_options(
        op, q.shape[3], q.shape[2] + k.shape[2], causal, window, dropout, scale, generator
    )
    full = (*q.shape[:3], k.shape[2])
    mask = checked_mask(op, mask, "mask", full)
    bias = checked_mask(op, bias, "bias", full)
    if impl == "composed":
        return _composed(q, k, v, mask, bias, **options)
    if impl != "fused":
        raise ValueError(f'{op}: impl must be "fused" or "composed", got {impl!r}')
    _refuse_bias_gradient(op, bias)
    unit = [t if has_unit_columns(t._array) else contiguous(t) for t in (q, k, v)]
    return Attention.apply(*unit, mask, bias, **options)


def attention_packed(
    qkv: TensorLike,
    n_heads: int,
    *,
    causal: bool = False,
    mask: TensorLike = None,
    bias: TensorLike = None,
    window: int | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Self-attention read straight out of a projection: qkv (B, T, Hq + 2·Hkv, D) → (B, T, Hq, D).

    Heads 0 … Hq-1 are the queries, the next Hkv the keys, the last Hkv the values. Options as in
    `attention`; the gradient is written in the packed layout, too.
    """
    op = "attention_packed"
    qkv, n_heads = as_tensor(qkv), integer(op, "n_heads", n_heads)
    if qkv.ndim != 4 or n_heads < 1 or qkv.shape[2] <= n_heads or (qkv.shape[2] - n_heads) % 2:
        raise ValueError(
            f"{op}: expected qkv (B, T, Hq + 2·Hkv, D) with Hq={n_heads}; got {qkv.shape}"
        )
    kv = (qkv.shape[2] - n_heads) // 2
    if n_heads % kv:
        raise ValueError(f"{op}: Hq={n_heads} is not a multiple of Hkv={kv}")
    options = attention_options(
        op, qkv.shape[3], 2 * qkv.shape[1], causal, window, dropout, scale, generator
    )
    full = (qkv.shape[0], n_heads, qkv.shape[1], qkv.shape[1])
    _refuse_bias_gradient(op, bias)
    return AttentionPacked.apply(
        contiguous(qkv),
        checked_mask(op, mask, "mask", full),
        checked_mask(op, bias, "bias", full),
        n_heads=n_heads,
        **options,
    )


def _composed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
    dropout_p: float,
    rng: Optional,
) -> Tensor:
    """The same in differentiable operations, the weights in full."""
    allowed = expand(
        to(constant(visible(q.shape[2], k.shape[2], causal, window)), q.device),
        (*q.shape[:3], k.shape[2]),
    )
    if mask is not None:
        allowed = logical_and(allowed, mask)
    if bias is not None:
        allowed = logical_and(allowed, ne_(bias, -math.inf))
    k, v = _repeated(k, q.shape[1]), _repeated(v, q.shape[1])
    scores = mul(_scores(q, k), scale)
    if bias is not None:
        scores = scores + bias
    if scores.shape[-1] == 0:
        return matmul(cast(scores, v.dtype), v)
    scores = where(allowed, scores, -math.inf)
    top = max_(scores.detach(), -1, keepdims=True)
    e = exp(sub(scores, where(eq_(top, -math.inf), 0.0, top)))
    total = sum_(e, -1, keepdims=True)
    weights = e / where(eq_(total, 0), 1.0, total)
    if rng is not None:
        weights = dropout_(weights, dropout_p, rng=rng)
    return _weighted(cast(weights, v.dtype), v)  # a bias may be of a wider type


def _without_nan_and_infinity(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """x with zeros for them, and where they are not (None: nowhere)."""
    finite = isfinite(x)
    return (x, None) if all_(finite).item() else (where(finite, x, 0.0), finite)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q kᵀ. NaN and infinity count in the scores of their own query or key, and not as factors of
    gradients, where a 0 (of what is masked) would not stop them."""
    clean_q, finite_q = _without_nan_and_infinity(q)
    clean_k, finite_k = _without_nan_and_infinity(k)
    scores = matmul(clean_q, swapaxes(clean_k, -1, -2))
    if finite_q is None and finite_k is None:
        return scores
    raw = matmul(q.detach(), swapaxes(k.detach(), -1, -2))
    return scores + where(isfinite(raw), 0.0, raw)


def _weighted(weights: Tensor, v: Tensor) -> Tensor:
    """weights @ v in which a weight of 0 stops NaN and infinity."""
    clean, finite = _without_nan_and_infinity(v)
    out = matmul(weights, clean)
    if finite is None:
        return out
    seen = matmul(cast(ne_(weights, 0), v.dtype), cast(logical_not(finite), v.dtype))
    return out + cast(where(seen > 0, math.nan, 0.0), v.dtype)


def _repeated(x: Tensor, n_heads: int) -> Tensor:
    b, h, t, d = x.shape
    if h == n_heads:
        return x
    wide = expand(reshape(x, (b, h, 1, t, d)), (b, h, n_heads // h, t, d))
    return reshape(wide, (b, n_heads, t, d))
