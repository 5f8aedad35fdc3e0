"""What this machine can do at most: measured, so that shares are of something real."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from minigrad.dispatch import empty, launch


def _peak_fma_ref(counted: np.ndarray) -> None:
    """Multiply-adds by NumPy, on values that stay in the first cache; says how many."""
    x, rounds = np.ones(2048, np.float32), 500
    for _ in range(rounds):
        np.multiply(x, np.float32(0.999), out=x)
        np.add(x, np.float32(0.001), out=x)
    counted[...] = 0
    counted[0] = 2 * rounds * x.size


# The references multiply bfloat16 as float32.
REFERENCE = {"peak_fma": _peak_fma_ref, "peak_bf16": _peak_fma_ref}


@dataclass(frozen=True)
class Limits:
    """Copying (bytes read plus written), and multiply-adds on registers alone, of float32 and of
    bfloat16 with float32 sums; all on all threads."""

    copy_gb_per_s: float
    gflop_per_s: float
    bf16_gflop_per_s: float

    def least_ms(self, n_bytes: float, operations: float, bf16_operations: float = 0) -> float:
        """What moving the bytes and doing the operations takes at least, in milliseconds; the
        `bf16_operations` are among the operations."""
        arithmetic = (operations - bf16_operations) / self.gflop_per_s
        arithmetic += bf16_operations / self.bf16_gflop_per_s
        return max(n_bytes / self.copy_gb_per_s, arithmetic) / 1e6


COPY_BYTES = 256 << 20
MOST_BYTES = 512 << 20


def measure_limits(working_set: float = COPY_BYTES, repeats: int = 5) -> Limits:
    """Measures them, in about half a second, as the best of `repeats`.

    What fits into the caches is copied faster than memory allows, so the copy is of
    `working_set` bytes (source and target together), at most 512 MiB; the default is far beyond
    the caches.
    """
    n = max(1, int(min(working_set, MOST_BYTES)) // 8)
    source, target = (_block(n) for _ in range(2))
    launch("fill", source, 1.0)
    repeats_of_small = 1 + (16 << 20) // (8 * n)
    copy = min(_timed("copy", source, target) for _ in range(repeats * repeats_of_small))
    rates = []
    for kernel in ("peak_fma", "peak_bf16"):
        counted = np.empty(16)
        peak = min(_timed(kernel, counted) for _ in range(repeats))
        rates.append(float(counted.sum()) / peak / 1e9)
    return Limits(source.nbytes * 2 / copy / 1e9, *rates)


def _block(n: int) -> np.ndarray:
    """n float32. What is large is not the pool's: its `peak_bytes` are those of the program that is
    measured. What fits into caches is, as it is faster in the pool's huge pages."""
    if 4 * n < 64 << 20:
        return empty((n,), np.dtype(np.float32))
    memory = np.empty(4 * n + 64, np.uint8)
    begin = -memory.ctypes.data % 64  # NumPy aligns to 16 bytes only
    return memory[begin : begin + 4 * n].view(np.float32)


def best_of(measured: Sequence[Limits]) -> Limits:
    """The highest of each."""
    return Limits(*map(max, zip(*map(astuple, measured), strict=True)))


def _timed(kernel: str, *args: np.ndarray) -> float:
    start = time.perf_counter()
    launch(kernel, *args)
    return time.perf_counter() - start
