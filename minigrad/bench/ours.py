"""Our side of a benchmark: `python -m minigrad.bench.ours JOB`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad import autograd, ops, optim
from minigrad.bench.jobs import (
    gradient_error,
    linear_cross_entropy_inputs,
    normal,
    peak_mb,
    serve,
    varlen_lengths,
)
from minigrad.models import GPT, GPTConfig
from minigrad.profile import profile
from minigrad.tensor import Tensor
from minigrad.train.config import SIZES

Run = Callable[[], Any]


def step(size: str, checkpoint_activations: bool = False) -> Run:
    shape: dict[str, Any] = dict(SIZES[size])
    batch = shape.pop("batch_size")
    config = GPTConfig(**shape)
    rng = np.random.default_rng(0)
    tokens = ops.tensor(rng.integers(0, config.vocab_size, (batch, config.seq_len)))
    targets = ops.tensor(rng.integers(0, config.vocab_size, (batch, config.seq_len)))
    model = GPT(config, checkpoint_activations)
    optimizer = optim.AdamW(model.parameter_groups(0.1), lr=3e-4)

    def run() -> float:
        optimizer.zero_grad()
        loss = model.loss(tokens, targets)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return run


def _with_backward(
    forward: Callable[..., Tensor], *arrays: np.ndarray, backward: bool, one: bool = False
) -> Run:
    """The seed is random, or 1 (`one`), as a loss has it."""
    tensors = [ops.tensor(a, requires_grad=backward) for a in arrays]
    if not backward:

        def run() -> Any:
            with autograd.no_grad():
                return forward(*tensors)

        return run
    with autograd.no_grad():
        shape = forward(*tensors).shape
    seed = ops.ones(shape) if one else ops.tensor(normal(99, *shape))
    return lambda: autograd.grad(forward(*tensors), tensors, seed)


def kernel(job: dict[str, Any]) -> Run:
    kind, shape, backward = job["kind"], job["shape"], job["backward"]
    if kind == "attention":
        qkv = [normal(i, *shape) for i in range(3)]
        return _with_backward(
            lambda q, k, v: ops.attention(q, k, v, causal=True), *qkv, backward=backward
        )
    if kind == "matmul":
        m, k, n = shape
        return _with_backward(ops.linear, normal(0, m, k), normal(1, n, k), backward=backward)
    if kind == "layer_norm":
        n = shape[-1]
        return _with_backward(
            ops.layer_norm, normal(0, *shape), normal(1, n), normal(2, n), backward=backward
        )
    if kind == "cross_entropy":
        targets = ops.tensor(np.random.default_rng(0).integers(0, shape[1], shape[0]))
        return _with_backward(
            lambda x: ops.cross_entropy(x, targets), normal(0, *shape), backward=backward
        )
    if kind == "linear_cross_entropy":
        x, w, target = linear_cross_entropy_inputs(shape)
        targets = ops.tensor(target)
        return _with_backward(
            lambda x, w: ops.linear_cross_entropy(x, w, targets), x, w, backward=backward, one=True
        )
    if kind == "attention_varlen":
        n, heads, longest, dim = shape
        ends = ops.tensor(np.cumsum([0, *varlen_lengths(n, longest)]))
        qkv = [normal(i, int(ends[-1].item()), heads, dim) for i in range(3)]
        return _with_backward(
            lambda q, k, v: ops.attention_varlen(q, k, v, ends, causal=True),
            *qkv,
            backward=backward,
        )
    if kind == "adamw":
        parameter = ops.tensor(normal(0, *shape), requires_grad=True)
        parameter.grad = ops.tensor(normal(1, *shape))
        return optim.AdamW([parameter]).step
    function: Any = ops.softmax if kind == "softmax" else ops.gelu
    return _with_backward(function, normal(0, *shape), backward=backward)


def main(job: dict[str, Any]) -> None:
    start_mb = peak_mb()
    options = job.get("checkpoint_activations", False)
    run = step(job["size"], options) if job["kind"] == "step" else kernel(job)
    run()
    with profile() as p:
        run()
    rows = p.rows.values()
    name = f"{job['kind']} {job.get('size') or job['shape']}"

    def error() -> float:
        dx, dweight = run()
        return gradient_error(job["shape"], dx.numpy(), dweight.numpy())

    operations, n_bytes = sum(r.operations for r in rows), sum(r.bytes for r in rows)
    serve(name, run, operations, n_bytes, start_mb, error)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
