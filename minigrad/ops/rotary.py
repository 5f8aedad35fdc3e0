"""Rotary position embedding (Su et al. 2021): pairs of features turned by an angle that grows with
position."""

from __future__ import annotations

import numpy as np

from minigrad import dtypes
from minigrad.arguments import integer, number
from minigrad.ops.binary import add, mul, sub
from minigrad.ops.creation import as_tensor, constant
from minigrad.ops.movement import concat, split
from minigrad.tensor import Tensor, TensorLike

__all__ = ["rotary_embedding"]


def rotary_embedding(x: TensorLike, offset: int = 0, base: float = 10000.0) -> Tensor:
    """x (…, T, D), D even, with features i and i + D/2 of position t turned by (t + offset) ·
    base^(-2i/D).

    Composed of differentiable operations. `offset` is the position of the first row, for decoding
    with a cache.
    """
    op = "rotary_embedding"
    x = as_tensor(x)
    if x.ndim < 2 or x.shape[-1] % 2 or not dtypes.is_floating(x.dtype):
        raise ValueError(
            f"{op}: expected a floating x (…, T, D) with even D, got {x.shape} {x.dtype.name}"
        )
    offset, base = integer(op, "offset", offset), number(op, "base", base)
    if not base > 0:
        raise ValueError(f"{op}: base must be above 0, got {base}")
    length, half = x.shape[-2], x.shape[-1] // 2
    angle = (np.arange(length)[:, None] + float(offset)) * base ** (-np.arange(half) / half)
    cosine, sine = constant(np.cos(angle), x.dtype), constant(np.sin(angle), x.dtype)
    first, second = split(x, 2, axis=-1)
    return concat(
        [
            sub(mul(first, cosine), mul(second, sine)),
            add(mul(first, sine), mul(second, cosine)),
        ],
        axis=-1,
    )
