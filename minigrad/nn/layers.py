"""Layers: names and initialisation follow PyTorch, weights are (out, in)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from minigrad import ops
from minigrad.dispatch import launch
from minigrad.nn.module import Module
from minigrad.random import Generator
from minigrad.tensor import Tensor

Initialiser = Callable[[tuple[int, ...]], Tensor]  # the shape of a parameter → the parameter


def uniform(shape: tuple[int, ...], bound: float, generator: Generator | None = None) -> Tensor:
    """A parameter drawn from [-bound, bound)."""
    return _scaled(ops.rand(shape, generator=generator) - 0.5, 2 * bound)


def normal(shape: tuple[int, ...], std: float, generator: Generator | None = None) -> Tensor:
    """A parameter drawn from N(0, std²)."""
    return _scaled(ops.randn(shape, generator=generator), std)


def _scaled(drawn: Tensor, factor: float) -> Tensor:
    """The same tensor as a parameter, multiplied in place."""
    launch("scale", [drawn._array], np.array([factor]))
    return drawn.requires_grad_()


class Linear(Module):
    """activation(x Wᵀ + b): (…, in) → (…, out). Both drawn from U(-1/√in, 1/√in); with `init`, the
    weight is init((out, in)) and the bias 0."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | None = None,
        generator: Generator | None = None,
        init: Initialiser | None = None,
    ) -> None:
        shape = out_features, in_features
        if init is None:
            bound = 1 / math.sqrt(in_features) if in_features else 0.0
            self.weight = uniform(shape, bound, generator)
            self.bias = uniform(shape[:1], bound, generator) if bias else None
        else:
            self.weight = init(shape)
            self.bias = ops.zeros(shape[:1], requires_grad=True) if bias else None
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias, self.activation)


class Embedding(Module):
    """Rows of a (n_embeddings, dim) table, drawn from N(0, 1), or init((n_embeddings, dim))."""

    def __init__(
        self,
        n_embeddings: int,
        dim: int,
        generator: Generator | None = None,
        init: Initialiser | None = None,
    ) -> None:
        shape = n_embeddings, dim
        self.weight = normal(shape, 1.0, generator) if init is None else init(shape)

    def forward(self, indices: Tensor) -> Tensor:
        return ops.embedding(self.weight, indices)


class LayerNorm(Module):
    """Layer norm over the last axis; with `residual`, of the sum, which is also returned."""

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        self.weight = ops.ones((dim,), requires_grad=True)
        self.bias = ops.zeros((dim,), requires_grad=True) if bias else None
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps, residual)


class RMSNorm(Module):
    """RMS norm over the last axis; with `residual`, of the sum, which is also returned."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        self.weight = ops.ones((dim,), requires_grad=True)
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps, residual)


class Dropout(Module):
    """Dropout in training mode, nothing otherwise."""

    def __init__(self, p: float = 0.5, generator: Generator | None = None) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be in [0, 1), got {p}")
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.generator) if self.training and self.p else x


class Activation(Module):
    """A named elementwise function, with its parameter where it has one, as a layer."""

    def __init__(self, name: str, *parameters: float) -> None:
        self.function = getattr(ops, name)
        self.parameters_ = parameters

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parameters_)


class KVCache:
    """Keys and values of the tokens seen so far, (B, Hkv, T, D) each, for decoding a token at a
    time."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
        else:
            self.keys = ops.concat([self.keys, keys], 2)
            self.values = ops.concat([self.values, values], 2)
        return self.keys, self.values


class MultiheadAttention(Module):
    """Self-attention with a packed projection: (B, T, dim) → (B, T, dim).

    `n_kv_heads` below `n_heads` shares keys and values among groups of queries (Ainslie et al.
    2023). `init` and `projection_init` initialise the two layers as `Linear` says.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        causal: bool = False,
        generator: Generator | None = None,
        init: Initialiser | None = None,
        projection_init: Initialiser | None = None,
    ) -> None:
        if dim % n_heads:
            raise ValueError(f"MultiheadAttention: dim {dim} is no multiple of n_heads {n_heads}")
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads or n_heads
        self.head_dim = dim // n_heads
        width = (n_heads + 2 * self.n_kv_heads) * self.head_dim
        self.qkv = Linear(dim, width, bias, generator=generator, init=init)
        self.projection = Linear(dim, dim, bias, generator=generator, init=projection_init)
        self.causal, self.dropout = causal, dropout

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        b, t, dim = x.shape
        qkv = self.qkv(x).reshape(b, t, self.n_heads + 2 * self.n_kv_heads, self.head_dim)
        dropout = self.dropout if self.training else 0.0
        if cache is None:
            out = ops.attention_packed(
                qkv, self.n_heads, causal=self.causal, mask=mask, dropout=dropout
            )
        else:
            ends = [self.n_heads, self.n_heads + self.n_kv_heads]
            q, k, v = ops.split(qkv.permute(0, 2, 1, 3), ends, axis=1)
            k, v = cache.append(k, v)
            out = ops.attention(q, k, v, causal=self.causal, mask=mask, dropout=dropout)
            out = out.permute(0, 2, 1, 3)
        return self.projection(out.reshape(b, t, dim))
