"""The jobs both sides do, as data: shapes, operation counts, and the loop that answers the
parent."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

DEFAULT_SHAPES = {
    "attention": [8, 6, 256, 64],
    "layer_norm": [8192, 768],
    "softmax": [8192, 768],
    "matmul": [2048, 384, 1536],
    "cross_entropy": [64, 50257],
    "gelu": [8192, 768],
    "adamw": [10_000_000],
}


def shape_of(job: dict[str, Any]) -> list[int]:
    shape = job["shape"] or DEFAULT_SHAPES[job["kind"]]
    wanted = len(DEFAULT_SHAPES[job["kind"]])
    if len(shape) != wanted:
        raise ValueError(f"--shape for {job['kind']}: expected {wanted} numbers, got {shape}")
    return shape


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def serve(what: str, run: Callable[[], Any], operations: float, n_bytes: float) -> None:
    """Introduces the worker, then answers each line "n" on stdin with n durations, until it
    closes."""
    print(json.dumps({"what": what, "operations": operations, "bytes": n_bytes}), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
        print(json.dumps({"ms": times}), flush=True)
