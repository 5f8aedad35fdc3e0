"""The jobs both sides do, as data: shapes, operation counts, and the loop that answers the
parent."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from minigrad.train.config import SIZES

# What is judged row by row: a vocabulary, and rows of the models; the norms and softmax also where
# 256 MB are read and 256 MB written.
ROWS: list[tuple[int, ...]] = [(2048, 384), (64, 50257), (8192, 768), (8192, 4096)]
LARGE_ROWS = (16384, 4096)

# the shapes a kernel is judged at; the first is the command line's default
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "attention": [(8, 6, 256, 64), (2, 8, 1024, 64), (1, 8, 4096, 64), (1, 8, 2048, 128)],
    "layer_norm": [*ROWS, LARGE_ROWS],
    "softmax": [*ROWS, LARGE_ROWS],
    "cross_entropy": [(64, 50257), (2048, 384), (8192, 768), (8192, 4096)],
    "gelu": ROWS,
    "matmul": [(2048, 384, 1536), (1024, 512, 2048), (256, 768, 50257)],
    "adamw": [(10_000_000,)],
    # rows, width, classes; the whole logits are beside it as torch's and our unfused form
    "linear_cross_entropy": [(1024, 512, 8192), (256, 768, 50257), (2048, 768, 50257)],
    # sequences, heads, longest, head_dim; lengths as in `varlen_lengths`
    "attention_varlen": [(8, 6, 256, 64), (8, 8, 1024, 64)],
    "add": [(10,)],
    "chain": [(10,)],
}
# What is timed of a kernel; of a linear layer (`matmul`) also the gradients of its input and of its
# weight alone.
WHATS = ("fwd", "fwd+bwd", "dx", "dw")
FP32_ONLY = ("adamw", "add", "chain")  # of a step in bf16 too, or all launching


def _linear_layers() -> dict[str, tuple[int, int, int]]:
    layers: dict[str, tuple[int, int, int]] = {}
    for size, preset in SIZES.items():
        rows, dim = preset["batch_size"] * preset["seq_len"], preset["dim"]
        widths = {
            "qkv": (dim, 3 * dim),
            "projection": (dim, dim),
            "expand": (dim, 4 * dim),
            "contract": (4 * dim, dim),
            "head": (dim, preset["vocab_size"]),
        }
        layers |= {f"{size} {name}": (rows, *width) for name, width in widths.items()}
    return layers


LINEAR_LAYERS = _linear_layers()  # of the presets: rows (batch × context), inputs, outputs
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


def kernel_job(
    kind: str,
    shape: Sequence[int],
    what: str = "fwd",
    precision: str = "fp32",
    dropout: float = 0.0,
) -> dict[str, Any]:
    """What is timed of a kernel, with inputs in a precision. Raises ValueError on what does not go
    together."""
    if what in ("dx", "dw") and kind != "matmul":
        raise ValueError(f"--what {what}: only of matmul, a linear layer; {kind} has fwd, fwd+bwd")
    if precision != "fp32" and kind in FP32_ONLY:
        raise ValueError(f"--precision {precision}: {kind} is timed in fp32 only")
    if dropout and kind not in ("attention", "attention_varlen"):
        raise ValueError(f"--dropout {dropout}: only of attention and attention_varlen, not {kind}")
    if not 0 <= dropout < 1:
        raise ValueError(f"--dropout: expected a number from 0 to below 1, got {dropout}")
    return {
        "kind": kind,
        "shape": list(shape),
        "what": what,
        "precision": precision,
        "dropout": dropout,
    }


def timed(kind: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """What of a kernel at one of its `SHAPES` the tables have."""
    return ("fwd",) if kind == "adamw" or shape == LARGE_ROWS else ("fwd", "fwd+bwd")


def step_job(
    size: str, precision: str, captured: bool = False, checkpoint_activations: bool = False
) -> dict[str, Any]:
    """A training step of a GPT's preset, or of an MLP."""
    if precision != "fp32" and size in MLP_STEPS:
        raise ValueError(f"--precision {precision}: {size} is timed in fp32 only")
    return {
        "kind": "step",
        "size": size,
        "precision": precision,
        "captured": captured,
        "checkpoint_activations": checkpoint_activations,
    }


def generation_job(
    size: str, precision: str, batch: int, prompt: int, tokens: int | None
) -> dict[str, Any]:
    """Generating `tokens` after each of `batch` prompts of `prompt` tokens, the likeliest ones."""
    context = SIZES[size]["seq_len"]
    if tokens is None:
        tokens = min(128, max(1, context - prompt))
    if min(batch, prompt, tokens) < 1 or prompt + tokens > context:
        raise ValueError(
            f"bench generate: batch {batch}, prompt {prompt} and tokens {tokens}: expected numbers "
            f"above 0, and a prompt that fits with its tokens into the {context} of {size}"
        )
    return {
        "kind": "generate",
        "size": size,
        "precision": precision,
        "batch": batch,
        "prompt": prompt,
        "tokens": tokens,
    }


def prompts(job: dict[str, Any]) -> np.ndarray:
    """Tokens (B, T) to begin with."""
    shape = job["batch"], job["prompt"]
    return np.random.default_rng(0).integers(0, SIZES[job["size"]]["vocab_size"], shape)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def varlen_lengths(n_sequences: int, longest: int) -> list[int]:
    """Lengths spread evenly from an eighth of the longest to it, so that a padded batch is 44%
    padding."""
    return [int(n) for n in np.linspace(longest / 8, longest, n_sequences)]


def peak_mb() -> float:
    """The most memory (10⁶ bytes) this process has had resident so far."""
    try:
        with open("/proc/self/status") as status:
            return next(int(x.split()[1]) for x in status if x.startswith("VmHWM")) * 1024 / 1e6
    except OSError:  # macOS, where ru_maxrss is in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def linear_cross_entropy_inputs(shape: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (N, D), weight (V, D) with GPT-2's deviation, targets (N,)."""
    n, dim, classes = shape
    targets = np.random.default_rng(0).integers(0, classes, n)
    return normal(0, n, dim), normal(1, classes, dim) * np.float32(0.02), targets


def gradient_error(shape: list[int], dx: np.ndarray, dweight: np.ndarray) -> float:
    """The larger relative error (L2) of the two gradients of the mean, against float64."""
    x, w, targets = linear_cross_entropy_inputs(shape)
    wide, exact_dw, exact_dx = w.astype(np.float64), np.zeros(w.shape), np.empty(x.shape)
    for begin in range(0, len(x), 128):
        rows = slice(begin, begin + 128)
        part = x[rows].astype(np.float64)
        p = part @ wide.T
        p = np.exp(p - p.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        p[np.arange(len(p)), targets[rows]] -= 1
        p /= len(x)
        exact_dx[rows] = p @ wide
        exact_dw += p.T @ part
    pairs = ((dx, exact_dx), (dweight, exact_dw))
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def mlp_data() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Weights (out, in) and biases of every layer in turn, inputs (B, in), and classes (B,)."""
    parameters = []
    for i, (n_in, n_out) in enumerate(pairwise(MLP_SIZES)):
        parameters += [normal(i, n_out, n_in) / np.sqrt(n_in, dtype=np.float32), normal(9, n_out)]
    inputs = normal(8, MLP_BATCH, MLP_SIZES[0])
    return parameters, inputs, np.random.default_rng(7).integers(0, MLP_SIZES[-1], MLP_BATCH)


def serve(
    what: str,
    run: Callable[[], Any],
    start_mb: float = 0.0,
    cost: Mapping[str, float] | None = None,
    error: Callable[[], float] | None = None,
) -> None:
    """Introduces the worker (what it does and its cost), then answers each line "n" on stdin with n
    durations and the peak of memory, in all and above `start_mb`, and "error" with the error of the
    gradients, until it closes."""
    print(json.dumps({"what": what, **(cost or {})}), flush=True)
    for line in sys.stdin:
        if line.strip() == "error":
            print(json.dumps({"error": error() if error else None}), flush=True)
            continue
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
        peak = peak_mb()
        figures = {"ms": times, "peak_mb": peak, "peak_above_start_mb": peak - start_mb}
        print(json.dumps(figures), flush=True)
