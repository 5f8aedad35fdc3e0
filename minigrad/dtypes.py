"""The element types, and how two of them combine."""

from __future__ import annotations

import ml_dtypes
import numpy as np

float32 = np.dtype(np.float32)
float64 = np.dtype(np.float64)
float16 = np.dtype(np.float16)
bfloat16 = np.dtype(ml_dtypes.bfloat16)
int32 = np.dtype(np.int32)
int64 = np.dtype(np.int64)
uint8 = np.dtype(np.uint8)
bool_ = np.dtype(np.bool_)

FLOATING = (float32, float64, float16, bfloat16)
INTEGRAL = (int32, int64, uint8)
ALL = (*FLOATING, *INTEGRAL, bool_)
_BY_NAME = {d.name: d for d in ALL}


def as_dtype(dtype: object) -> np.dtype:
    """The one of minigrad's dtypes that `dtype` (a dtype, a NumPy type or a name) stands for.

    Raises TypeError for any other.
    """
    if dtype.__class__ is str and dtype in _BY_NAME:
        return _BY_NAME[dtype]
    if isinstance(dtype, np.dtype) and dtype in ALL:  # its name is slow to ask for
        return dtype
    try:
        if dtype is None:  # which is float64 to NumPy
            raise TypeError
        found = _BY_NAME[np.dtype(dtype).name]  # type: ignore[call-overload]
    except (TypeError, KeyError):
        raise TypeError(
            f"dtype {dtype!r} is not supported; expected one of {', '.join(_BY_NAME)}"
        ) from None
    return found


def is_floating(dtype: np.dtype) -> bool:
    return dtype in FLOATING


# Wider wins within a kind; float16 and bfloat16 meet in float32, the least type that holds both.
_INT_ORDER = {bool_: 0, uint8: 1, int32: 2, int64: 3}
_FLOAT_ORDER = {float16: 1, bfloat16: 1, float32: 2, float64: 3}


def promote(a: np.dtype, b: np.dtype) -> np.dtype:
    """The dtype of a result of two operands: integer with float gives that float."""
    if a == b:
        return a
    if a in _FLOAT_ORDER and b in _FLOAT_ORDER:
        if _FLOAT_ORDER[a] == _FLOAT_ORDER[b]:
            return float32
        return a if _FLOAT_ORDER[a] > _FLOAT_ORDER[b] else b
    if a in _FLOAT_ORDER:
        return a
    if b in _FLOAT_ORDER:
        return b
    return a if _INT_ORDER[a] > _INT_ORDER[b] else b


def promote_scalar(dtype: np.dtype, value: object) -> np.dtype:
    """The dtype of a tensor of `dtype` combined with a Python number, which is weak."""
    if isinstance(value, bool):
        return dtype
    if isinstance(value, int):
        return int64 if dtype == bool_ else dtype
    return dtype if dtype in _FLOAT_ORDER else float32
