"""softmax, log_softmax and logsumexp over one axis."""

from __future__ import annotations

import math

import numpy as np

from minigrad import dtypes
from minigrad.arguments import Axis, normalize_axes, normalize_axis
from minigrad.autograd import Function, Node, is_grad_enabled
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch
from minigrad.ops.binary import mul, sub
from minigrad.ops.creation import as_tensor, cast, unit_columns
from minigrad.ops.movement import as_rows, expand_dims, permute, reshape, swapaxes
from minigrad.ops.reduce import sum as sum_
from minigrad.ops.unary import exp
from minigrad.tensor import Tensor, TensorLike

__all__ = ["log_softmax", "logsumexp", "softmax"]


# ---- reference: x, out (n_rows, n_cols) ----


def _softmax_ref(x: np.ndarray, out: np.ndarray) -> None:
    wide = x.astype(np.float64)
    if wide.size == 0:
        return
    with np.errstate(all="ignore"):
        e = np.exp(wide - wide.max(-1, keepdims=True))
        out[...] = (e / e.sum(-1, keepdims=True)).astype(out.dtype)


def _softmax_bwd_ref(g: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
    gw, yw = g.astype(np.float64), y.astype(np.float64)
    dx[...] = (yw * (gw - (gw * yw).sum(-1, keepdims=True))).astype(dx.dtype)


def _logsumexp_ref(x: np.ndarray, out: np.ndarray) -> None:
    wide = x.astype(np.float64)
    top = wide.max(-1)
    with np.errstate(all="ignore"):
        total = np.log(np.exp(wide - top[..., None]).sum(-1)) + top
        out[...] = np.where(np.isinf(top), top, total).astype(out.dtype)


def _log_softmax_ref(x: np.ndarray, out: np.ndarray) -> None:
    wide = x.astype(np.float64)
    if wide.size == 0:
        return
    with np.errstate(all="ignore"):
        shifted = wide - wide.max(-1, keepdims=True)
        out[...] = (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))).astype(out.dtype)


def _log_softmax_bwd_ref(g: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
    gw = g.astype(np.float64)
    dx[...] = (gw - np.exp(y.astype(np.float64)) * gw.sum(-1, keepdims=True)).astype(dx.dtype)


REFERENCE = {
    "softmax_fwd": _softmax_ref,
    "softmax_bwd": _softmax_bwd_ref,
    "log_softmax_fwd": _log_softmax_ref,
    "log_softmax_bwd": _log_softmax_bwd_ref,
    "logsumexp_fwd": _logsumexp_ref,
}
COST = {
    "softmax_fwd": lambda x, out: Cost(nbytes(x, out), 5 * x.size),
    "softmax_bwd": lambda g, y, dx: Cost(nbytes(g, y, dx), 4 * y.size),
    "log_softmax_fwd": lambda x, out: Cost(nbytes(x, out), 5 * x.size),
    "log_softmax_bwd": lambda g, y, dx: Cost(nbytes(g, y, dx), 4 * y.size),
    "logsumexp_fwd": lambda x, out: Cost(nbytes(x, out), 4 * x.size),
}


# ---- differentiable: x (n_rows, n_cols) ----


class Softmax(Function):
    @staticmethod
    def forward(ctx: Node, x: np.ndarray) -> np.ndarray:
        ctx.save_outputs(0)
        out = empty(x.shape, x.dtype)
        launch("softmax_fwd", x, out)
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        (y,) = ctx.saved
        if is_grad_enabled():
            return mul(y, sub(g, sum_(mul(g, y), -1, keepdims=True)))
        dx = empty(y.shape, y.dtype)
        launch("softmax_bwd", unit_columns(g._array), y._array, dx)
        return Tensor._wrap(dx)


class LogSoftmax(Function):
    @staticmethod
    def forward(ctx: Node, x: np.ndarray) -> np.ndarray:
        ctx.save_outputs(0)
        out = empty(x.shape, x.dtype)
        launch("log_softmax_fwd", x, out)
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        (y,) = ctx.saved
        if is_grad_enabled():
            return sub(g, mul(exp(y), sum_(g, -1, keepdims=True)))
        dx = empty(y.shape, y.dtype)
        launch("log_softmax_bwd", unit_columns(g._array), y._array, dx)
        return Tensor._wrap(dx)


class LogSumExp(Function):
    @staticmethod
    def forward(ctx: Node, x: np.ndarray) -> np.ndarray:
        ctx.save_inputs(0)
        out = empty(x.shape[:1], x.dtype)
        launch("logsumexp_fwd", x, out)
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        (x,) = ctx.saved
        return mul(softmax(x, -1), expand_dims(g, -1))


# ---- public ----


def _rows(op: str, x: TensorLike, axis: int) -> tuple[Tensor, int]:
    """x with `axis` last, and where it was."""
    x = as_tensor(x)
    if not dtypes.is_floating(x.dtype):
        x = cast(x, dtypes.float32)
    axis = normalize_axis(op, axis, x.ndim)
    return (x if axis == x.ndim - 1 else swapaxes(x, axis, -1)), axis


def softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """exp(x) / Σ exp(x) along `axis`; a row of all -inf, or with +inf, is NaN.

    >>> softmax([[0.0, 0.0]]).numpy()
    array([[0.5, 0.5]], dtype=float32)
    """
    last, at = _rows("softmax", x, axis)
    out = reshape(Softmax.apply(as_rows(last)), last.shape)
    return out if at == last.ndim - 1 else swapaxes(out, at, -1)


def log_softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """x - log Σ exp(x) along `axis`."""
    last, at = _rows("log_softmax", x, axis)
    out = reshape(LogSoftmax.apply(as_rows(last)), last.shape)
    return out if at == last.ndim - 1 else swapaxes(out, at, -1)


def logsumexp(x: TensorLike, axis: Axis = -1, keepdims: bool = False) -> Tensor:
    """log Σ exp(x) over `axis` (all axes for None); of all -inf it is -inf."""
    x = as_tensor(x)
    if not dtypes.is_floating(x.dtype):
        x = cast(x, dtypes.float32)
    axes = normalize_axes("logsumexp", axis, x.ndim)
    rest = [d for d in range(x.ndim) if d not in axes]
    n = math.prod(x.shape[d] for d in axes)
    if n == 0:
        raise ValueError(f"logsumexp: nothing to sum in shape {x.shape} over {axes}")
    order = [*rest, *axes]
    last = x if order == list(range(x.ndim)) else permute(x, order)
    rows = reshape(last, (math.prod(x.shape[d] for d in rest), n))
    shape = [1 if d in axes else m for d, m in enumerate(x.shape) if keepdims or d not in axes]
    return reshape(LogSumExp.apply(as_rows(rows)), shape)
