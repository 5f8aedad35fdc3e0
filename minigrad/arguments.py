"""Arguments as callers give them: what does not fit is refused in words that name the op, the value
and what was expected."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

Axis = int | Sequence[int] | None
Shape = int | Sequence[int]


def shown(value: Any) -> str:
    """The value as an error shows it, in one short line; an array by its shape and dtype."""
    shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", None)
    if dtype is not None and shape:
        return f"an array of shape {shape} and dtype {dtype}"
    return " ".join(reprlib.repr(value).split())


def integer(op: str, name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int; refuses floats, bools and what is below `least`."""
    if value.__class__ is not int:
        try:
            if isinstance(value, bool):
                raise TypeError
            value = operator.index(value)
        except (TypeError, ValueError):
            raise TypeError(f"{op}: {name} must be an integer, got {shown(value)}") from None
    if least is not None and value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
    return value


def number(op: str, name: str, value: Any) -> float:
    """`value` as a Python number: an int where it stands for one, else a float."""
    if value.__class__ is float or value.__class__ is int:
        return value
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        pass
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{op}: {name} must be a number, got {shown(value)}") from None


def probability(op: str, name: str, value: Any) -> float:
    """`value` as a number in [0, 1)."""
    p = number(op, name, value)
    if not 0 <= p < 1:
        raise ValueError(f"{op}: {name} must be in [0, 1), got {p}")
    return p


def checked_shape(op: str, shape: Shape, name: str = "a shape") -> tuple[int, ...]:
    """`shape` (or what has its form, called `name`) as a tuple; it may be one integer."""
    try:
        several = shape.__class__ is tuple or isinstance(shape, Iterable)
        return tuple(map(operator.index, shape if several else (shape,)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(
            f"{op}: {name} must be an integer or a sequence of integers, got {shown(shape)}"
        ) from None


def new_shape(op: str, shape: Shape) -> tuple[int, ...]:
    """`checked_shape` for memory to be made."""
    out = checked_shape(op, shape)
    if any(d < 0 for d in out):
        raise ValueError(f"{op}: negative dimension in shape {out}")
    if math.prod(out) >= 2**60:
        raise MemoryError(f"{op}: shape {out} has {math.prod(out)} elements, more than can exist")
    return out


def normalize_axis(op: str, axis: int, ndim: int) -> int:
    """`axis` counted from the first; negative ones count from the last."""
    if axis.__class__ is not int:
        axis = integer(op, "axis", axis)
    if not -ndim <= axis < ndim:
        raise IndexError(f"{op}: axis {axis} is out of range for {ndim} dimensions")
    return axis % ndim


def normalize_axes(op: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """`axis` as a tuple counted from the first: all axes for None, one, or several."""
    if axis is None:
        return tuple(range(ndim))
    if axis.__class__ is int:
        return (normalize_axis(op, axis, ndim),)  # type: ignore[arg-type]
    try:
        several = axis.__class__ is tuple or isinstance(axis, Iterable)
        out = tuple([normalize_axis(op, a, ndim) for a in (axis if several else (axis,))])  # type: ignore
    except TypeError:
        raise TypeError(
            f"{op}: axis must be an integer, a tuple of integers or None, got {shown(axis)}"
        ) from None
    if len(set(out)) != len(out):
        raise ValueError(f"{op}: axis {axis} names a dimension twice")
    return out
