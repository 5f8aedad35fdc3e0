"""What elementwise operations share: operands of one dtype, the gradient of broadcasting, and how
references and costs are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad import dtypes
from minigrad.cost import Cost, nbytes
from minigrad.ops.creation import as_tensor, cast
from minigrad.tensor import Tensor, TensorLike

__all__: list[str] = []


def alike(a: TensorLike, b: TensorLike) -> bool:
    """Whether both are tensors of one dtype, not bool: most operands of arithmetic are."""
    if a.__class__ is not Tensor or b.__class__ is not Tensor:
        return False
    dtype = a._array.dtype
    return dtype is b._array.dtype and dtype is not dtypes.bool_


def operands(op: str, a: TensorLike, b: TensorLike) -> tuple[Tensor, Tensor]:
    """Both as tensors of the dtype they combine in; a Python number takes the other's."""
    if a.__class__ is Tensor and b.__class__ is Tensor:
        if a.dtype == b.dtype and a.dtype != dtypes.bool_:
            return a, b
    elif a.__class__ is Tensor and b.__class__ in (int, float, bool):
        dtype = dtypes.promote_scalar(a.dtype, b)
        return cast(a, dtype), _constant(b, dtype)
    elif b.__class__ is Tensor and a.__class__ in (int, float, bool):
        dtype = dtypes.promote_scalar(b.dtype, a)
        return _constant(a, dtype), cast(b, dtype)
    a, b = as_tensor(a), as_tensor(b)
    dtype = dtypes.promote(a.dtype, b.dtype)
    return cast(a, dtype), cast(b, dtype)


def _constant(value: bool | int | float, dtype: np.dtype) -> Tensor:
    if not dtypes.is_floating(dtype) and dtype != dtypes.bool_:
        limits = np.iinfo(dtype)
        if not limits.min <= value <= limits.max:
            raise OverflowError(f"the number {value} does not fit into {dtype.name}")
    return Tensor._wrap(np.array(value, dtype))


def arithmetic(op: str, a: TensorLike, b: TensorLike) -> tuple[Tensor, Tensor]:
    """Operands of arithmetic: truth values count as integers."""
    a, b = operands(op, a, b)
    if a.dtype == dtypes.bool_:
        return cast(a, dtypes.int64), cast(b, dtypes.int64)
    return a, b


def unbroadcast(g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The gradient of broadcasting `shape` to g's shape: the sum over the axes that were
    repeated."""
    if g._array.shape == shape:
        return g
    extra = g.ndim - len(shape)
    axes = tuple(
        d for d in range(g.ndim) if d < extra or (shape[d - extra] == 1 and g.shape[d] != 1)
    )
    return g.sum(axes, keepdims=True).reshape(shape)


# ---- references and costs ----


def wide(x: np.ndarray) -> np.ndarray:
    """Half types as float32, which NumPy can compute in."""
    return x.astype(np.float32) if x.dtype in (dtypes.float16, dtypes.bfloat16) else x


def binary_reference(function: Callable[..., Any]) -> Callable[..., None]:
    """A kernel of two operands from a NumPy function."""

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            out[...] = function(wide(a), wide(b)).astype(out.dtype)

    return run


def elementwise_cost(*args: Any) -> Cost:
    """One operation an element."""
    arrays = [a for a in args if isinstance(a, np.ndarray)]
    return Cost(nbytes(*arrays), max((a.size for a in arrays), default=0))
