"""The jobs both sides do, as data: shapes, operation counts, and the loop that answers the
parent."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

# the shapes a kernel is judged at; the first is the command line's default
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "attention": [(8, 6, 256, 64), (2, 8, 1024, 64), (1, 8, 4096, 64), (1, 8, 2048, 128)],
    "layer_norm": [(2048, 384), (8192, 768), (8192, 4096)],
    "softmax": [(2048, 384), (8192, 768), (8192, 4096)],
    "cross_entropy": [(64, 50257), (2048, 384)],
    "gelu": [(2048, 384), (8192, 768)],
    "matmul": [(2048, 384, 1536), (1024, 512, 2048), (256, 768, 50257)],
    "adamw": [(10_000_000,)],
}


def shape_of(job: dict[str, Any]) -> list[int]:
    standard = SHAPES[job["kind"]][0]
    shape = list(job["shape"] or standard)
    wanted = len(standard)
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
