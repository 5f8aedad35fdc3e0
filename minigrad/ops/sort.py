"""Order: sort, argsort and topk. NumPy does the sorting; gradients go back through
`take_along_axis`."""

from __future__ import annotations

import numpy as np

from minigrad import dtypes
from minigrad.ops.creation import as_tensor, tensor
from minigrad.ops.indexing import take_along_axis
from minigrad.tensor import Tensor, TensorLike

__all__ = ["argsort", "sort", "topk"]


def argsort(x: TensorLike, axis: int = -1, descending: bool = False) -> Tensor:
    """The order (int64) that sorts x along `axis`; equal elements keep theirs, NaN comes last."""
    x = as_tensor(x)
    values = x._array
    if values.dtype in (dtypes.float16, dtypes.bfloat16):
        values = values.astype(np.float32)
    if descending:
        flipped = np.flip(values, axis)
        order = np.flip(np.argsort(flipped, axis=axis, kind="stable"), axis)
        order = values.shape[axis] - 1 - order
    else:
        order = np.argsort(values, axis=axis, kind="stable")
    return tensor(order.astype(np.int64))


def sort(x: TensorLike, axis: int = -1, descending: bool = False) -> Tensor:
    """x in order along `axis`."""
    x = as_tensor(x)
    return take_along_axis(x, argsort(x, axis, descending), axis)


def topk(x: TensorLike, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The k greatest elements along `axis`, greatest first, and their indices (int64)."""
    x = as_tensor(x)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"topk: k={k} is out of range for axis {axis} of length {x.shape[axis]}")
    order = argsort(x, axis, descending=True)
    index = order[(slice(None),) * (axis % x.ndim) + (slice(0, k),)]
    return take_along_axis(x, index, axis), index
