"""Starts attention.cu."""

from __future__ import annotations

import math

import numpy as np

from minigrad.gpu import CudaLaunch, check_floats, strides

from . import FOLDER, TYPES

LARGEST_HEAD_DIM = 128  # queries, keys and values of a block in 48 KiB of shared memory
WARPS, QUERIES = 4, 16  # a block, as in attention.cu


def _strides(array: np.ndarray | None) -> bytes:
    """The kernel's struct Strides."""
    return np.array((0, 0, 0, 0) if array is None else strides(array), np.int64).tobytes()


def attention_fwd(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None,
    bias: np.ndarray | None,
    out: np.ndarray,
    lse: np.ndarray,
    scale: float,
    causal: bool,
    window: int,
    dropout_p: float,
    rng: np.ndarray | None,
) -> CudaLaunch | None:
    """q (B, Hq, Tq, D), k and v (B, Hkv, Tk, D) → out (B, Hq, Tq, D) and the logarithm of each
    row's sum of exponentials, lse (B, Hq, Tq) float32."""
    if not out.size:
        return None
    dtype = check_floats("attention_fwd", q, k, v, bias, out)
    n_batch, n_heads, n_queries, head_dim = q.shape
    if head_dim > LARGEST_HEAD_DIM:
        raise ValueError(
            f"attention_fwd: head_dim {head_dim}; the CUDA kernel takes up to {LARGEST_HEAD_DIM}"
        )
    return CudaLaunch(
        FOLDER / "attention.cu",
        "attention_fwd",
        {"ELEMENT": TYPES[dtype], "DIM": head_dim},
        (-(-n_queries // QUERIES), n_batch * n_heads, 1),
        (WARPS * 32, 1, 1),
        [q, k, v, mask, bias, out, lse, rng if dropout_p > 0 else None]
        + [_strides(a) for a in (q, k, v, mask, bias, out)]
        + [np.int32(n) for n in (n_heads, n_heads // k.shape[1], n_queries, k.shape[2])]
        + [np.float32(scale), np.int32(causal), np.int32(window)]
        + [np.uint32(math.floor(dropout_p * 2**32)), np.float32(1 / (1 - dropout_p))],
    )
