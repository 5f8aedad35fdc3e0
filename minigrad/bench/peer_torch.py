"""PyTorch's side of a benchmark, eager or compiled: `python -m minigrad.bench.peer_torch JOB`.

The only file that imports torch; nothing imports it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
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


def _with_backward(
    forward: Callable[..., Any], *arrays: np.ndarray, backward: bool, one: bool = False
) -> Run:
    tensors = [torch.tensor(a, requires_grad=backward) for a in arrays]
    if not backward:

        def run() -> Any:
            with torch.no_grad():
                return forward(*tensors)

        return run
    with torch.no_grad():
        shape = forward(*tensors).shape
    seed = torch.ones(shape) if one else torch.tensor(normal(99, *shape))
    return lambda: torch.autograd.grad(forward(*tensors), tensors, seed)


def kernel(job: dict[str, Any]) -> Run:
    kind, shape, backward = job["kind"], job["shape"], job["backward"]
    if kind == "attention":
        qkv = [normal(i, *shape) for i in range(3)]
        return _with_backward(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            *qkv,
            backward=backward,
        )
    if kind == "matmul":
        m, k, n = shape
        return _with_backward(F.linear, normal(0, m, k), normal(1, n, k), backward=backward)
    if kind == "layer_norm":
        n = shape[-1]
        return _with_backward(
            lambda x, w, b: F.layer_norm(x, (n,), w, b),
            normal(0, *shape),
            normal(1, n),
            normal(2, n),
            backward=backward,
        )
    if kind == "cross_entropy":
        targets = torch.tensor(np.random.default_rng(0).integers(0, shape[1], shape[0]))
        return _with_backward(
            lambda x: F.cross_entropy(x, targets), normal(0, *shape), backward=backward
        )
    if kind == "linear_cross_entropy":
        x, w, target = linear_cross_entropy_inputs(shape)
        targets = torch.tensor(target)
        return _with_backward(
            lambda x, w: F.cross_entropy(F.linear(x, w), targets), x, w, backward=backward, one=True
        )
    if kind == "attention_varlen":
        n, heads, longest, dim = shape
        # padded: causal, so that what stands behind a sequence's end is not seen by its tokens
        qkv = [normal(i, n, heads, longest, dim) for i in range(3)]
        return _with_backward(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            *qkv,
            backward=backward,
        )
    if kind == "add":
        return _with_backward(torch.add, normal(0, *shape), normal(1, *shape), backward=backward)
    if kind == "chain":
        return _with_backward(_chain, normal(0, *shape), backward=backward)
    if kind == "adamw":
        parameter = torch.tensor(normal(0, *shape), requires_grad=True)
        parameter.grad = torch.tensor(normal(1, *shape))
        return torch.optim.AdamW([parameter], fused=True).step
    function = {"softmax": lambda x: F.softmax(x, -1), "gelu": F.gelu}[kind]
    return _with_backward(function, normal(0, *shape), backward=backward)


def main(job: dict[str, Any]) -> None:
    start_mb = peak_mb()
    torch.set_num_threads(job["threads"])
    torch.set_flush_denormal(True)  # ours runs so, too
    torch.manual_seed(0)
    compiled = job["compile"]
    if job["kind"] == "step":
        run = step(job["size"], job["precision"], compiled)
    else:
        run = generation(job) if job["kind"] == "generate" else kernel(job)
    mode = "compiled" if compiled else "eager"
    capability = torch.backends.cpu.get_cpu_capability()

    def error() -> float:
        dx, dweight = run()
        return gradient_error(job["shape"], dx.numpy(), dweight.numpy())

    serve(f"torch {torch.__version__} {mode}, {capability}", run, 0.0, 0.0, start_mb, error)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
