"""Movement: the same elements in another shape or order. Views where the strides allow it.

Views are NumPy's (no kernel runs); what must copy goes through the kernels `copy` and `fill`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from minigrad import dtypes
from minigrad.arguments import (
    Axis,
    Shape,
    checked_shape,
    integer,
    new_shape,
    normalize_axes,
    normalize_axis,
    shown,
)
from minigrad.autograd import Function, Node, is_grad_enabled
from minigrad.dispatch import empty, launch
from minigrad.ops.creation import (
    as_tensor,
    cast,
    contiguous,
    copied,
    fill_value,
    has_unit_columns,
    zeros,
)
from minigrad.ops.operands import unbroadcast
from minigrad.ops.select import where
from minigrad.tensor import Tensor, TensorLike

__all__ = [
    "broadcast_to",
    "concat",
    "expand",
    "expand_dims",
    "flip",
    "pad",
    "permute",
    "repeat",
    "reshape",
    "roll",
    "split",
    "squeeze",
    "stack",
    "swapaxes",
    "transpose",
    "tril",
    "triu",
]


class Reshape(Function):
    view = True

    @staticmethod
    def forward(ctx: Node, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        ctx.shape = x.shape
        return x.reshape(shape)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return reshape(g, ctx.shape)


class Permute(Function):
    view = True

    @staticmethod
    def forward(ctx: Node, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        ctx.axes = axes
        return x.transpose(axes)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        inverse = tuple(ctx.axes.index(d) for d in range(len(ctx.axes)))
        return permute(g, inverse)


class Expand(Function):
    view = True

    @staticmethod
    def forward(ctx: Node, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        ctx.shape = x.shape
        return np.broadcast_to(x, shape)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return unbroadcast(g, ctx.shape)


class Flip(Function):
    view = True

    @staticmethod
    def forward(ctx: Node, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        ctx.axes = axes
        return np.flip(x, axes)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return flip(g, ctx.axes)


class Concat(Function):
    @staticmethod
    def forward(ctx: Node, *arrays: np.ndarray, axis: int) -> np.ndarray:
        ctx.axis = axis
        ctx.lengths = [a.shape[axis] for a in arrays]
        shape = list(arrays[0].shape)
        shape[axis] = sum(ctx.lengths)
        out = empty(tuple(shape), arrays[0].dtype)
        start = 0
        for a in arrays:
            stop = start + a.shape[axis]
            launch("copy", a, out[(slice(None),) * axis + (slice(start, stop),)])
            start = stop
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        parts = Split.apply(g, lengths=ctx.lengths, axis=ctx.axis)
        return tuple(p if n else None for p, n in zip(parts, ctx.needs_input_grad, strict=True))


class Split(Function):
    """Consecutive parts of x along an axis: views, whose gradients are gathered in one array."""

    view = True

    @staticmethod
    def forward(ctx: Node, x: np.ndarray, lengths: list[int], axis: int) -> tuple[np.ndarray, ...]:
        ctx.axis, ctx.shape, ctx.dtype = axis, x.shape, x.dtype
        ctx.parts = []
        start = 0
        for n in lengths:
            ctx.parts.append((slice(None),) * axis + (slice(start, start + n),))
            start += n
        return tuple(x[part] for part in ctx.parts)

    @staticmethod
    def backward(ctx: Node, *grads: Tensor | None) -> Tensor:
        if is_grad_enabled():
            listed = [
                zeros(_part_shape(ctx.shape, part), ctx.dtype) if g is None else g
                for g, part in zip(grads, ctx.parts, strict=True)
            ]
            return concat(listed, ctx.axis)
        out = empty(ctx.shape, ctx.dtype)
        for g, part in zip(grads, ctx.parts, strict=True):
            if g is None:
                launch("fill", out[part], 0.0)
            else:
                launch("copy", g._array, out[part])
        return Tensor._wrap(out)


def _part_shape(shape: tuple[int, ...], part: tuple[slice, ...]) -> tuple[int, ...]:
    cut = part[-1]
    return (*shape[: len(part) - 1], cut.stop - cut.start, *shape[len(part) :])


class Pad(Function):
    @staticmethod
    def forward(
        ctx: Node, x: np.ndarray, widths: tuple[tuple[int, int], ...], value: float
    ) -> np.ndarray:
        inside = tuple(slice(b, b + n) for (b, _), n in zip(widths, x.shape, strict=True))
        ctx.inside = inside
        shape = tuple(b + n + a for (b, a), n in zip(widths, x.shape, strict=True))
        out = empty(shape, x.dtype)
        launch("fill", out, value)
        launch("copy", x, out[inside])
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return g[ctx.inside]


def reshape(x: TensorLike, shape: Shape) -> Tensor:
    """x in another shape with as many elements; one dimension may be -1. A view where possible."""
    x = as_tensor(x)
    if shape.__class__ is tuple and x.shape == shape:
        return x
    wanted = checked_shape("reshape", shape)
    if x.shape == wanted:
        return x
    if wanted.count(-1) == 1:
        rest = math.prod(n for n in wanted if n != -1)
        if rest == 0 or x.size % rest:
            raise ValueError(f"reshape: {x.size} elements of shape {x.shape} do not fit {wanted}")
        wanted = tuple(x.size // rest if n == -1 else n for n in wanted)
    if math.prod(wanted) != x.size or any(n < 0 for n in wanted):
        raise ValueError(f"reshape: {x.size} elements of shape {x.shape} do not fit {wanted}")
    if not x._array.flags.c_contiguous and not _viewable(x._array, wanted):
        x = contiguous(x)
    return Reshape.apply(x, shape=wanted)


def _viewable(array: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether strides can express `shape` (as many elements) over the array's memory: axes that
    are not adjacent in memory must not meet in a new axis."""
    if array.size == 0:
        return True
    runs: list[int] = []  # lengths of what lies in one stride, from the first axis
    previous = 0
    for n, stride in zip(array.shape, array.strides, strict=True):
        if n == 1:
            continue
        if runs and previous == n * stride:
            runs[-1] *= n
        else:
            runs.append(n)
        previous = stride
    wanted = iter(n for n in shape if n != 1)
    for run in runs:
        covered = 1
        while covered < run:
            covered *= next(wanted)
        if covered != run:
            return False
    return True


def as_rows(x: Tensor) -> Tensor:
    """x as (n_rows, n_cols) with unit column stride, as row kernels read it; a view if possible."""
    if not has_unit_columns(x._array):
        x = contiguous(x)
    return reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def permute(x: TensorLike, axes: Sequence[int]) -> Tensor:
    """x with its axes in the given order; a view."""
    return _permute("permute", as_tensor(x), axes)


def _permute(op: str, x: Tensor, axes: Sequence[int]) -> Tensor:
    given = checked_shape(op, axes, "the axes' order")
    order = tuple([normalize_axis(op, a, x.ndim) for a in given])
    if sorted(order) != list(range(x.ndim)):
        raise ValueError(f"{op}: {given} is no order of {x.ndim} axes")
    return Permute.apply(x, axes=order)


def transpose(x: TensorLike, axes: Sequence[int] | None = None) -> Tensor:
    """As NumPy's: axes reversed, or in the order given; a view."""
    x = as_tensor(x)
    order = range(x.ndim)[::-1] if axes is None else axes
    return _permute("transpose", x, order)


def swapaxes(x: TensorLike, axis1: int, axis2: int) -> Tensor:
    """x with two axes exchanged; a view."""
    x = as_tensor(x)
    order = list(range(x.ndim))
    a, b = normalize_axis("swapaxes", axis1, x.ndim), normalize_axis("swapaxes", axis2, x.ndim)
    order[a], order[b] = b, a
    return Permute.apply(x, axes=tuple(order))


def expand(x: TensorLike, shape: Shape) -> Tensor:
    """x broadcast to `shape`; -1 keeps a length. A view with stride 0."""
    return _expand("expand", as_tensor(x), shape)


def _expand(op: str, x: Tensor, shape: Shape) -> Tensor:
    wanted = list(checked_shape(op, shape))
    for i, n in enumerate(reversed(x.shape)):
        if i < len(wanted) and wanted[-1 - i] == -1:
            wanted[-1 - i] = n
    target = tuple(wanted)
    if x.shape == target:
        return x
    try:
        fits = np.broadcast_shapes(x.shape, target) == target
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{op}: shape {x.shape} does not broadcast to {target}")
    return Expand.apply(x, shape=target)


def broadcast_to(x: TensorLike, shape: Shape) -> Tensor:
    """The same as `expand`, by NumPy's name."""
    return _expand("broadcast_to", as_tensor(x), shape)


def squeeze(x: TensorLike, axis: Axis = None) -> Tensor:
    """x without axes of length 1: all of them, or those named."""
    x = as_tensor(x)
    if axis is None:
        return reshape(x, tuple(n for n in x.shape if n != 1))
    axes = normalize_axes("squeeze", axis, x.ndim)
    for a in axes:
        if x.shape[a] != 1:
            raise ValueError(f"squeeze: axis {a} of shape {x.shape} has length {x.shape[a]}, not 1")
    return reshape(x, tuple(n for d, n in enumerate(x.shape) if d not in axes))


def expand_dims(x: TensorLike, axis: int) -> Tensor:
    """x with a new axis of length 1 at `axis`."""
    x = as_tensor(x)
    at = normalize_axis("expand_dims", axis, x.ndim + 1)
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


def _same_kind(op: str, tensors: Sequence[TensorLike]) -> list[Tensor]:
    try:
        given = list(tensors)
    except TypeError:
        raise TypeError(f"{op}: expected a sequence of tensors, got {shown(tensors)}") from None
    listed = [as_tensor(t) for t in given]
    if not listed:
        raise ValueError(f"{op}: expected at least one tensor")
    dtype = listed[0].dtype
    for t in listed[1:]:
        dtype = dtypes.promote(dtype, t.dtype)
    return [cast(t, dtype) for t in listed]


def concat(tensors: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """The tensors one after another along `axis`; their other lengths must agree."""
    listed = _same_kind("concat", tensors)
    at = normalize_axis("concat", axis, listed[0].ndim)
    for t in listed[1:]:
        same = t.ndim == listed[0].ndim and all(
            d == at or n == listed[0].shape[d] for d, n in enumerate(t.shape)
        )
        if not same:
            raise ValueError(
                f"concat: shapes {listed[0].shape} and {t.shape} differ outside axis {at}"
            )
    return Concat.apply(*listed, axis=at)


def stack(tensors: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Tensors of one shape along a new axis."""
    listed = _same_kind("stack", tensors)
    for t in listed[1:]:
        if t.shape != listed[0].shape:
            raise ValueError(f"stack: shapes {listed[0].shape} and {t.shape} differ")
    at = normalize_axis("stack", axis, listed[0].ndim + 1)
    return concat([expand_dims(t, at) for t in listed], at)


def split(x: TensorLike, sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """As NumPy's: x cut along `axis` into that many equal parts, or at the given positions; views.

    >>> [part.tolist() for part in split([1, 2, 3, 4, 5], [1, 4])]
    [[1], [2, 3, 4], [5]]
    """
    x = as_tensor(x)
    at = normalize_axis("split", axis, x.ndim)
    length = x.shape[at]
    if isinstance(sections, (int, np.integer)):
        n_parts = integer("split", "sections", sections)
        if n_parts < 1 or length % n_parts:
            raise ValueError(f"split: axis {at} of length {length} has no {n_parts} equal parts")
        lengths = [length // n_parts] * n_parts
    else:
        edges = [0, *checked_shape("split", sections, "sections"), length]
        lengths = [b - a for a, b in pairwise(edges)]
        if min(lengths) < 0:
            raise ValueError(
                f"split: positions {edges[1:-1]} must rise from 0 to {length} (axis {at})"
            )
    return list(Split.apply(x, lengths=lengths, axis=at))


def pad(x: TensorLike, widths: Any, value: float = 0.0) -> Tensor:
    """x with `value` around it; `widths` is (before, after) for every axis, or one pair for all."""
    x = as_tensor(x)
    try:
        given = np.asarray(widths)
        pairs = np.broadcast_to(given, (x.ndim, 2))
    except ValueError:
        given = np.empty(0)
    if given.dtype.kind not in "iu":
        raise TypeError(
            f"pad: widths must be integers, (before, after) for each of {x.ndim} axes or one pair "
            f"for all, got {shown(widths)}"
        )
    if (pairs < 0).any():
        raise ValueError(f"pad: widths must not be negative, got {widths}; slice to cut")
    filled = float(fill_value("pad", value, x.dtype))
    if x.ndim == 0:
        return x
    around = tuple((int(b), int(a)) for b, a in pairs)
    new_shape("pad", tuple(b + n + a for (b, a), n in zip(around, x.shape, strict=True)))
    return Pad.apply(x, widths=around, value=filled)


def flip(x: TensorLike, axis: Axis = None) -> Tensor:
    """x in reverse order along the axes (all for None); a view."""
    x = as_tensor(x)
    return Flip.apply(x, axes=normalize_axes("flip", axis, x.ndim))


def roll(x: TensorLike, shift: int, axis: int) -> Tensor:
    """x with elements moved by `shift` along `axis`, those pushed out entering at the other end."""
    x = as_tensor(x)
    at = normalize_axis("roll", axis, x.ndim)
    n = x.shape[at]
    k = integer("roll", "shift", shift) % max(n, 1)
    if k == 0:
        return x
    head, tail = split(x, [n - k], at)
    return concat([tail, head], at)


def repeat(x: TensorLike, repeats: int, axis: int) -> Tensor:
    """Every element `repeats` times in a row along `axis` (NumPy's repeat)."""
    x = as_tensor(x)
    at = normalize_axis("repeat", axis, x.ndim)
    n = integer("repeat", "repeats", repeats, 0)
    shape = new_shape("repeat", (*x.shape[:at], x.shape[at] * n, *x.shape[at + 1 :]))
    wide = expand(expand_dims(x, at + 1), (*x.shape[: at + 1], n, *x.shape[at + 1 :]))
    return reshape(wide, shape)


def _triangle(op: str, x: TensorLike, k: int, keep: Any) -> Tensor:
    x = as_tensor(x)
    if x.ndim < 2:
        raise ValueError(f"{op}: expected at least two dimensions, got shape {x.shape}")
    rows, columns = x.shape[-2:]
    diagonal = min(max(integer(op, "k", k), -rows), columns)  # further out is the same
    mask = keep(np.ones((rows, columns), dtype=np.bool_), diagonal)
    mask = Tensor._placed(copied(mask), x.device)
    return where(mask, x, 0)


def tril(x: TensorLike, k: int = 0) -> Tensor:
    """The lower triangles of the last two axes, up to diagonal k; zeros above."""
    return _triangle("tril", x, k, np.tril)


def triu(x: TensorLike, k: int = 0) -> Tensor:
    """The upper triangles of the last two axes, from diagonal k; zeros below."""
    return _triangle("triu", x, k, np.triu)
