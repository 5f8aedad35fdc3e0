"""What a kernel must at least move and do: read by profiles, benchmarks and reports alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad import dtypes


@dataclass(frozen=True)
class Cost:
    """The bytes a kernel must read and write once, and the floating-point operations it must do.

    `bf16_operations` are those of them that multiply and add bfloat16, which some machines do
    faster.
    """

    bytes: int
    operations: int
    bf16_operations: int = 0


def product_cost(n_bytes: int, operations: int, dtype: np.dtype) -> Cost:
    """That of a kernel whose operations are products of operands of `dtype`."""
    return Cost(n_bytes, operations, operations if dtype == dtypes.bfloat16 else 0)


def nbytes(*arrays: Any) -> int:
    """Bytes behind the arrays, broadcast axes (stride 0) counted once; None counts nothing."""
    total = 0
    for a in arrays:
        if isinstance(a, np.ndarray):
            n = a.itemsize
            for length, stride in zip(a.shape, a.strides, strict=True):
                n *= length if stride else 1
            total += n
    return total
