"""JAX's side of a benchmark, jitted: `python -m minigrad.bench.peer_jax JOB`.

The small jobs (`add`, `chain` and the MLP's steps), which measure the cost of launching, and the
steps of a GPT in float32.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minigrad.bench.jobs import CHAIN, MLP_RATE, MLP_STEPS, mlp_data, normal, serve
from minigrad.train.config import SIZES

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
    if size in MLP_STEPS:
        arrays, inputs, targets = mlp_data()
        return _stepping(_loss, _sgd if size == "mlp-sgd" else _adamw, arrays, inputs, targets)
    shape = dict(SIZES[size])
    draw = shape.pop("batch_size"), shape["seq_len"]
    rng = np.random.default_rng(0)
    inputs, targets = (rng.integers(0, shape["vocab_size"], draw, np.int32) for _ in range(2))
    loss = partial(_gpt_loss, n_heads=shape["n_heads"])
    return _stepping(loss, _adamw, _gpt_parameters(**shape), inputs, targets)


def _gpt_parameters(
    vocab_size: int, seq_len: int, n_layers: int, n_heads: int, dim: int
) -> list[np.ndarray]:
    """Tables of tokens and positions, the last norm, and twelve arrays a block."""
    ones, zeros = np.ones(dim, np.float32), np.zeros(dim, np.float32)
    shapes = ((dim, 3 * dim), (dim, dim), (dim, 4 * dim), (4 * dim, dim))
    tables = [normal(0, vocab_size, dim) * 0.02, normal(1, seq_len, dim) * 0.02]
    parameters: list[np.ndarray] = [*tables, ones, zeros]
    for i in range(n_layers):
        parameters += [ones, zeros, ones, zeros]
        for j, (n_in, n_out) in enumerate(shapes):
            parameters += [normal(4 * i + j, n_in, n_out) * 0.02, np.zeros(n_out, np.float32)]
    return [p.astype(np.float32) for p in parameters]


def _norm(x: Any, weight: Any, bias: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * weight + bias
    )


def _gpt_loss(parameters: list[Any], tokens: Any, targets: Any, n_heads: int) -> Any:
    token, position, *final = parameters[:4]
    x = token[tokens] + position  # (B, T, dim)
    for i in range(4, len(parameters), 12):
        norm1, norm2 = parameters[i : i + 2], parameters[i + 2 : i + 4]
        qkv, bias, projection, projection_bias, expand, expand_bias, contract, contract_bias = (
            parameters[i + 4 : i + 12]
        )
        packed = (_norm(x, *norm1) @ qkv + bias).reshape(*x.shape[:2], 3, n_heads, -1)
        y = jax.nn.dot_product_attention(*(packed[:, :, k] for k in range(3)), is_causal=True)
        x = x + y.reshape(x.shape) @ projection + projection_bias
        x = x + jax.nn.gelu(_norm(x, *norm2) @ expand + expand_bias) @ contract + contract_bias
    log_p = jax.nn.log_softmax(_norm(x, *final) @ token.T)
    return -jnp.take_along_axis(log_p, targets[..., None], -1).mean()


def _stepping(
    loss_of: Callable[..., Any],
    update: Callable[..., Any],
    arrays: list[np.ndarray],
    inputs: np.ndarray,
    targets: np.ndarray,
) -> Run:
    x, y = jnp.asarray(inputs), jnp.asarray(targets)

    def once(parameters: list[Any], state: Any, inputs: Any, targets: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(parameters, inputs, targets)
        return loss, update(parameters, gradients, state)

    jitted = jax.jit(once, donate_argnums=(0, 1))
    parameters: Any = [jnp.asarray(a) for a in arrays]
    zeros = [jnp.zeros_like(p) for p in parameters]
    state: Any = None if update is _sgd else (jnp.float32(0), zeros, [jnp.copy(z) for z in zeros])

    def run() -> float:
        nonlocal parameters, state
        loss, (parameters, state) = jitted(parameters, state, x, y)
        return float(loss)

    return run


def _chain(x: Any) -> Any:
    for _ in range(CHAIN):
        x = x + x
    return x


def kernel(job: dict[str, Any]) -> Run:
    forward = jnp.add if job["kind"] == "add" else _chain
    arrays = [jnp.asarray(normal(i, *job["shape"])) for i in range(2 if forward is jnp.add else 1)]
    if job["what"] == "fwd":
        jitted = jax.jit(forward)
        return lambda: jitted(*arrays).block_until_ready()
    seed = jnp.asarray(normal(99, *job["shape"]))
    backward = jax.jit(lambda *given: jax.vjp(forward, *given)[1](seed))
    return lambda: jax.block_until_ready(backward(*arrays))


def main(job: dict[str, Any]) -> None:
    if job["kind"] not in ("add", "chain", "step") or job["precision"] != "fp32":
        sys.exit(f"peer_jax: only add, chain and steps, in float32; got {job}")
    run = step(job["size"]) if job["kind"] == "step" else kernel(job)
    serve(f"jax {jax.__version__} jit fp32", run)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
