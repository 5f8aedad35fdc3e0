"""Our side of a benchmark: `python -m minigrad.bench.ours JOB`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad import autograd, ops, optim
from minigrad.bench.jobs import normal, serve
from minigrad.models import GPT, GPTConfig
from minigrad.precision import precision
from minigrad.profile import profile
from minigrad.tensor import Tensor
from minigrad.train.config import SIZES

Run = Callable[[], Any]


def step(size: str, form: str = "fp32") -> Run:
    shape: dict[str, Any] = dict(SIZES[size])
    batch = shape.pop("batch_size")
    config = GPTConfig(**shape)
    rng = np.random.default_rng(0)
    tokens = ops.tensor(rng.integers(0, config.vocab_size, (batch, config.seq_len)))
    targets = ops.tensor(rng.integers(0, config.vocab_size, (batch, config.seq_len)))
    model = GPT(config)
    optimizer = optim.AdamW(model.parameter_groups(0.1), lr=3e-4)

    def run() -> float:
        optimizer.zero_grad()
        with precision(form):
            loss = model.loss(tokens, targets)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return run


def _with_backward(forward: Callable[..., Tensor], *arrays: np.ndarray, backward: bool) -> Run:
    tensors = [ops.tensor(a, requires_grad=backward) for a in arrays]
    if not backward:

        def run() -> Any:
            with autograd.no_grad():
                return forward(*tensors)

        return run
    seed = ops.tensor(normal(99, *forward(*tensors).shape))
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
    if kind == "adamw":
        parameter = ops.tensor(normal(0, *shape), requires_grad=True)
        parameter.grad = ops.tensor(normal(1, *shape))
        return optim.AdamW([parameter]).step
    function: Any = ops.softmax if kind == "softmax" else ops.gelu
    return _with_backward(function, normal(0, *shape), backward=backward)


def main(job: dict[str, Any]) -> None:
    run = step(job["size"], job["precision"]) if job["kind"] == "step" else kernel(job)
    run()
    with profile() as p:
        run()
    rows = p.rows.values()
    what = f"{job['size']} {job['precision']}" if job["kind"] == "step" else job["shape"]
    name = f"{job['kind']} {what}"
    serve(name, run, sum(r.operations for r in rows), sum(r.bytes for r in rows))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
