"""Comparisons, and what chooses between elements: where, maximum, minimum, clip."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad import dispatch, dtypes
from minigrad.arguments import number
from minigrad.autograd import Function, Node
from minigrad.dispatch import empty, launch, launch_made
from minigrad.ops.creation import as_tensor, cast
from minigrad.ops.operands import (
    arithmetic,
    binary_reference,
    elementwise_cost,
    operands,
    unbroadcast,
    wide,
)
from minigrad.shapes import broadcast_shape
from minigrad.storage import device_away
from minigrad.tensor import Tensor, TensorLike

__all__ = [
    "clip",
    "eq",
    "ge",
    "gt",
    "le",
    "logical_and",
    "logical_not",
    "logical_or",
    "lt",
    "maximum",
    "minimum",
    "ne",
    "where",
]

_COMPARISONS: dict[str, Callable[..., Any]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
}


def _compare(kernel: str, a: TensorLike, b: TensorLike) -> Tensor:
    left, right = operands(kernel, a, b)
    device = device_away(kernel, left, right)
    if device is not None:
        with dispatch.device(device):
            return _compare(kernel, left, right)
    out = empty(broadcast_shape(kernel, left.shape, right.shape), dtypes.bool_)
    launch(kernel, left._array, right._array, out)
    return Tensor._wrap(out)


def eq(a: TensorLike, b: TensorLike) -> Tensor:
    """a == b (bool)."""
    return _compare("eq", a, b)


def ne(a: TensorLike, b: TensorLike) -> Tensor:
    """a != b (bool)."""
    return _compare("ne", a, b)


def lt(a: TensorLike, b: TensorLike) -> Tensor:
    """a < b (bool)."""
    return _compare("lt", a, b)


def le(a: TensorLike, b: TensorLike) -> Tensor:
    """a <= b (bool)."""
    return _compare("le", a, b)


def gt(a: TensorLike, b: TensorLike) -> Tensor:
    """a > b (bool)."""
    return _compare("gt", a, b)


def ge(a: TensorLike, b: TensorLike) -> Tensor:
    """a >= b (bool)."""
    return _compare("ge", a, b)


def logical_and(a: TensorLike, b: TensorLike) -> Tensor:
    """Both true (bool); a number is true unless 0."""
    return _compare("logical_and", a, b)


def logical_or(a: TensorLike, b: TensorLike) -> Tensor:
    """At least one true (bool); a number is true unless 0."""
    return _compare("logical_or", a, b)


def logical_not(x: TensorLike) -> Tensor:
    """Not true (bool)."""
    return _compare("eq", x, 0 if as_tensor(x).dtype != dtypes.bool_ else False)


# ---- selection ----


class Where(Function):
    @staticmethod
    def forward(ctx: Node, condition: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.save_inputs(0)
        ctx.shapes = a.shape, b.shape
        return launch_made("where", condition, a, b, None)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        (condition,) = ctx.saved
        _, need_a, need_b = ctx.needs_input_grad
        a, b = ctx.shapes
        return (
            None,
            unbroadcast(where(condition, g, 0.0), a) if need_a else None,
            unbroadcast(where(condition, 0.0, g), b) if need_b else None,
        )


def where(condition: TensorLike, a: TensorLike, b: TensorLike) -> Tensor:
    """a where the condition (bool) holds, b elsewhere; all broadcast."""
    condition = as_tensor(condition)
    if condition.dtype != dtypes.bool_:
        raise TypeError(
            f"where: the condition must be bool, got {condition.dtype.name}; compare it"
        )
    return Where.apply(condition, *operands("where", a, b))


class Extreme(Function):
    """maximum and minimum; equal elements share the gradient."""

    @staticmethod
    def forward(ctx: Node, a: np.ndarray, b: np.ndarray, kernel: str) -> np.ndarray:
        ctx.kernel = kernel
        ctx.save_inputs(0, 1)
        return launch_made(kernel, a, b, None)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        need_a, need_b = ctx.needs_input_grad
        a, b = ctx.saved
        wins = gt(a, b) if ctx.kernel == "maximum" else lt(a, b)
        share = cast(wins, g.dtype) + cast(eq(a, b), g.dtype) * 0.5
        return (
            unbroadcast(g * share, a.shape) if need_a else None,
            unbroadcast(g * (1 - share), b.shape) if need_b else None,
        )


def maximum(a: TensorLike, b: TensorLike) -> Tensor:
    """The larger of a and b elementwise; NaN wins."""
    return Extreme.apply(*arithmetic("maximum", a, b), kernel="maximum")


def minimum(a: TensorLike, b: TensorLike) -> Tensor:
    """The smaller of a and b elementwise; NaN wins."""
    return Extreme.apply(*arithmetic("minimum", a, b), kernel="minimum")


class Clip(Function):
    @staticmethod
    def forward(ctx: Node, x: np.ndarray, low: float, high: float) -> np.ndarray:
        ctx.bounds = low, high
        ctx.save_inputs(0)
        return launch_made("clip", x, None, low, high)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        (x,) = ctx.saved
        low, high = ctx.bounds
        return where(logical_and(ge(x, low), le(x, high)), g, 0.0)


def clip(x: TensorLike, low: float | None = None, high: float | None = None) -> Tensor:
    """x limited to [low, high]; a bound of None is open. The gradient passes inside, bounds
    included."""
    lowest = -math.inf if low is None else float(number("clip", "low", low))
    highest = math.inf if high is None else float(number("clip", "high", high))
    if lowest > highest:
        raise ValueError(f"clip: low {low} is above high {high}")
    return Clip.apply(as_tensor(x), low=lowest, high=highest)


# ---- references and costs ----


def _where_ref(condition: np.ndarray, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    out[...] = np.where(condition, a, b)


def _clip_ref(x: np.ndarray, out: np.ndarray, low: float, high: float) -> None:
    out[...] = np.minimum(np.maximum(wide(x), low), high).astype(out.dtype)


REFERENCE: dict[str, Callable[..., None]] = {
    **{name: binary_reference(function) for name, function in _COMPARISONS.items()},
    "where": _where_ref,
    "maximum": binary_reference(np.maximum),
    "minimum": binary_reference(np.minimum),
    "clip": _clip_ref,
}
COST = dict.fromkeys(REFERENCE, elementwise_cost)
