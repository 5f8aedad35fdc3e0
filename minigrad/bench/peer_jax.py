"""JAX's side of a benchmark, jitted: `python -m minigrad.bench.peer_jax JOB`.

The small jobs only (`add`, `chain` and the MLP's steps): what they measure is the cost of
launching.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from minigrad.bench.jobs import CHAIN, MLP_RATE, MLP_STEPS, mlp_data, normal, serve

Run = Callable[[], Any]


def _loss(parameters: list[Any], inputs: Any, targets: Any) -> Any:
    w1, b1, w2, b2 = parameters
    logits = jax.nn.relu(inputs @ w1.T + b1) @ w2.T + b2
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1)
    return -picked.mean()


def _sgd(parameters: list[Any], gradients: list[Any], state: Any) -> tuple[list[Any], Any]:
    return [p - MLP_RATE * g for p, g in zip(parameters, gradients, strict=True)], state


def _adamw(parameters: list[Any], gradients: list[Any], state: Any) -> tuple[list[Any], Any]:
    t, means, squares = state
    t = t + 1
    new: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for p, g, m, s in zip(parameters, gradients, means, squares, strict=True):
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
        root = jnp.sqrt(s / (1 - 0.999**t)) + 1e-8
        p = p * (1 - MLP_RATE * 0.01) - MLP_RATE * (m / (1 - 0.9**t)) / root
        for listed, value in zip(new, (p, m, s), strict=True):
            listed.append(value)
    return new[0], (t, new[1], new[2])


def step(size: str) -> Run:
    arrays, x, y = mlp_data()
    inputs, targets = jnp.asarray(x), jnp.asarray(y)
    update = _sgd if size == "mlp-sgd" else _adamw

    def once(parameters: list[Any], state: Any, inputs: Any, targets: Any) -> Any:
        loss, gradients = jax.value_and_grad(_loss)(parameters, inputs, targets)
        return loss, update(parameters, gradients, state)

    jitted = jax.jit(once, donate_argnums=(0, 1))
    parameters: Any = [jnp.asarray(a) for a in arrays]
    zeros = [jnp.zeros_like(p) for p in parameters]
    state: Any = (
        None if size == "mlp-sgd" else (jnp.float32(0), zeros, [jnp.copy(z) for z in zeros])
    )

    def run() -> float:
        nonlocal parameters, state
        loss, (parameters, state) = jitted(parameters, state, inputs, targets)
        return float(loss)

    return run


def _chain(x: Any) -> Any:
    for _ in range(CHAIN):
        x = x + x
    return x


def kernel(job: dict[str, Any]) -> Run:
    forward = jnp.add if job["kind"] == "add" else _chain
    arrays = [jnp.asarray(normal(i, *job["shape"])) for i in range(2 if forward is jnp.add else 1)]
    if not job["backward"]:
        jitted = jax.jit(forward)
        return lambda: jitted(*arrays).block_until_ready()
    seed = jnp.asarray(normal(99, *job["shape"]))
    backward = jax.jit(lambda *given: jax.vjp(forward, *given)[1](seed))
    return lambda: jax.block_until_ready(backward(*arrays))


def main(job: dict[str, Any]) -> None:
    if job["kind"] not in ("add", "chain") and job.get("size") not in MLP_STEPS:
        sys.exit(f"peer_jax: only add, chain and steps {', '.join(MLP_STEPS)}; got {job}")
    run = step(job["size"]) if job["kind"] == "step" else kernel(job)
    serve(f"jax {jax.__version__} jit", run, 0.0, 0.0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
