"""PyTorch's side of a benchmark, eager or compiled: `python -m minigrad.bench.peer_torch JOB`.

The only file that imports torch; nothing imports it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

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
)
from minigrad.train.config import SIZES

Run = Callable[[], Any]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Block(torch.nn.Module):
    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = torch.nn.LayerNorm(dim), torch.nn.LayerNorm(dim)
        self.qkv, self.projection = torch.nn.Linear(dim, 3 * dim), torch.nn.Linear(dim, dim)
        self.expand, self.contract = torch.nn.Linear(dim, 4 * dim), torch.nn.Linear(4 * dim, dim)

    def forward(self, x: Any, cache: Any = None, start: int = 0) -> Any:
        """`cache` (2, B, H, capacity, D), of which `start` tokens are there."""
        b, t, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.n_heads, dim // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            cache[:, :, :, start : start + t] = torch.stack((k, v))
            k, v = cache[:, :, :, : start + t]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
        x = x + self.projection(y.transpose(1, 2).reshape(b, t, dim))
        return x + self.contract(F.gelu(self.expand(self.norm2(x)), approximate="tanh"))


class GPT(torch.nn.Module):
    def __init__(
        self, vocab_size: int, seq_len: int, n_layers: int, n_heads: int, dim: int
    ) -> None:
        super().__init__()
        self.token = torch.nn.Embedding(vocab_size, dim)
        self.position = torch.nn.Embedding(seq_len, dim)
        self.blocks = torch.nn.ModuleList([Block(dim, n_heads) for _ in range(n_layers)])
        self.norm = torch.nn.LayerNorm(dim)
        for p in self.parameters():
            if p.ndim == 2:
                torch.nn.init.normal_(p, 0, 0.02)

    def features(self, tokens: Any, caches: Any, start: int) -> Any:
        x = self.token(tokens) + self.position.weight[start : start + tokens.shape[1]]
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cache, start)
        return self.norm(x)

    def forward(self, tokens: Any) -> Any:
        none = [None] * len(self.blocks)
        return F.linear(self.features(tokens, none, 0), self.token.weight)

    def generate(self, prompt: Any, n_tokens: int) -> Any:
        """The likeliest tokens, by a cache that is made once and written in place."""
        b, end = prompt.shape
        heads: Any = self.blocks[0].n_heads
        context, dim = self.position.weight.shape
        dtype = self.position.weight.dtype
        caches = torch.zeros(len(self.blocks), 2, b, heads, context, dim // heads, dtype=dtype)
        tokens = torch.empty(b, end + n_tokens, dtype=torch.int64)
        tokens[:, :end] = prompt
        start = 0
        for at in range(end, end + n_tokens):
            states = self.features(tokens[:, start:at], caches, start)[:, -1]
            tokens[:, at] = F.linear(states, self.token.weight).argmax(-1)
            start = at
        return tokens


def step(size: str, form: str, compiled: bool) -> Run:
    """One training step: of an MLP, or of a GPT; the loss and its gradients compiled if asked."""
    if size in MLP_STEPS:
        return _mlp_step(size, compiled)
    shape = dict(SIZES[size])
    batch = shape.pop("batch_size")
    model = GPT(**shape)
    rng = np.random.default_rng(0)
    draw = (batch, shape["seq_len"])
    tokens = torch.tensor(rng.integers(0, shape["vocab_size"], draw))
    targets = torch.tensor(rng.integers(0, shape["vocab_size"], draw)).view(-1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)

    def loss_of() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=form == "bf16"):
            return F.cross_entropy(model(tokens).view(-1, shape["vocab_size"]), targets)

    return _stepping(loss_of, optimizer, compiled)


def _stepping(loss_of: Callable[[], Any], optimizer: Any, compiled: bool) -> Run:
    made = torch.compile(loss_of) if compiled else loss_of

    def run() -> float:
        optimizer.zero_grad()
        loss = made()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def _mlp_step(size: str, compiled: bool) -> Run:
    arrays, x, y = mlp_data()
    inputs, targets = torch.tensor(x), torch.tensor(y)
    model = torch.nn.Sequential(
        torch.nn.Linear(*MLP_SIZES[:2]), torch.nn.ReLU(), torch.nn.Linear(*MLP_SIZES[1:])
    )
    with torch.no_grad():
        for p, array in zip(model.parameters(), arrays, strict=True):
            p.copy_(torch.tensor(array))
    kind = torch.optim.SGD if size == "mlp-sgd" else torch.optim.AdamW
    optimizer = kind(model.parameters(), lr=MLP_RATE, fused=True)
    return _stepping(lambda: F.cross_entropy(model(inputs), targets), optimizer, compiled)


def generation(job: dict[str, Any]) -> Run:
    """A batch of prompts continued by the likeliest tokens; of bfloat16 weights if asked."""
    model = GPT(**{k: v for k, v in SIZES[job["size"]].items() if k != "batch_size"}).eval()
    if job["precision"] == "bf16":
        model = model.to(torch.bfloat16)
    prompt = torch.tensor(prompts(job))

    def run() -> Any:
        with torch.inference_mode():
            return model.generate(prompt, job["tokens"])

    return run


def _chain(x: Any) -> Any:
    for _ in range(CHAIN):
        x = x + x
    return x


def _operation(job: dict[str, Any]) -> tuple[Callable[..., Any], list[Any]]:
    """What a job computes, and of what: all of it bfloat16 in bf16, a weight as autocast has cast
    it."""
    kind, shape = job["kind"], job["shape"]

    def given(seed: int, *shape: int) -> Any:
        return torch.tensor(normal(seed, *shape)).to(DTYPES[job["precision"]])

    if kind in ("attention", "attention_varlen"):
        # of several lengths: padded, and causal, so that what stands behind a sequence's end is
        # not seen by its tokens
        options: dict[str, Any] = {"is_causal": True, "dropout_p": job["dropout"]}
        return partial(F.scaled_dot_product_attention, **options), [
            given(i, *shape) for i in range(3)
        ]
    if kind == "matmul":
        m, k, n = shape
        return F.linear, [given(0, m, k), given(1, n, k)]
    if kind == "linear_cross_entropy":
        x, w, target = linear_cross_entropy_inputs(shape)
        targets = torch.tensor(target)
        return lambda x, w: F.cross_entropy(F.linear(x, w), targets), [
            torch.tensor(a).to(DTYPES[job["precision"]]) for a in (x, w)
        ]
    if kind == "layer_norm":
        n = shape[-1]
        return lambda x, w, b: F.layer_norm(x, (n,), w, b), [
            given(0, *shape), given(1, n), given(2, n)
        ]  # fmt: skip
    if kind == "cross_entropy":
        classes = torch.tensor(np.random.default_rng(0).integers(0, shape[1], shape[0]))
        return lambda x: F.cross_entropy(x, classes), [given(0, *shape)]
    if kind == "add":
        return torch.add, [given(0, *shape), given(1, *shape)]
    function: Any = {"chain": _chain, "softmax": partial(F.softmax, dim=-1), "gelu": F.gelu}[kind]
    return function, [given(0, *shape)]


def kernel(job: dict[str, Any], compiled: bool) -> Run:
    """A kernel forward, with all gradients, or (of a linear layer) with one gradient alone."""
    shape, what = job["shape"], job["what"]
    if job["kind"] == "adamw":
        parameter = torch.tensor(normal(0, *shape), requires_grad=True)
        parameter.grad = torch.tensor(normal(1, *shape))
        step = torch.optim.AdamW([parameter], fused=True).step
        return torch.compile(step) if compiled else step
    forward, inputs = _operation(job)
    forward = torch.compile(forward) if compiled else forward

    def without_graph() -> Any:
        with torch.no_grad():
            return forward(*inputs)

    if what == "fwd":
        return without_graph
    out = without_graph()
    array = normal(99, *out.shape) if out.ndim else np.ones((), np.float32)
    seed = torch.tensor(array).to(out.dtype)
    for x in inputs:
        x.requires_grad_()
    if what == "fwd+bwd":
        return lambda: torch.autograd.grad(forward(*inputs), inputs, seed)
    graph, wanted = forward(*inputs), inputs[("dx", "dw").index(what)]
    return lambda: torch.autograd.grad(graph, wanted, seed, retain_graph=True)


def _instructions() -> str:
    """What torch's own kernels use, and what its libraries are held to where they are."""
    libraries = {"oneDNN": "ONEDNN_MAX_CPU_ISA", "MKL": "MKL_ENABLE_INSTRUCTIONS"}
    held = [f"{name} at most {os.environ[v]}" for name, v in libraries.items() if v in os.environ]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *held])


def main(job: dict[str, Any]) -> None:
    start_mb = peak_mb()
    torch.set_num_threads(job["threads"])
    torch.set_flush_denormal(True)  # ours runs so, too
    torch.manual_seed(0)
    compiled, form = job["compile"], job["precision"]
    if job["kind"] == "step":
        run = step(job["size"], form, compiled)
    else:
        run = generation(job) if job["kind"] == "generate" else kernel(job, compiled)
    mode = "compiled" if compiled else "eager"

    def error() -> float:
        dx, dweight = (g.float().numpy() for g in run())
        return gradient_error(job["shape"], dx, dweight)

    what = f"torch {torch.__version__} {mode} {form}, {_instructions()}"
    serve(what, run, start_mb, error=error)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
