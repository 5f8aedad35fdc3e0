"""CUDA kernels. Each `.cu` file has the kernel; the Python file beside it describes a start of it:
grid, block and arguments, under the native kernel's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
TYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}
PACK_BYTES = 16


def packed(n_cols: int, *arrays: np.ndarray | None) -> np.int32:
    """1 if every row of these arrays starts at, and consists of, whole packs of 16 bytes."""
    for a in arrays:
        if a is None:
            continue
        starts = [a.ctypes.data, *([a.strides[0]] if a.ndim == 2 else [])]
        if n_cols * a.itemsize % PACK_BYTES or any(s % PACK_BYTES for s in starts):
            return np.int32(0)
    return np.int32(1)
