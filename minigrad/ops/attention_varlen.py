"""Attention over a packed batch: sequences of different lengths one after another, without padding.

    q, k, v (total, H, D), cu_seqlens = [0, 2, 5]: tokens 0, 1 see each other, and 2, 3, 4
    1 1 . . .
    1 1 . . .
    . . 1 1 1
    . . 1 1 1
    . . 1 1 1

Names and shapes are those of FlashAttention's `flash_attn_varlen_func`. The kernels are attention's
(`csrc/attention_fwd.cpp`, `csrc/attention_bwd.cpp`), sequence by sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from minigrad import dtypes
from minigrad.autograd import Function, Node
from minigrad.cost import Cost, nbytes, product_cost
from minigrad.dispatch import empty, launch
from minigrad.ops.attention import (
    attention_bwd_ref,
    attention_fwd_ref,
    attention_options,
    refuse_second_derivative,
    visible_pairs,
)
from minigrad.ops.creation import as_tensor, cast, contiguous, has_unit_columns, unit_columns
from minigrad.random import Generator
from minigrad.tensor import Tensor, TensorLike

__all__ = ["attention_varlen"]


# ---- reference ----


def _sequences(cu_q: np.ndarray, cu_k: np.ndarray) -> Iterator[tuple[slice, slice]]:
    for (q0, q1), (k0, k1) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        yield slice(q0, q1), slice(k0, k1)


def _batch_of_one(x: np.ndarray, tokens: slice) -> np.ndarray:
    """(1, H, T, D) of (total, H, D); a view."""
    return x[tokens].transpose(1, 0, 2)[None]


def _fwd_ref(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    cu_seqlens_q: np.ndarray,
    cu_seqlens_k: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    *options: Any,
) -> None:
    first = 0
    for tq, tk in _sequences(cu_seqlens_q, cu_seqlens_k):
        own_q, own_out, own_lse = (_batch_of_one(x, tq) for x in (q, out, lse))
        own_k, own_v = (_batch_of_one(x, tk) for x in (k, v))
        tensors = (own_q, own_k, own_v, None, None, own_out, own_lse[..., 0])
        arguments: list[Any] = [*tensors, *options, first]
        attention_fwd_ref(*arguments)
        first += q.shape[1] * (tq.stop - tq.start) * (tk.stop - tk.start)


def _bwd_ref(
    g: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    cu_seqlens_q: np.ndarray,
    cu_seqlens_k: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
    *options: Any,
) -> None:
    first = 0
    for tq, tk in _sequences(cu_seqlens_q, cu_seqlens_k):
        own_g, own_q, own_out, own_lse, own_dq = (
            _batch_of_one(x, tq) for x in (g, q, out, lse, dq)
        )
        own_k, own_v, own_dk, own_dv = (_batch_of_one(x, tk) for x in (k, v, dk, dv))
        tensors = (own_g, own_q, own_k, own_v, None, None, own_out, own_lse[..., 0])
        arguments: list[Any] = [*tensors, own_dq, own_dk, own_dv, *options, first]
        attention_bwd_ref(*arguments)
        first += q.shape[1] * (tq.stop - tq.start) * (tk.stop - tk.start)


REFERENCE = {"attention_varlen_fwd": _fwd_ref, "attention_varlen_bwd": _bwd_ref}


def _pairs(q: Any, k: Any, cu_q: Any, cu_k: Any, causal: bool, window: int) -> int:
    return sum(
        visible_pairs(_batch_of_one(q, tq), _batch_of_one(k, tk), causal, window)
        for tq, tk in _sequences(cu_q, cu_k)
    )


def _fwd_cost(
    q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, out: Any, lse: Any, scale: float, causal: bool,
    window: int, dropout_p: float, rng: Any,
) -> Cost:  # fmt: skip
    operations = 4 * q.shape[2] * _pairs(q, k, cu_q, cu_k, causal, window)
    return product_cost(nbytes(q, k, v, out, lse), operations, q.dtype)


def _bwd_cost(
    g: Any, q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, out: Any, lse: Any, dq: Any, dk: Any,
    dv: Any, scale: float, causal: bool, window: int, dropout_p: float, rng: Any,
) -> Cost:  # fmt: skip
    operations = 10 * q.shape[2] * _pairs(q, k, cu_q, cu_k, causal, window)
    return product_cost(nbytes(g, q, k, v, out, lse, dq, dk, dv), operations, q.dtype)


COST = {"attention_varlen_fwd": _fwd_cost, "attention_varlen_bwd": _bwd_cost}


# ---- differentiable ----


class AttentionVarlen(Function):
    @staticmethod
    def forward(
        ctx: Node,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        cu_seqlens_q: np.ndarray,
        cu_seqlens_k: np.ndarray,
        **options: Any,
    ) -> np.ndarray:
        ctx.options = tuple(options.values())
        ctx.save_inputs(0, 1, 2, 3, 4)
        ctx.save_outputs(0)
        out = empty(q.shape, q.dtype)
        wide = dtypes.float64 if q.dtype == dtypes.float64 else dtypes.float32
        ctx.lse = empty((*q.shape[:2], 1), wide)
        launch(
            "attention_varlen_fwd", q, k, v, cu_seqlens_q, cu_seqlens_k, out, ctx.lse, *ctx.options
        )
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(
            "attention_varlen", 'attention(..., impl="composed") on each sequence'
        )
        q, k, v, cu_q, cu_k, out = (t._array for t in ctx.saved)
        dq, dk, dv = (empty(x.shape, x.dtype) for x in (q, k, v))
        launch(
            "attention_varlen_bwd", unit_columns(g._array), q, k, v, cu_q, cu_k, out, ctx.lse,
            dq, dk, dv, *ctx.options,
        )  # fmt: skip
        return Tensor._wrap(dq), Tensor._wrap(dk), Tensor._wrap(dv), None, None


# ---- public ----


def _checked_lengths(name: str, given: TensorLike, total: int) -> Tensor:
    """Cumulative lengths as int64, or an error."""
    x = as_tensor(given)
    if x.dtype not in (dtypes.int32, dtypes.int64) or x.ndim != 1 or x.size == 0:
        raise TypeError(
            f"attention_varlen: {name} must be a vector of int32 or int64, [0, …, total]; got "
            f"{x.dtype.name} {x.shape}"
        )
    ends = x._array
    if ends[0] != 0 or ends[-1] != total or (ends[1:] < ends[:-1]).any():
        raise ValueError(
            f"attention_varlen: {name} must rise from 0 to the number of tokens, {total}; got "
            f"{ends.tolist() if ends.size <= 8 else [*ends[:4].tolist(), '…', int(ends[-1])]}"
        )
    return contiguous(cast(x, dtypes.int64))


def attention_varlen(
    q: TensorLike,
    k: TensorLike,
    v: TensorLike,
    cu_seqlens_q: TensorLike,
    cu_seqlens_k: TensorLike = None,
    *,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Attention within each sequence of a packed batch: (total_q, Hq, D).

    q (total_q, Hq, D); k and v (total_k, Hkv, D), Hq a multiple of Hkv; views with gaps between
    tokens and heads (of a packed projection) are read in place. Sequence b is the queries
    `cu_seqlens_q[b]` … `cu_seqlens_q[b + 1] - 1` and the keys likewise (`cu_seqlens_k` is
    `cu_seqlens_q` unless given): int32 or int64, from 0 to the total, never falling; lengths may
    be 0. No work is done for padding. The options are those of `attention`, sequence by sequence,
    and so are the bits; dropout's index of weight (h, i, j) of sequence b is
    (h · Tq_b + i) · Tk_b + j, after Hq · Tq · Tk for each sequence before it: for equal lengths,
    that of `attention`.

    Has no second derivative. Raises ValueError or TypeError, before anything runs, on shapes,
    dtypes and lengths that do not fit.
    """
    op = "attention_varlen"
    q, k, v = as_tensor(q), as_tensor(k), as_tensor(v)
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"{op}: expected q (total_q, Hq, D), k and v (total_k, Hkv, D); got {shapes}"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{op}: Hq must be a multiple of Hkv: {shapes}")
    if len({q.dtype, k.dtype, v.dtype}) > 1 or not dtypes.is_floating(q.dtype):
        names = [t.dtype.name for t in (q, k, v)]
        raise TypeError(f"{op}: q, k, v must share one floating dtype; got {', '.join(names)}")
    cu_q = _checked_lengths("cu_seqlens_q", cu_seqlens_q, q.shape[0])
    given = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    cu_k = _checked_lengths("cu_seqlens_k", given, k.shape[0])
    if cu_q.shape != cu_k.shape:
        raise ValueError(
            f"{op}: cu_seqlens_q tells {cu_q.size - 1} sequences and cu_seqlens_k {cu_k.size - 1}"
        )
    options = attention_options(
        op, q.shape[2], q.shape[0] + k.shape[0], causal, window, dropout, scale, generator
    )
    unit = [t if has_unit_columns(t._array) else contiguous(t) for t in (q, k, v)]
    return AttentionVarlen.apply(*unit, cu_q, cu_k, **options)
