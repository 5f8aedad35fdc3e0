"""Our side of a benchmark: `python -m minigrad.bench.ours JOB`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad import autograd, nn, ops, optim
from minigrad.bench.jobs import (
    CHAIN,
    MLP_RATE,
    MLP_SIZES,
    MLP_STEPS,
    gradient_error,
    linear_cross_entropy_inputs,
    mlp_data,
    normal,
    peak_mb,
    prompts,
    serve,
    varlen_lengths,
)
from minigrad.capture import capture
from minigrad.models import GPT, GPTConfig
from minigrad.precision import precision
from minigrad.profile import profile
from minigrad.tensor import Tensor
from minigrad.train.config import SIZES

Run = Callable[[], Any]


def step(
    size: str, form: str = "fp32", captured: bool = False, checkpoint_activations: bool = False
) -> Run:
    """One training step, of an MLP or of a GPT, in a precision."""
    if size in MLP_STEPS:
        return _mlp_step(size, captured)
    shape: dict[str, Any] = dict(SIZES[size])
    batch = shape.pop("batch_size")
    config = GPTConfig(**shape)
    rng = np.random.default_rng(0)
    tokens = ops.tensor(rng.integers(0, config.vocab_size, (batch, config.seq_len)))
    targets = ops.tensor(rng.integers(0, config.vocab_size, (batch, config.seq_len)))
    model = GPT(config, checkpoint_activations)
    optimizer = optim.AdamW(model.parameter_groups(0.1), lr=3e-4)

    def loss_of(tokens: Tensor, targets: Tensor) -> Tensor:
        with precision(form):
            return model.loss(tokens, targets)

    return _stepping(loss_of, optimizer, tokens, targets, captured)


def _stepping(
    loss_of: Callable[..., Tensor],
    optimizer: optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    captured: bool,
) -> Run:
    def update(inputs: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(inputs, targets)
        loss.backward()
        optimizer.step()
        return loss

    made = capture(update) if captured else update
    return lambda: float(made(inputs, targets).item())


def _mlp_step(size: str, captured: bool) -> Run:
    arrays, x, y = mlp_data()
    inputs, targets = ops.tensor(x), ops.tensor(y)
    model = nn.Sequential(nn.Linear(*MLP_SIZES[:2], activation="relu"), nn.Linear(*MLP_SIZES[1:]))
    with autograd.no_grad():
        for p, array in zip(model.parameters(), arrays, strict=True):
            p.copy_(array)
    kind: Any = optim.SGD if size == "mlp-sgd" else optim.AdamW
    optimizer = kind(model.parameters(), lr=MLP_RATE)
    return _stepping(
        lambda x, y: ops.cross_entropy(model(x), y), optimizer, inputs, targets, captured
    )


def generation(job: dict[str, Any]) -> Run:
    """A batch of prompts continued by the likeliest tokens."""
    shape: dict[str, Any] = {k: v for k, v in SIZES[job["size"]].items() if k != "batch_size"}
    model, prompt = GPT(GPTConfig(**shape)), prompts(job)

    def run() -> np.ndarray:
        with precision(job["precision"]):
            return model.generate(prompt, job["tokens"], temperature=0)

    return run


def _chain(x: Tensor) -> Tensor:
    for _ in range(CHAIN):
        x = x + x
    return x


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
    if kind == "add":
        return _with_backward(ops.add, normal(0, *shape), normal(1, *shape), backward=backward)
    if kind == "chain":
        return _with_backward(_chain, normal(0, *shape), backward=backward)
    if kind == "adamw":
        parameter = ops.tensor(normal(0, *shape), requires_grad=True)
        parameter.grad = ops.tensor(normal(1, *shape))
        return optim.AdamW([parameter]).step
    function: Any = ops.softmax if kind == "softmax" else ops.gelu
    return _with_backward(function, normal(0, *shape), backward=backward)


def main(job: dict[str, Any]) -> None:
    start_mb = peak_mb()
    captured = job.get("captured", False)
    if job["kind"] == "step":
        size, form = job["size"], job["precision"]
        run = step(size, form, captured, job.get("checkpoint_activations", False))
        what = f"{size} {form}" + ", captured" * captured
    elif job["kind"] == "generate":
        run = generation(job)
        what = "{size} {precision}, batch {batch}, {tokens} tokens after {prompt}".format(**job)
    else:
        run, what = kernel(job), job["shape"]
    for _ in range(4):  # a captured step is recorded by then
        run()
    with profile() as p:
        run()
    rows = p.rows.values()

    def error() -> float:
        dx, dweight = run()
        return gradient_error(job["shape"], dx.numpy(), dweight.numpy())

    operations, n_bytes = sum(r.operations for r in rows), sum(r.bytes for r in rows)
    serve(f"{job['kind']} {what}", run, operations, n_bytes, start_mb, error)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
