"""Inputs, references in float64 and tolerances that the corpus's entries share."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from . import owned

# Of the largest result. float32: sums in another order and the .approx functions; halves: one
# rounding of the result, and of intermediate ones that are stored as halves.
TOLERANCE = {"float32": 4e-6, "float16": 2e-3, "bfloat16": 1.2e-2, "tf32": 4e-3}


def normal(rng: np.random.Generator, dtype: str, *shape: int, scale: float = 1.0) -> np.ndarray:
    values = rng.standard_normal(shape) * scale
    return owned(values.astype(getattr(ml_dtypes, dtype, dtype)))


def zeros(dtype: str, *shape: int) -> np.ndarray:
    return owned(np.zeros(shape, getattr(ml_dtypes, dtype, dtype)))


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


def softmax_of(x: np.ndarray) -> np.ndarray:
    e = np.exp(wide(x) - wide(x).max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def normed(x: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean = wide(x).mean(-1)
    rstd = 1 / np.sqrt(wide(x).var(-1) + eps)
    return (wide(x) - mean[:, None]) * rstd[:, None], mean, rstd


def attention_of(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, causal: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output, logarithm of the sums, and weights, of (..., T, D)."""
    s = wide(q) @ wide(k).swapaxes(-1, -2) * scale
    if causal:
        tq, tk = s.shape[-2:]
        s = np.where(np.arange(tk) <= np.arange(tq)[:, None] + tk - tq, s, -np.inf)
    top = s.max(-1, keepdims=True)
    total = np.exp(s - top).sum(-1, keepdims=True)
    p = np.exp(s - top) / total
    return p @ wide(v), (top + np.log(total))[..., 0], p
