"""tinygrad's side of a benchmark, on its CPU device: `python -m minigrad.bench.peer_tinygrad JOB`.

The small jobs only, jitted: the MLP's steps, and `add` and `chain` forward (their gradients are
constants to it, so nothing would run). What they measure is the cost of launching.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from tinygrad import Context, Tensor, TinyJit
from tinygrad.nn.optim import SGD, AdamW

from minigrad.bench.jobs import CHAIN, MLP_RATE, MLP_STEPS, mlp_data, normal, serve

Run = Callable[[], Any]


def step(size: str) -> Run:
    arrays, x, y = mlp_data()
    inputs, targets = Tensor(x).realize(), Tensor(y).realize()
    parameters = [Tensor(a).realize() for a in arrays]
    w1, b1, w2, b2 = parameters
    decay = 0.0 if size == "mlp-sgd" else 0.01
    optimizer = (SGD if size == "mlp-sgd" else AdamW)(parameters, lr=MLP_RATE, weight_decay=decay)

    @TinyJit
    @Context(TRAINING=1)
    def once() -> Any:
        optimizer.zero_grad()
        logits = inputs.linear(w1.T, b1).relu().linear(w2.T, b2)
        loss = logits.sparse_categorical_crossentropy(targets).backward()
        return loss.realize(*optimizer.schedule_step())

    return lambda: once().item()


def _chain(x: Any) -> Any:
    for _ in range(CHAIN):
        x = x + x
    return x


def kernel(job: dict[str, Any]) -> Run:
    forward = Tensor.add if job["kind"] == "add" else _chain
    n_inputs = 2 if job["kind"] == "add" else 1
    inputs = [Tensor(normal(i, *job["shape"])).realize() for i in range(n_inputs)]
    return TinyJit(lambda: forward(*inputs).realize())


def main(job: dict[str, Any]) -> None:
    small = job["kind"] in ("add", "chain") and job["what"] == "fwd"
    if not small and job.get("size") not in MLP_STEPS:
        sys.exit(f"peer_tinygrad: only add and chain fwd, and {', '.join(MLP_STEPS)}; got {job}")
    run = step(job["size"]) if job["kind"] == "step" else kernel(job)
    serve(f"tinygrad {version('tinygrad')} TinyJit fp32", run)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
