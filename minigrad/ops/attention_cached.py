"""Attention of new tokens over a cache of the keys and values before them, which takes up theirs:
the attention of decoding, a token or a few at a time.

The number of cached tokens is read through a pointer, so a captured step may decode token after
token. The cache is memory that is written in place and keeps no graph, so there is no gradient.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np

from minigrad import dtypes
from minigrad.autograd import Function, Node
from minigrad.cost import Cost, nbytes, product_cost
from minigrad.dispatch import launch
from minigrad.ops.attention import attention_fwd_ref, checked_mask, heads_last
from minigrad.ops.creation import contiguous, has_unit_columns
from minigrad.tensor import Tensor, TensorLike

__all__ = ["attention_cached"]


def _fwd_ref(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    start: np.ndarray,
    mask: np.ndarray | None,
    out: np.ndarray,
    scale: float,
    causal: bool,
) -> None:
    first, end = int(start[0]), int(start[0]) + k.shape[2]
    keys[:, :, first:end], values[:, :, first:end] = k, v
    lse = np.empty(q.shape[:3], np.float64)
    attention_fwd_ref(
        q, keys[:, :, :end], values[:, :, :end], mask, None, out, lse, scale, causal, -1, 0.0, None
    )


def _fwd_cost(
    q: Any, k: Any, v: Any, keys: Any, values: Any, start: Any, mask: Any, out: Any, scale: float,
    causal: bool,
) -> Cost:  # fmt: skip
    n_queries, n_keys = q.shape[2], int(start[0]) + k.shape[2]
    cached = keys[:, :, : int(start[0])]
    hidden = n_queries * (n_queries - 1) // 2 if causal else 0  # later keys, from earlier queries
    pairs = q.shape[0] * q.shape[1] * (n_queries * n_keys - hidden)
    moved = nbytes(q, k, v, k, v, cached, cached, mask, out)
    return product_cost(moved, 4 * q.shape[3] * pairs, q.dtype)


REFERENCE = {"attention_cached_fwd": _fwd_ref}
COST = {"attention_cached_fwd": _fwd_cost}


class AttentionCached(Function):
    @staticmethod
    def forward(
        ctx: Node,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        mask: np.ndarray | None,
        keys: np.ndarray,
        values: np.ndarray,
        start: np.ndarray,
        scale: float,
        causal: bool,
    ) -> np.ndarray:
        out = heads_last(q)
        launch("attention_cached_fwd", q, k, v, keys, values, start, mask, out, scale, causal)
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> NoReturn:
        raise NotImplementedError(
            "attention_cached: a cache keeps no graph, so there is no gradient; run the whole "
            "sequence without a cache, or decode under mg.no_grad()"
        )


def attention_cached(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    start: np.ndarray,
    *,
    causal: bool = False,
    mask: TensorLike = None,
    scale: float | None = None,
) -> Tensor:
    """Puts the new k and v behind the first start[0] tokens of a cache, and attends to all of it:
    (B, Hq, T, D), the rows of `attention` for the last T tokens.

    q (B, Hq, T, D), new k and v (B, Hkv, T, D), Hq a multiple of Hkv; keys and values (B, Hkv,
    capacity, D), written in place; start an int64 array of one element, which a captured step's
    replay may find changed. `causal`, `mask` (broadcastable to (B, Hq, T, start[0] + T)) and
    `scale` as in `attention`. Raises ValueError or TypeError, before anything runs, on what does
    not fit; backward raises, as a cache keeps no graph.
    """
    op = "attention_cached"
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}, keys {keys.shape}, values {values.shape}"
    if any(t.ndim != 4 for t in (q, k, v, keys, values)):
        raise ValueError(f"{op}: expected five tensors (B, H, T, D); got {shapes}")
    if k.shape != v.shape or keys.shape != values.shape or q.shape[2] != k.shape[2]:
        raise ValueError(f"{op}: k and v, keys and values, or the lengths of q and k: {shapes}")
    b, hkv, _, d = keys.shape
    if k.shape[:2] != (b, hkv) or (q.shape[0], q.shape[3], k.shape[3]) != (b, d, d) or d == 0:
        raise ValueError(f"{op}: batch, heads or head_dim differ from the cache's: {shapes}")
    if hkv == 0 or q.shape[1] % hkv:
        raise ValueError(f"{op}: Hq must be a multiple of Hkv: {shapes}")
    kinds = [t.dtype.name for t in (q, k, v, keys, values)]
    if len(set(kinds)) > 1 or not dtypes.is_floating(q.dtype):
        raise TypeError(f"{op}: all must share one floating dtype; got {', '.join(kinds)}")
    total = int(start[0]) + k.shape[2]
    if not k.shape[2] <= total <= keys.shape[2]:
        raise ValueError(
            f"{op}: {k.shape[2]} tokens behind {int(start[0])} do not fit a cache of "
            f"{keys.shape[2]}"
        )
    unit = [t if has_unit_columns(t._array) else contiguous(t) for t in (q, k, v)]
    return AttentionCached.apply(
        *unit,
        checked_mask(op, mask, "mask", (*q.shape[:3], total)),
        keys=keys._array,
        values=values._array,
        start=start,
        scale=1 / math.sqrt(d) if scale is None else float(scale),
        causal=bool(causal),
    )
