"""Shapes that operands have together."""

from __future__ import annotations

import numpy as np


def broadcast_shape(op: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all of these broadcast to; ValueError, naming the op, where there is none."""
    first = shapes[0]
    if all(s == first or s == () for s in shapes):
        return first
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = " and ".join(str(s) for s in shapes)
        raise ValueError(f"{op}: shapes {listed} do not broadcast") from None
