"""Starts softmax.cu."""

from __future__ import annotations

import numpy as np

from minigrad.gpu import CudaLaunch, check_floats, strides

from . import FOLDER, TYPES, packed

THREADS = 256


def softmax_fwd(x: np.ndarray, out: np.ndarray) -> CudaLaunch | None:
    """out = softmax(x) over the columns of (n_rows, n_cols)."""
    if not x.size:
        return None
    dtype = check_floats("softmax_fwd", x, out)
    n_rows, n_cols = x.shape
    sizes = [np.int64(n) for n in (n_cols, strides(x)[0], strides(out)[0])]
    return CudaLaunch(
        FOLDER / "softmax.cu",
        "softmax_fwd",
        {"ELEMENT": TYPES[dtype]},
        (n_rows, 1, 1),
        (THREADS, 1, 1),
        [x, out, *sizes, packed(n_cols, x, out)],
    )
