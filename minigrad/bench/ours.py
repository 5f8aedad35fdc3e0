"""Our side of a benchmark: `python -m minigrad.bench.ours JOB`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minigrad import autograd, dtypes, nn, ops, optim
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
DTYPES = {"fp32": dtypes.float32, "bf16": dtypes.bfloat16}


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


def _operation(job: dict[str, Any]) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """What a job computes, and of what. In bf16 a linear layer's weight stays float32 with packed
    copies, as in training; all else is bfloat16."""
    kind, shape, form = job["kind"], job["shape"], job["precision"]

    def given(seed: int, *shape: int) -> Tensor:
        return ops.tensor(normal(seed, *shape), DTYPES[form])

    def mixed(op: Callable[..., Tensor], *inputs: Any) -> Tensor:
        with precision(form):
            return op(*inputs)

    if kind == "attention":
        options: dict[str, Any] = {"causal": True, "dropout": job["dropout"]}
        return partial(ops.attention, **options), [given(i, *shape) for i in range(3)]
    if kind == "attention_varlen":
        n, heads, longest, dim = shape
        ends = ops.tensor(np.cumsum([0, *varlen_lengths(n, longest)]))
        options = {"cu_seqlens_q": ends, "causal": True, "dropout": job["dropout"]}
        tokens = int(ends[-1].item())
        return partial(ops.attention_varlen, **options), [
            given(i, tokens, heads, dim) for i in range(3)
        ]
    if kind == "matmul":
        m, k, n = shape
        return partial(mixed, ops.linear), [given(0, m, k), ops.tensor(normal(1, n, k))]
    if kind == "linear_cross_entropy":
        x, w, target = linear_cross_entropy_inputs(shape)
        targets = ops.tensor(target)
        return lambda x, w: mixed(ops.linear_cross_entropy, x, w, targets), [
            ops.tensor(x, DTYPES[form]),
            ops.tensor(w),
        ]
    if kind == "layer_norm":
        return ops.layer_norm, [given(0, *shape), given(1, shape[-1]), given(2, shape[-1])]
    if kind == "cross_entropy":
        classes = ops.tensor(np.random.default_rng(0).integers(0, shape[1], shape[0]))
        return lambda x: ops.cross_entropy(x, classes), [given(0, *shape)]
    if kind == "add":
        return ops.add, [given(0, *shape), given(1, *shape)]
    function: Any = {"chain": _chain, "softmax": ops.softmax, "gelu": ops.gelu}[kind]
    return function, [given(0, *shape)]


def kernel(job: dict[str, Any]) -> Run:
    """A kernel forward, with all gradients, or (of a linear layer) with one gradient alone."""
    shape, what = job["shape"], job["what"]
    if job["kind"] == "adamw":
        parameter = ops.tensor(normal(0, *shape), requires_grad=True)
        parameter.grad = ops.tensor(normal(1, *shape))
        return optim.AdamW([parameter]).step
    forward, inputs = _operation(job)

    def without_graph() -> Tensor:
        with autograd.no_grad():
            return forward(*inputs)

    if what == "fwd":
        return without_graph
    out = without_graph()
    # That of a loss is 1, as where training begins.
    array = normal(99, *out.shape) if out.ndim else np.ones((), np.float32)
    seed = ops.tensor(array, out.dtype)
    for x in inputs:
        x.requires_grad = True
    if what == "fwd+bwd":
        return lambda: autograd.grad(forward(*inputs), inputs, seed)
    graph, wanted = forward(*inputs), inputs[("dx", "dw").index(what)]
    return lambda: autograd.grad(graph, wanted, seed, retain_graph=True)


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
        run = kernel(job)
        what = "{shape} {what} {precision}".format(**job)
        what += f", dropout {job['dropout']}" if job["dropout"] else ""
    for _ in range(4):  # a captured step is recorded by then
        run()
    with profile() as p:
        run()
    rows = p.rows.values()
    cost = {
        "operations": sum(r.operations for r in rows),
        "bf16_operations": sum(r.bf16_operations for r in rows),
        "bytes": sum(r.bytes for r in rows),
    }

    def error() -> float:
        dx, dweight = (g.numpy().astype(np.float32) for g in run())
        return gradient_error(job["shape"], dx, dweight)

    serve(f"{job['kind']} {what}", run, start_mb, cost, error)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
