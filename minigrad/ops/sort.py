"""Order: sort, argsort and topk. NumPy does the sorting; gradients go back to the positions that
values came from."""

from __future__ import annotations

import numpy as np

from minigrad import dtypes
from minigrad.arguments import integer, normalize_axis
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch_numpy
from minigrad.ops.creation import as_tensor
from minigrad.ops.indexing import gather_along
from minigrad.tensor import Tensor, TensorLike

__all__ = ["argsort", "sort", "topk"]


COST = {
    "numpy:argsort": lambda x, order, axis, descending: Cost(nbytes(x, order), 0),
    "numpy:topk": lambda x, order, axis: Cost(nbytes(x, order), 0),
}


def _keys(x: np.ndarray, axis: int, descending: bool) -> np.ndarray | None:
    """Numbers (uint64), `axis` last, in the order of x: the value, and below it the position.

    No two are equal, so any sort of them keeps equal elements in order: NumPy's by vectors is two
    to three times as fast as its stable argsort, and partitions, too. None where values take more
    than 32 bits.
    """
    x = np.moveaxis(x, axis, -1)
    if x.dtype == dtypes.float64 or x.size == 0:
        return None
    if dtypes.is_floating(x.dtype):
        plain = x.astype(np.float32) + np.float32(0)  # -0 equals 0
        bits = plain.view(np.uint32)
        value = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
        value = ~value if descending else value
        value[np.isnan(plain)] = 0xFFFFFFFF
    else:
        low, high = int(x.min()), int(x.max())
        if high - low >= 2**32:
            return None
        wide = x.astype(np.int64)
        value = high - wide if descending else wide - low
    keys = value.astype(np.uint64, order="C")
    keys <<= np.uint64(32)
    keys |= np.arange(x.shape[-1], dtype=np.uint64)
    return keys


def _positions(keys: np.ndarray, order: np.ndarray, axis: int) -> None:
    order[...] = np.moveaxis(keys & np.uint64(0xFFFFFFFF), -1, axis)


def _stable(x: np.ndarray, axis: int, descending: bool) -> np.ndarray:
    if descending:  # a NaN stays one; the least integer has no negative, so bits are inverted
        x = np.negative(x) if dtypes.is_floating(x.dtype) else np.invert(x)
    return np.argsort(x, axis=axis, kind="stable")


def _argsort(x: np.ndarray, order: np.ndarray, axis: int, descending: bool) -> None:
    keys = _keys(x, axis, descending)
    if keys is None:
        order[...] = _stable(x, axis, descending)
    else:
        keys.sort(axis=-1)
        _positions(keys, order, axis)


def _topk(x: np.ndarray, order: np.ndarray, axis: int) -> None:
    k = order.shape[axis]
    keys = _keys(x, axis, True) if k else None
    if keys is None:
        order[...] = _stable(x, axis, True)[(slice(None),) * axis + (slice(0, k),)]
    else:
        keys.partition(k - 1, axis=-1)
        _positions(np.sort(keys[..., :k], axis=-1), order, axis)


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
    return gather_along("sort", x, argsort(x, axis, descending)._array, axis)


def topk(x: TensorLike, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The k greatest elements along `axis`, greatest first (NaN after all others), and their
    indices (int64)."""
    x = as_tensor(x)
    axis = normalize_axis("topk", axis, x.ndim)
    k = integer("topk", "k", k)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"topk: k={k} is out of range for axis {axis} of length {x.shape[axis]}")
    order = empty((*x.shape[:axis], k, *x.shape[axis + 1 :]), dtypes.int64)
    launch_numpy("topk", _topk, x._array, order, axis)
    return gather_along("topk", x, order, axis), Tensor._placed(order, x.device)
