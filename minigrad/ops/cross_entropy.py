"""Cross-entropy of logits and integer targets, with label smoothing and ignored targets."""

from __future__ import annotations

import math

import numpy as np

from minigrad import dtypes
from minigrad.arguments import integer, probability
from minigrad.autograd import Function, Node, is_grad_enabled
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch
from minigrad.ops.binary import mul, sub
from minigrad.ops.creation import as_tensor, cast, contiguous, tensor
from minigrad.ops.embedding import check_range
from minigrad.ops.movement import expand_dims, reshape
from minigrad.ops.reduce import sum as sum_
from minigrad.ops.softmax import softmax
from minigrad.tensor import Tensor, TensorLike

__all__ = ["cross_entropy"]


def _smooth(n_classes: int, targets: np.ndarray, ignore_index: int, smoothing: float) -> np.ndarray:
    """Target distributions (n_rows, n_classes); zeros for ignored rows."""
    out = np.full((targets.size, n_classes), smoothing / max(n_classes, 1))
    used = targets != ignore_index
    out[np.flatnonzero(used), targets[used]] += 1 - smoothing
    out[~used] = 0
    return out


def _cross_entropy_fwd_ref(
    logits: np.ndarray,
    targets: np.ndarray,
    loss: np.ndarray,
    lse: np.ndarray,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    wide = logits.astype(np.float64)
    if wide.size == 0:
        return
    with np.errstate(all="ignore"):
        top = wide.max(-1)
        total = np.log(np.exp(wide - top[:, None]).sum(-1)) + top
        wanted = _smooth(wide.shape[1], targets, ignore_index, label_smoothing)
        loss[...] = np.where(wanted > 0, wanted * (total[:, None] - wide), 0).sum(-1)
    lse[...] = total


def _cross_entropy_bwd_ref(
    g: np.ndarray,
    logits: np.ndarray,
    targets: np.ndarray,
    lse: np.ndarray,
    dlogits: np.ndarray,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    wide = logits.astype(np.float64)
    used = (targets != ignore_index)[:, None]
    p = np.exp(wide - lse.astype(np.float64)[:, None])
    wanted = _smooth(wide.shape[1], targets, ignore_index, label_smoothing)
    dlogits[...] = (np.where(used, p - wanted, 0) * g[:, None]).astype(dlogits.dtype)


def _row_share_ref(targets: np.ndarray, out: np.ndarray, ignored: int) -> None:
    used = int((targets != ignored).sum())
    out[...] = 1 / used if used else math.nan


REFERENCE = {
    "row_share": _row_share_ref,
    "cross_entropy_fwd": _cross_entropy_fwd_ref,
    "cross_entropy_bwd": _cross_entropy_bwd_ref,
}
COST = {
    "row_share": lambda targets, out, ignored: Cost(nbytes(targets, out), 0),
    "cross_entropy_fwd": lambda logits, targets, loss, lse, ignore, smooth: Cost(
        nbytes(logits, targets, loss, lse), 4 * logits.size
    ),
    "cross_entropy_bwd": lambda g, logits, targets, lse, dlogits, ignore, smooth: Cost(
        nbytes(g, logits, targets, lse, dlogits), 3 * logits.size
    ),
}


class CrossEntropy(Function):
    """logits (n_rows, n_classes), targets (n_rows,) → losses (n_rows,)."""

    @staticmethod
    def forward(
        ctx: Node,
        logits: np.ndarray,
        targets: np.ndarray,
        ignore_index: int,
        label_smoothing: float,
    ) -> np.ndarray:
        ctx.options = ignore_index, label_smoothing
        ctx.save_inputs(0, 1)
        wide = dtypes.float64 if logits.dtype == dtypes.float64 else dtypes.float32
        loss = empty(logits.shape[:1], wide)
        ctx.lse = empty(logits.shape[:1], wide)
        launch("cross_entropy_fwd", logits, targets, loss, ctx.lse, ignore_index, label_smoothing)
        return loss

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets = ctx.saved
        if is_grad_enabled():
            wide = cast(logits, g.dtype)
            wanted = _smooth(wide.shape[1], targets._array, *ctx.options)
            used = (targets._array != ctx.options[0])[:, None]
            slope = sub(mul(softmax(wide), tensor(used, g.dtype)), tensor(wanted, g.dtype))
            return cast(mul(expand_dims(g, -1), slope), logits.dtype), None
        dlogits = empty(logits.shape, logits.dtype)
        launch(
            "cross_entropy_bwd", g._array, logits._array, targets._array, ctx.lse, dlogits,
            *ctx.options,
        )  # fmt: skip
        return Tensor._wrap(dlogits), None


def checked_targets(
    op: str,
    targets: TensorLike,
    shape: tuple[int, ...],
    dtype: np.dtype,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """The targets as a tensor; refuses what does not fit logits of this shape (…, V) and dtype."""
    wanted = contiguous(as_tensor(targets))
    if wanted.dtype not in (dtypes.int64, dtypes.int32):
        raise TypeError(f"{op}: targets must be int64 or int32, got {wanted.dtype.name}")
    if not dtypes.is_floating(dtype):
        raise TypeError(f"{op}: logits must be floating, got {dtype.name}")
    if not shape or wanted.shape != shape[:-1]:
        raise ValueError(
            f"{op}: targets {wanted.shape} do not fit logits {shape}; expected {shape[:-1]}"
        )
    probability(op, "label_smoothing", label_smoothing)
    if not -(2**63) <= integer(op, "ignore_index", ignore_index) < 2**63:
        raise OverflowError(f"{op}: ignore_index {ignore_index} does not fit into int64")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{op}: unknown reduction {reduction!r}")
    check_range(op, "target", wanted._array, shape[-1], ignore_index)
    return wanted


def row_share(targets: np.ndarray, ignore_index: int, dtype: np.dtype) -> Tensor:
    """What a row counts in the mean: 1 / the number of targets that are not ignored, or NaN."""
    out = empty((), dtype)
    launch("row_share", targets, out, ignore_index)
    return Tensor._wrap(out)


def cross_entropy(
    logits: TensorLike,
    targets: TensorLike,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-log softmax(logits)[target], in nats: logits (…, V), integer targets (…).

    `label_smoothing` s mixes the target with the uniform distribution (weight s). Targets equal to
    `ignore_index` count nothing, and "mean" divides by the number of the others (NaN when there is
    none). `reduction` is "mean", "sum" or "none". The loss is float32 (float64 for float64).

    Raises IndexError, before anything runs, for a target outside [0, V).

    >>> cross_entropy([[0.0, 0.0], [0.0, 0.0]], [1, 0]).item()
    0.6931471824645996
    """
    logits = as_tensor(logits)
    wanted = checked_targets(
        "cross_entropy",
        targets,
        logits.shape,
        logits.dtype,
        label_smoothing,
        ignore_index,
        reduction,
    )
    n_rows = math.prod(logits.shape[:-1])
    losses = CrossEntropy.apply(
        contiguous(reshape(logits, (n_rows, logits.shape[-1]))),
        reshape(wanted, (n_rows,)),
        ignore_index=ignore_index,
        label_smoothing=float(label_smoothing),
    )
    if reduction == "none":
        return reshape(losses, wanted.shape)
    total = sum_(losses)
    if reduction == "sum":
        return total
    return mul(total, row_share(wanted._array, ignore_index, total.dtype))
