"""Indexing of every NumPy kind, with gradients; and scatter-add, its transpose.

Reading is NumPy's own indexing (a view for slices, a copy for arrays). The gradient of a slice is
written into zeros. An array of integers takes rows, as an embedding does; every other index goes
through the positions that it stands for, found by indexing those along each axis with it, and the
kernels `gather` and `scatter_add`, which adds repeated positions in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minigrad import dtypes, recording
from minigrad.arguments import integer, normalize_axis, shown
from minigrad.autograd import Function, Node
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch, launch_numpy
from minigrad.ops.creation import as_tensor, cast, contiguous, copied, copy_fitting
from minigrad.ops.embedding import Embedding
from minigrad.tensor import Tensor, TensorLike

__all__ = ["get_item", "scatter_add", "set_item", "take_along_axis"]


def _scatter_add_ref(positions: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    total = out.astype(np.float64) if out.dtype in dtypes.FLOATING else out.copy()
    np.add.at(total, positions, values.astype(total.dtype))
    out[...] = total.astype(out.dtype)


def _gather_ref(x: np.ndarray, positions: np.ndarray, out: np.ndarray) -> None:
    out[...] = x[positions]


def _positions_along_ref(indices: np.ndarray, out: np.ndarray, n: int) -> None:
    if indices.size and not (-n <= indices.min() and indices.max() < n):
        raise IndexError(f"positions_along: an index is outside [-{n}, {n})")
    outer, _, inner = indices.shape
    wanted = np.where(indices < 0, indices + n, indices)
    out[...] = (np.arange(outer)[:, None, None] * n + wanted) * inner + np.arange(inner)


REFERENCE = {
    "gather": _gather_ref,
    "positions_along": _positions_along_ref,
    "scatter_add": _scatter_add_ref,
}
COST = {
    "gather": lambda x, positions, out: Cost(nbytes(positions, out, out), 0),
    "positions_along": lambda indices, out, n: Cost(nbytes(indices, out), 0),
    "scatter_add": lambda positions, values, out: Cost(
        nbytes(positions, values) * 2 + nbytes(values), values.size
    ),
    "numpy:positions": lambda shape: Cost(0, 0),
    "numpy:set_item": lambda x, index, value: Cost(nbytes(value) * 2, 0),
}


def _is_basic(index: tuple[Any, ...]) -> bool:
    return all(i is None or i is Ellipsis or isinstance(i, (int, np.integer, slice)) for i in index)


def _plain(index: Any) -> tuple[Any, ...]:
    """The index as a tuple of what NumPy takes: tensors become arrays."""
    parts = index if isinstance(index, tuple) else (index,)
    out: list[Any] = []
    for part in parts:
        if isinstance(part, Tensor):
            if dtypes.is_floating(part.dtype):
                raise TypeError(
                    f"index: a {part.dtype.name} tensor cannot index; use integers or bool"
                )
            out.append(part._array)
        elif isinstance(part, slice):  # its bounds may be tensors, which may change
            bounds = (part.start, part.stop, part.step)
            out.append(slice(*map(_bound, bounds)))
        else:
            out.append(_array_of(part) if isinstance(part, list) else part)
    return tuple(out)


def _bound(given: Any) -> int | None:
    return None if given is None else integer("index", "a bound of a slice", given)


def _array_of(part: list[Any]) -> np.ndarray:
    try:
        return np.asarray(part) if part else np.empty(0, np.int64)
    except ValueError:
        raise IndexError(f"index: {shown(part)} is not a regular array of integers") from None


def _look_up(
    array: np.ndarray, index: tuple[Any, ...], shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """array[index]; `shape` is the tensor's, if the array is another."""
    try:
        found = array[index]
    except (IndexError, ValueError) as error:
        raise type(error)(f"index: {error} (shape {shape or array.shape})") from None
    return found if isinstance(found, np.ndarray) else np.asarray(found, dtype=array.dtype)


class GetView(Function):
    view = True

    @staticmethod
    def forward(ctx: Node, x: np.ndarray, index: tuple[Any, ...]) -> np.ndarray:
        ctx.shape, ctx.index = x.shape, index
        return _look_up(x, (*index, Ellipsis) if Ellipsis not in index else index)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return PutView.apply(g, shape=ctx.shape, index=ctx.index)


class PutView(Function):
    """Zeros of a shape with g in a slice of them."""

    @staticmethod
    def forward(
        ctx: Node, g: np.ndarray, shape: tuple[int, ...], index: tuple[Any, ...]
    ) -> np.ndarray:
        ctx.index = index
        out = empty(shape, g.dtype)
        launch("fill", out, 0.0)
        launch("copy", g, out[(*index, Ellipsis)] if Ellipsis not in index else out[index])
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return GetView.apply(g, index=ctx.index)


class Gather(Function):
    """x's elements at flat positions (any shape)."""

    @staticmethod
    def forward(ctx: Node, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        ctx.shape, ctx.positions = x.shape, positions
        out = empty(positions.shape, x.dtype)
        source = x if x.flags.c_contiguous else copied(x)
        launch("gather", source.reshape(-1), positions.reshape(-1), out.reshape(-1))
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return Scatter.apply(g, shape=ctx.shape, positions=ctx.positions)


class Scatter(Function):
    """Zeros of a shape with g added at flat positions."""

    @staticmethod
    def forward(
        ctx: Node, g: np.ndarray, shape: tuple[int, ...], positions: np.ndarray
    ) -> np.ndarray:
        ctx.positions = positions
        out = empty(shape, g.dtype)
        launch("fill", out, 0.0)
        values = g if g.flags.c_contiguous else copied(g)
        launch("scatter_add", positions.reshape(-1), values.reshape(-1), out.reshape(-1))
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return Gather.apply(g, positions=ctx.positions)


def _refuse_recording() -> None:
    recording.refuse(
        "an index of arrays or tensors",
        "use mg.embedding for the rows of a table, mg.where for a choice, or slices",
    )


def _positions(shape: tuple[int, ...], pick: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Flat positions in an array of this shape: the sum over the axes of pick(axis, how far apart
    the elements along it lie)."""
    _refuse_recording()
    found: list[np.ndarray] = []

    def run(shape: tuple[int, ...]) -> None:
        steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        total = sum(pick(axis, step) for axis, step in enumerate(steps))
        found.append(np.ascontiguousarray(total, dtype=np.int64))

    launch_numpy("positions", run, shape)
    return found[0]


def _picked(x: Tensor, index: tuple[Any, ...]) -> np.ndarray:
    """The flat positions of x[index]. An array of all positions would be as large as x; along one
    axis they are a view that repeats."""

    def pick(axis: int, step: int) -> np.ndarray:
        along = (np.arange(x.shape[axis]) * step).reshape(-1, *(1,) * (x.ndim - axis - 1))
        return _look_up(np.broadcast_to(along, x.shape), index)

    return _positions(x.shape, pick)


def _rows(x: Tensor, wanted: np.ndarray) -> Tensor:
    """x[wanted] for integers: whole rows, as of a table."""
    rows = _positions(x.shape[:1], lambda *_: _look_up(np.arange(len(x)), (wanted,), x.shape))
    table = contiguous(x).reshape(len(x), -1)
    return Embedding.apply(table, as_tensor(rows)).reshape(*wanted.shape, *x.shape[1:])


def get_item(x: TensorLike, index: Any) -> Tensor:
    """x[index] for every kind of NumPy index; a view for slices and integers."""
    x, plain = as_tensor(x), _plain(index)
    if _is_basic(plain):
        return GetView.apply(x, index=plain)
    first, *others = plain
    integers = isinstance(first, np.ndarray) and first.dtype.kind in "iu"
    if integers and not others and x.ndim > 1 and x.size and first.size:
        return _rows(x, first)
    return Gather.apply(x, positions=_picked(x, plain))


def set_item(x: Tensor, index: Any, value: TensorLike) -> None:
    """x[index] = value in place; raises for tensors that require a gradient outside no_grad."""
    if not isinstance(x, Tensor):
        raise TypeError(f"set_item: expected a tensor to write into, got {shown(x)}")
    plain = _plain(index)
    kind = _put_view if _is_basic(plain) else _put_elements
    x._write("x[...] =", as_tensor(value), partial(kind, plain))


def _put_view(index: tuple[Any, ...], array: np.ndarray, value: np.ndarray) -> None:
    copy_fitting(
        "x[...] =", _look_up(array, (*index, Ellipsis) if Ellipsis not in index else index), value
    )


def _put_elements(index: tuple[Any, ...], array: np.ndarray, value: np.ndarray) -> None:
    try:
        launch_numpy("set_item", np.ndarray.__setitem__, array, index, value)
    except IndexError as error:
        raise IndexError(f"index: {error} (shape {array.shape})") from None
    except ValueError as error:
        raise ValueError(f"x[...] =: a value does not fit: {error}") from None


def _checked_indices(op: str, x: Tensor, indices: TensorLike, axis: int) -> tuple[np.ndarray, int]:
    wanted = as_tensor(indices)
    if wanted.dtype not in dtypes.INTEGRAL:
        raise TypeError(f"{op}: indices must be integers, got {wanted.dtype.name}")
    if wanted.ndim != x.ndim:
        raise ValueError(f"{op}: indices of shape {wanted.shape} need the rank of {x.shape}")
    return wanted._array, normalize_axis(op, axis, x.ndim)


def _along(op: str, x: Tensor, indices: np.ndarray, axis: int) -> np.ndarray:
    """The flat positions in x of indices along an axis, and of every place along the others."""
    _refuse_recording()
    n, others = x.shape[axis], (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    try:
        shape = np.broadcast_shapes(indices.shape, others)
        fits = shape[:axis] + shape[axis + 1 :] == others[:axis] + others[axis + 1 :]
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{op}: indices {indices.shape} do not broadcast to {x.shape} outside axis {axis}"
        )
    middle = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    wanted = np.ascontiguousarray(np.broadcast_to(indices, shape), dtype=np.int64)
    out = empty(shape, dtypes.int64)
    try:
        launch("positions_along", wanted.reshape(middle), out.reshape(middle), n)
    except IndexError:
        bad = indices[(indices < -n) | (indices >= n)][0]
        raise IndexError(
            f"{op}: index {bad} is out of range for axis {axis} of length {n}"
        ) from None
    return out


def take_along_axis(x: TensorLike, indices: TensorLike, axis: int) -> Tensor:
    """out[i][j][k] = x[i][indices[i][j][k]][k] for axis 1, and so on (NumPy's take_along_axis)."""
    x, op = as_tensor(x), "take_along_axis"
    return gather_along(op, x, *_checked_indices(op, x, indices, axis))


def gather_along(op: str, x: Tensor, indices: np.ndarray, axis: int) -> Tensor:
    """`take_along_axis`, for another operation."""
    return Gather.apply(x, positions=_along(op, x, indices, axis))


class ScatterAdd(Function):
    @staticmethod
    def forward(ctx: Node, x: np.ndarray, values: np.ndarray, positions: np.ndarray) -> np.ndarray:
        ctx.positions = positions
        out = copied(x)
        source = values if values.flags.c_contiguous else copied(values)
        launch("scatter_add", positions.reshape(-1), source.reshape(-1), out.reshape(-1))
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor, Tensor]:
        return g, Gather.apply(g, positions=ctx.positions)


def scatter_add(x: TensorLike, indices: TensorLike, values: TensorLike, axis: int) -> Tensor:
    """x with values[i][j][k] added at x[i][indices[i][j][k]][k] for axis 1, and so on.

    Repeated positions add up, in order. `indices` and `values` have one shape, which is x's but for
    its length along `axis`.
    """
    x = as_tensor(x)
    added = cast(as_tensor(values), x.dtype)
    array, axis = _checked_indices("scatter_add", x, indices, axis)
    if added.shape != array.shape:
        raise ValueError(f"scatter_add: values {added.shape} and indices {array.shape} differ")
    if array.shape[:axis] + array.shape[axis + 1 :] != x.shape[:axis] + x.shape[axis + 1 :]:
        raise ValueError(
            f"scatter_add: indices {array.shape} and x {x.shape} differ outside axis {axis}"
        )
    return ScatterAdd.apply(x, added, positions=_along("scatter_add", x, array, axis))
