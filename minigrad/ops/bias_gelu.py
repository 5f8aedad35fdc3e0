"""GELU of a sum with a bias, on arrays: what `linear` does after its product (`ops/matmul.py`).

Forward has the exponential at hand, so it keeps the slope gelu'(x + bias) for backward, in the
memory of x, which nothing else needs.
"""

from __future__ import annotations

import numpy as np

from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch
from minigrad.ops.creation import unit_columns
from minigrad.ops.unary import REFERENCE as UNARY

__all__: list[str] = []

Optional = np.ndarray | None


def _fwd_ref(
    x: np.ndarray, bias: Optional, out: np.ndarray, slope: Optional, tanh_form: bool
) -> None:
    z = x.astype(np.float64)
    if bias is not None:
        z = z + bias.astype(np.float64)
    name = "gelu_tanh" if tanh_form else "gelu"
    if slope is not None:
        UNARY[f"{name}_bwd"](np.ones_like(z), z, z, slope, 0.0)
    UNARY[name](z, out, 0.0)


def _bwd_ref(g: np.ndarray, slope: np.ndarray, dx: np.ndarray, dbias: Optional) -> None:
    wide = g.astype(np.float64) * slope.astype(np.float64)
    dx[...] = wide.astype(dx.dtype)
    if dbias is not None:
        dbias[...] = wide.sum(0).astype(dbias.dtype)


REFERENCE = {"bias_gelu_fwd": _fwd_ref, "bias_gelu_bwd": _bwd_ref}
COST = {
    "bias_gelu_fwd": lambda x, bias, out, slope, form: Cost(
        nbytes(x, bias, out, slope), (20 if slope is None else 26) * x.size
    ),
    "bias_gelu_bwd": lambda g, slope, dx, dbias: Cost(nbytes(g, slope, dx, dbias), 2 * dx.size),
}


def bias_gelu(
    x: np.ndarray, bias: Optional, tanh_form: bool, keep_slope: bool
) -> tuple[np.ndarray, Optional]:
    """gelu(x + bias) of x (M, N) and bias (N,), and the slope where it is to be kept; x is lost."""
    out = empty(x.shape, x.dtype) if keep_slope else x
    slope = x if keep_slope else None
    launch("bias_gelu_fwd", x, bias, out, slope, tanh_form)
    return out, slope


def bias_gelu_gradients(
    g: np.ndarray, slope: np.ndarray, bias_dtype: np.dtype | None
) -> tuple[np.ndarray, Optional]:
    """The gradients of x and of the bias, in `bias_dtype`, unless that is None."""
    dx = empty(g.shape, slope.dtype)
    dbias = None if bias_dtype is None else empty(g.shape[1:], bias_dtype)
    launch("bias_gelu_bwd", unit_columns(g), slope, dx, dbias)
    return dx, dbias
