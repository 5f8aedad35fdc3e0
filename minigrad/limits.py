"""What this machine can do at most: measured, so that shares are of something real."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from minigrad.dispatch import empty, launch


@dataclass(frozen=True)
class Limits:
    """Copying (bytes read plus written) of buffers far larger than the caches, and float32
    multiply-adds on registers alone, both on all threads."""

    copy_gb_per_s: float
    gflop_per_s: float


COPY_BYTES = 256 << 20


def measure_limits(repeats: int = 5) -> Limits:
    """Measures both, in about half a second, as the best of `repeats`."""
    source, target = (
        empty((COPY_BYTES // 8,), np.dtype(np.float32)),
        empty((COPY_BYTES // 8,), np.dtype(np.float32)),
    )
    launch("fill", source, 1.0)
    copy = min(_timed("copy", source, target) for _ in range(repeats))
    counted = empty((16,), np.dtype(np.float64))
    peak = min(_timed("peak_fma", counted) for _ in range(repeats))
    return Limits(source.nbytes * 2 / copy / 1e9, float(counted.sum()) / peak / 1e9)


def _timed(kernel: str, *args: np.ndarray) -> float:
    start = time.perf_counter()
    launch(kernel, *args)
    return time.perf_counter() - start
