"""Starts layer_norm.cu."""

from __future__ import annotations

import numpy as np

from minigrad.gpu import CudaLaunch, check_floats, strides

from . import FOLDER, TYPES, packed

THREADS = 256


def layer_norm_fwd(
    x: np.ndarray,
    residual: np.ndarray | None,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    out: np.ndarray,
    summed: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    eps: float,
) -> CudaLaunch | None:
    """out = (s - mean) · rstd · weight + bias, s = x + residual (kept in summed), over the columns
    of (n_rows, n_cols); mean and rstd (n_rows,) float32."""
    if not x.size:
        return None
    dtype = check_floats("layer_norm_fwd", x, residual, weight, bias, out, summed)
    n_rows, n_cols = x.shape
    row_strides = [0 if a is None else strides(a)[0] for a in (x, residual, out, summed)]
    return CudaLaunch(
        FOLDER / "layer_norm.cu",
        "layer_norm_fwd",
        {"ELEMENT": TYPES[dtype]},
        (n_rows, 1, 1),
        (THREADS, 1, 1),
        [x, residual, weight, bias, out, summed, mean, rstd]
        + [np.int64(n) for n in (n_cols, *row_strides)]
        + [np.float32(eps), packed(n_cols, x, residual, weight, bias, out, summed)],
    )
