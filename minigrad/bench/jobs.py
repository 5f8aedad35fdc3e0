"""The jobs both sides do, as data: shapes, operation counts, and the loop that answers the
parent."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
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
    "add": [(10,)],
    "chain": [(10,)],
}
CHAIN = 10  # additions one after another

# training steps of an MLP, where the cost of launching is what is measured: layers and batch
MLP_SIZES, MLP_BATCH = (64, 64, 10), 32
MLP_STEPS = ("mlp-sgd", "mlp-adamw")
MLP_RATE = 1e-3


def parse_shape(kind: str, text: str | None) -> list[int]:
    """The numbers of the command line's --shape; each kernel has a default."""
    standard = SHAPES[kind][0]
    parts = text.split(",") if text else [str(n) for n in standard]
    if len(parts) != len(standard) or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise ValueError(
            f"--shape for {kind}: expected {len(standard)} numbers above 0, got {text}"
        )
    return [int(p) for p in parts]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def mlp_data() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Weights (out, in) and biases of every layer in turn, inputs (B, in), and classes (B,)."""
    parameters = []
    for i, (n_in, n_out) in enumerate(pairwise(MLP_SIZES)):
        parameters += [normal(i, n_out, n_in) / np.sqrt(n_in, dtype=np.float32), normal(9, n_out)]
    inputs = normal(8, MLP_BATCH, MLP_SIZES[0])
    return parameters, inputs, np.random.default_rng(7).integers(0, MLP_SIZES[-1], MLP_BATCH)


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
