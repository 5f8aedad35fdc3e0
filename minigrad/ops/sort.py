"""Order: sort, argsort and topk. NumPy does the sorting; gradients go back through
`take_along_axis`."""

from __future__ import annotations

import numpy as np

from minigrad import dtypes
from minigrad.arguments import integer, normalize_axis
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch_numpy
from minigrad.ops.creation import as_tensor
from minigrad.ops.indexing import take_along_axis
from minigrad.tensor import Tensor, TensorLike

__all__ = ["argsort", "sort", "topk"]


COST = {"numpy:argsort": lambda x, order, axis, descending: Cost(nbytes(x, order), 0)}


def _argsort(x: np.ndarray, order: np.ndarray, axis: int, descending: bool) -> None:
    keys = x.astype(np.float32) if x.dtype in (dtypes.float16, dtypes.bfloat16) else x
    if descending:  # a NaN stays one; the least integer has no negative, so bits are inverted
        keys = np.negative(keys) if dtypes.is_floating(x.dtype) else np.invert(keys)
    order[...] = np.argsort(keys, axis=axis, kind="stable")


def argsort(x: TensorLike, axis: int = -1, descending: bool = False) -> Tensor:
    """The order (int64) that sorts x along `axis`; equal elements keep theirs, NaN comes last in
    both directions."""
    x = as_tensor(x)
    axis = normalize_axis("argsort", axis, x.ndim)
    order = empty(x.shape, dtypes.int64)
    launch_numpy("argsort", _argsort, x._array, order, axis, descending)
    return Tensor._placed(order, x.device)


def sort(x: TensorLike, axis: int = -1, descending: bool = False) -> Tensor:
    """x in order along `axis`, NaN last in both directions."""
    x = as_tensor(x)
    axis = normalize_axis("sort", axis, x.ndim)
    return take_along_axis(x, argsort(x, axis, descending), axis)


def topk(x: TensorLike, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The k greatest elements along `axis`, greatest first (NaN after all others), and their
    indices (int64)."""
    x = as_tensor(x)
    axis = normalize_axis("topk", axis, x.ndim)
    k = integer("topk", "k", k)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"topk: k={k} is out of range for axis {axis} of length {x.shape[axis]}")
    order = argsort(x, axis, descending=True)
    index = order[(slice(None),) * axis + (slice(0, k),)]
    return take_along_axis(x, index, axis), index
