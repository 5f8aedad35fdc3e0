"""Embedding: rows of a table, and their gradient, which adds up repeated rows in order."""

from __future__ import annotations

import numpy as np

from minigrad import dtypes
from minigrad.autograd import Function, Node
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch
from minigrad.ops.creation import as_tensor, contiguous, copied
from minigrad.tensor import Tensor, TensorLike

__all__ = ["embedding"]


def _embedding_fwd_ref(weight: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    out[...] = weight[indices]


def _embedding_bwd_ref(g: np.ndarray, indices: np.ndarray, dweight: np.ndarray) -> None:
    total = np.zeros(dweight.shape, np.float64)
    np.add.at(total, indices.reshape(-1), g.reshape(-1, g.shape[-1]).astype(np.float64))
    dweight[...] = total.astype(dweight.dtype)


def _check_range_ref(indices: np.ndarray, n: int, has_ignored: bool, ignored: int) -> None:
    bad = (indices < 0) | (indices >= n)
    if has_ignored:
        bad &= indices != ignored
    if bad.any():
        raise IndexError(f"check_range: the index {indices[bad][0]} is outside [0, {n})")


REFERENCE = {
    "embedding_fwd": _embedding_fwd_ref,
    "embedding_bwd": _embedding_bwd_ref,
    "check_range": _check_range_ref,
}
COST = {
    "check_range": lambda indices, n, has_ignored, ignored: Cost(nbytes(indices), 0),
    "embedding_fwd": lambda weight, indices, out: Cost(nbytes(indices, out, out), 0),
    "embedding_bwd": lambda g, indices, dweight: Cost(nbytes(g, indices, dweight), g.size),
}


class Embedding(Function):
    fresh = True  # of a weight that is the output layer's, too, each gradient is large

    @staticmethod
    def forward(ctx: Node, weight: np.ndarray, indices: np.ndarray) -> np.ndarray:
        ctx.rows = weight.shape[0]
        ctx.save_inputs(1)
        out = empty((*indices.shape, weight.shape[1]), weight.dtype)
        launch("embedding_fwd", weight, indices, out)
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved
        return EmbeddingGradient.apply(g, indices, rows=ctx.rows), None


class EmbeddingGradient(Function):
    """Zeros (rows, C) with g's rows added at the indices."""

    @staticmethod
    def forward(ctx: Node, g: np.ndarray, indices: np.ndarray, rows: int) -> np.ndarray:
        ctx.save_inputs(1)
        out = empty((rows, g.shape[-1]), g.dtype)
        launch("embedding_bwd", g if g.flags.c_contiguous else copied(g), indices, out)
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved
        return Embedding.apply(g, indices), None


def embedding(weight: TensorLike, indices: TensorLike) -> Tensor:
    """weight[indices]: weight (V, C), integer indices of any shape → (…, C).

    Raises IndexError, before anything runs, for an index outside [0, V).
    """
    weight, wanted = as_tensor(weight), as_tensor(indices)
    if wanted.dtype not in (dtypes.int64, dtypes.int32):
        raise TypeError(f"embedding: indices must be int64 or int32, got {wanted.dtype.name}")
    if weight.ndim != 2:
        raise ValueError(f"embedding: expected a weight (V, C), got {weight.shape}")
    wanted = contiguous(wanted)
    check_range("embedding", "index", wanted._array, weight.shape[0])
    return Embedding.apply(contiguous(weight), wanted)


def check_range(op: str, what: str, array: np.ndarray, n: int, ignored: int | None = None) -> None:
    """Raises IndexError naming the first value of a contiguous array that is outside [0, n) (and
    not `ignored`)."""
    try:
        launch("check_range", array, n, ignored is not None, ignored or 0)
    except IndexError:
        bad = (array < 0) | (array >= n)
        if ignored is not None:
            bad &= array != ignored
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise IndexError(f"{op}: {what} {array[at]} at {at} is outside [0, {n})") from None
