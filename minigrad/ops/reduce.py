"""Reductions over any set of axes, and running sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad import dispatch, dtypes
from minigrad.arguments import Axis, normalize_axes, normalize_axis, number
from minigrad.autograd import Function, Node, grad, is_grad_enabled
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch
from minigrad.ops.creation import as_tensor, cast
from minigrad.ops.movement import concat, expand, expand_dims, flip, permute, reshape
from minigrad.ops.select import eq, ne, where
from minigrad.storage import device_away
from minigrad.tensor import Tensor, TensorLike

__all__ = [
    "all",
    "any",
    "argmax",
    "argmin",
    "cumsum",
    "max",
    "mean",
    "min",
    "norm",
    "prod",
    "std",
    "sum",
    "var",
]

# ---- reference ----


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype in dtypes.FLOATING else x


def _reduce_ref(function: Callable[..., Any]) -> Callable[..., None]:
    def run(x: np.ndarray, out: np.ndarray) -> None:
        axes = tuple(d for d in range(x.ndim) if out.shape[d] == 1)
        with np.errstate(all="ignore"):
            out[...] = function(_wide(x), axis=axes, keepdims=True).astype(out.dtype)

    return run


def _argmax_ref(x: np.ndarray, out: np.ndarray, axis: int) -> None:
    out[...] = np.argmax(_wide(x), axis=axis)


def _argmin_ref(x: np.ndarray, out: np.ndarray, axis: int) -> None:
    out[...] = np.argmin(_wide(x), axis=axis)


def _cumsum_ref(x: np.ndarray, out: np.ndarray, axis: int) -> None:
    out[...] = np.cumsum(_wide(x), axis=axis).astype(out.dtype)


REFERENCE = {
    "sum": _reduce_ref(np.sum),
    "prod": _reduce_ref(np.prod),
    "max": _reduce_ref(np.max),
    "min": _reduce_ref(np.min),
    "argmax": _argmax_ref,
    "argmin": _argmin_ref,
    "cumsum": _cumsum_ref,
}
COST = dict.fromkeys(REFERENCE, lambda x, out, axis=0: Cost(nbytes(x, out), x.size))


# ---- axes ----


def _kept(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([1 if d in axes else n for d, n in enumerate(shape)])


def _left(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([n for d, n in enumerate(shape) if d not in axes])


def _finish(out: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    if keepdims:
        return out
    return reshape(out, _left(out.shape, axes))


# ---- differentiable ----


class Sum(Function):
    @staticmethod
    def forward(
        ctx: Node, x: np.ndarray, axes: tuple[int, ...], keepdims: bool, dtype: np.dtype
    ) -> np.ndarray:
        ctx.shape, ctx.kept, ctx.dtype = x.shape, _kept(x.shape, axes), x.dtype
        out = empty(ctx.kept, dtype)
        launch("sum", x, out)
        return out if keepdims else out.reshape(_left(x.shape, axes))

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return expand(reshape(cast(g, ctx.dtype), ctx.kept), ctx.shape)


class Prod(Function):
    @staticmethod
    def forward(ctx: Node, x: np.ndarray, axes: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        ctx.axes = axes
        ctx.save_inputs(0)
        out = empty(_kept(x.shape, axes), dtype)
        launch("prod", x, out)
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        # The product of the others: prod / x where x is not 0. With one zero in a group only its
        # own gradient is left, with two none.
        (x,) = ctx.saved
        zero = eq(x, 0)
        if is_grad_enabled() and any(zero).item():
            # Choosing by zeros has no right derivative at them; a tree of products has. (It starts
            # at an alias of x, so that x's hooks see only the whole.)
            alias = reshape(expand_dims(x, 0), x.shape)
            return grad(_product_tree(alias, ctx.axes), alias, g, create_graph=True)[0]
        others = prod(where(zero, 1.0, x), ctx.axes, keepdims=True)
        zeros = sum(cast(zero, dtypes.int64), ctx.axes, keepdims=True)
        no_zero = where(zero, 0.0, others / where(zero, 1.0, x))
        one_zero = where(zero, others, 0.0)
        return g * where(eq(zeros, 0), no_zero, where(eq(zeros, 1), one_zero, 0.0))


def _product_tree(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """prod of x over the axes, which are kept: halves times halves."""
    rest = [d for d in range(x.ndim) if d not in axes]
    flat = reshape(permute(x, [*rest, *axes]), (*[x.shape[d] for d in rest], -1))
    while (n := flat.shape[-1]) > 1:
        odd = [flat[..., n - 1 :]] if n % 2 else []
        flat = concat([flat[..., : n // 2] * flat[..., n // 2 : n - n % 2], *odd], -1)
    return reshape(flat, _kept(x.shape, axes))


class Extremum(Function):
    """max and min; equal extremes share the gradient."""

    @staticmethod
    def forward(ctx: Node, x: np.ndarray, axes: tuple[int, ...], kernel: str) -> np.ndarray:
        ctx.axes, ctx.kernel = axes, kernel
        ctx.save_inputs(0)
        ctx.save_outputs(0)
        out = empty(_kept(x.shape, axes), x.dtype)
        launch(kernel, x, out)
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        x, y = ctx.saved
        extreme = cast(eq(x.detach(), y.detach()), g.dtype)
        return g * (extreme / sum(extreme, ctx.axes, keepdims=True))


class CumSum(Function):
    @staticmethod
    def forward(ctx: Node, x: np.ndarray, axis: int, dtype: np.dtype) -> np.ndarray:
        ctx.axis = axis
        out = empty(x.shape, dtype)
        launch("cumsum", x, out, axis)
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return flip(cumsum(flip(g, ctx.axis), ctx.axis), ctx.axis)


# ---- public ----


def _sum_dtype(x: Tensor) -> np.dtype:
    return x.dtype if dtypes.is_floating(x.dtype) else dtypes.int64


def sum(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (all axes for None). Integers and bool sum to int64."""
    x = as_tensor(x)
    axes = normalize_axes("sum", axis, x.ndim)
    return Sum.apply(x, axes=axes, keepdims=keepdims, dtype=_sum_dtype(x))


def prod(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The product over `axis`. Integers and bool multiply to int64."""
    x = as_tensor(x)
    axes = normalize_axes("prod", axis, x.ndim)
    return _finish(Prod.apply(x, axes=axes, dtype=_sum_dtype(x)), axes, keepdims)


def _count(x: Tensor, axes: tuple[int, ...]) -> int:
    return math.prod(x.shape[d] for d in axes)


def _floating(x: TensorLike) -> Tensor:
    x = as_tensor(x)
    return x if dtypes.is_floating(x.dtype) else cast(x, dtypes.float32)


def _sum_of_floats(x: Tensor) -> np.dtype:
    """What sums inside of a mean or a norm are kept in: float16 would overflow at 65504."""
    return dtypes.promote(x.dtype, dtypes.float32)


def mean(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis`; NaN over nothing. Integers give float32."""
    x = _floating(x)
    axes = normalize_axes("mean", axis, x.ndim)
    n = _count(x, axes)
    total = Sum.apply(x, axes=axes, keepdims=keepdims, dtype=_sum_of_floats(x))
    return cast(total * (1 / n if n else math.nan), x.dtype)


def _centred(
    op: str, x: TensorLike, axis: Axis, correction: float
) -> tuple[Tensor, tuple[int, ...], float]:
    """The distances from the mean in the dtype of sums, the axes, and 1 / (n - correction)."""
    x = _floating(x)
    axes = normalize_axes(op, axis, x.ndim)
    n = _count(x, axes) - number(op, "correction", correction)
    wide = cast(x, _sum_of_floats(x))
    return wide - mean(wide, axes, keepdims=True), axes, 1 / n if n > 0 else math.nan


def var(x: TensorLike, axis: Axis = None, correction: float = 0, keepdims: bool = False) -> Tensor:
    """The variance over `axis`: squared distances from the mean, over n - correction."""
    x = _floating(x)
    centred, axes, share = _centred("var", x, axis, correction)
    return cast(sum(centred * centred, axes, keepdims) * share, x.dtype)


def std(x: TensorLike, axis: Axis = None, correction: float = 0, keepdims: bool = False) -> Tensor:
    """The square root of `var`; its gradient where all elements are equal is 0."""
    x = _floating(x)
    centred, axes, share = _centred("std", x, axis, correction)
    return cast(norm(centred, axes, keepdims) * math.sqrt(share), x.dtype)


class Norm(Function):
    """sqrt of the sum of squares; the gradient at 0 is 0."""

    @staticmethod
    def forward(ctx: Node, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        ctx.save_inputs(0)
        ctx.save_outputs(0)
        square = empty(x.shape, x.dtype)
        launch("mul", x, x, square)
        out = empty(_kept(x.shape, axes), x.dtype)
        launch("sum", square, out)
        launch("sqrt", out, out, 0.0)
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        x, y = ctx.saved
        return g * x / where(eq(y, 0), 1.0, y)


def norm(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The Euclidean norm over `axis`; its gradient at 0 is 0."""
    x = _floating(x)
    axes = normalize_axes("norm", axis, x.ndim)
    out = Norm.apply(cast(x, _sum_of_floats(x)), axes=axes)
    return _finish(cast(out, x.dtype), axes, keepdims)


def _extremum(kernel: str, x: TensorLike, axis: Axis, keepdims: bool) -> Tensor:
    x = as_tensor(x)
    axes = normalize_axes(kernel, axis, x.ndim)
    if _count(x, axes) == 0:
        raise ValueError(
            f"{kernel}: nothing to take the {kernel} of in shape {x.shape} over {axes}"
        )
    return _finish(Extremum.apply(x, axes=axes, kernel=kernel), axes, keepdims)


def max(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The greatest element over `axis`; NaN wins. Ties share the gradient equally."""
    return _extremum("max", x, axis, keepdims)


def min(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The least element over `axis`; NaN wins. Ties share the gradient equally."""
    return _extremum("min", x, axis, keepdims)


def any(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether some element over `axis` is true (bool); false over nothing."""
    return _truth("max", x, axis, keepdims, False)


def all(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether every element over `axis` is true (bool); true over nothing."""
    return _truth("min", x, axis, keepdims, True)


def _truth(kernel: str, x: TensorLike, axis: Axis, keepdims: bool, empty_value: bool) -> Tensor:
    x = as_tensor(x).detach()
    device = device_away("any" if kernel == "max" else "all", x)
    if device is not None:
        with dispatch.device(device):
            return _truth(kernel, x, axis, keepdims, empty_value)
    x = x if x.dtype == dtypes.bool_ else ne(x, 0)
    axes = normalize_axes("any" if kernel == "max" else "all", axis, x.ndim)
    out = empty(_kept(x.shape, axes), dtypes.bool_)
    if _count(x, axes) == 0:
        launch("fill", out, float(empty_value))
    else:
        launch(kernel, x._array, out)
    return _finish(Tensor._wrap(out), axes, keepdims)


def _arg(kernel: str, x: TensorLike, axis: int | None, keepdims: bool) -> Tensor:
    x = as_tensor(x).detach()
    device = device_away(kernel, x)
    if device is not None:
        with dispatch.device(device):
            return _arg(kernel, x, axis, keepdims)
    kept = (1,) * x.ndim
    if axis is None:
        x, axis = reshape(x, (-1,)), 0
    else:
        axis = normalize_axis(kernel, axis, x.ndim)
        kept = _kept(x.shape, (axis,))
    if x.shape[axis] == 0:
        raise ValueError(f"{kernel}: nothing to choose from in shape {x.shape} along axis {axis}")
    out = empty(x.shape[:axis] + x.shape[axis + 1 :], dtypes.int64)
    launch(kernel, x._array, out, axis)
    return reshape(Tensor._wrap(out), kept) if keepdims else Tensor._wrap(out)


def argmax(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index (int64) of the first greatest element along `axis`, or in flat order for None."""
    return _arg("argmax", x, axis, keepdims)


def argmin(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index (int64) of the first least element along `axis`, or in flat order for None."""
    return _arg("argmin", x, axis, keepdims)


def cumsum(x: TensorLike, axis: int | None = None) -> Tensor:
    """Running sums along `axis`, which must be given, in x's shape."""
    x = as_tensor(x)
    if axis is None:
        raise TypeError(
            "cumsum: name the axis, as in mg.cumsum(x, axis=-1); for NumPy's running sum over "
            "all elements, mg.cumsum(mg.reshape(x, -1), 0)"
        )
    axis = normalize_axis("cumsum", axis, x.ndim)
    return CumSum.apply(x, axis=axis, dtype=_sum_dtype(x))
