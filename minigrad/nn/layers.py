"""Layers: names and initialisation follow PyTorch, weights are (out, in)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minigrad import ops, recording
from minigrad.arguments import integer, number, probability, shown
from minigrad.dispatch import empty, launch
from minigrad.nn.module import Module
from minigrad.ops.layer_norm import check_eps
from minigrad.ops.matmul import check_activation
from minigrad.random import Generator
from minigrad.tensor import Tensor

Initialiser = Callable[[tuple[int, ...]], Tensor]  # the shape of a parameter → the parameter


def uniform(shape: tuple[int, ...], bound: float, generator: Generator | None = None) -> Tensor:
    """A parameter drawn from [-bound, bound)."""
    bound = number("uniform", "bound", bound)
    return _scaled(ops.rand(shape, generator=generator) - 0.5, 2 * bound)


def normal(shape: tuple[int, ...], std: float, generator: Generator | None = None) -> Tensor:
    """A parameter drawn from N(0, std²)."""
    std = number("normal", "std", std)
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
        check_activation("Linear", activation)
        in_features = integer("Linear", "in_features", in_features, 0)
        shape = integer("Linear", "out_features", out_features, 0), in_features
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
        n_embeddings = integer("Embedding", "n_embeddings", n_embeddings, 0)
        shape = n_embeddings, integer("Embedding", "dim", dim, 0)
        self.weight = normal(shape, 1.0, generator) if init is None else init(shape)

    def forward(self, indices: Tensor) -> Tensor:
        return ops.embedding(self.weight, indices)


class LayerNorm(Module):
    """Layer norm over the last axis; with `residual`, of the sum, which is also returned. `dtype`
    is that of the result, as in `ops.layer_norm`."""

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        dim = integer("LayerNorm", "dim", dim, 0)
        self.weight = ops.ones((dim,), requires_grad=True)
        self.bias = ops.zeros((dim,), requires_grad=True) if bias else None
        self.eps = check_eps("LayerNorm", eps)

    def forward(self, x: Tensor, residual: Tensor | None = None, dtype: Any = None) -> Any:
        return ops.layer_norm(x, self.weight, self.bias, self.eps, residual, dtype)


class RMSNorm(Module):
    """RMS norm over the last axis; with `residual`, of the sum, which is also returned. `dtype` is
    that of the result, as in `ops.rms_norm`."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        self.weight = ops.ones((integer("RMSNorm", "dim", dim, 0),), requires_grad=True)
        self.eps = check_eps("RMSNorm", eps)

    def forward(self, x: Tensor, residual: Tensor | None = None, dtype: Any = None) -> Any:
        return ops.rms_norm(x, self.weight, self.eps, residual, dtype)


class Dropout(Module):
    """Dropout in training mode, nothing otherwise."""

    def __init__(self, p: float = 0.5, generator: Generator | None = None) -> None:
        self.p = probability("Dropout", "p", p)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.generator) if self.training and self.p else x


class Activation(Module):
    """A named elementwise function, with its parameter where it has one, as a layer."""

    def __init__(self, name: str, *parameters: float) -> None:
        if name not in ops.__all__:
            raise ValueError(
                f"Activation: unknown function {shown(name)}; expected the name of an operation, "
                "such as 'relu'"
            )
        self.function = getattr(ops, name)
        self.parameters_ = parameters

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parameters_)


class KVCache:
    """Keys and values of the tokens seen so far, for decoding a few tokens at a time: memory for
    `capacity` tokens, (B, Hkv, capacity, D) each, made at the first use and written in place.
    What lies behind the first `length` tokens has no meaning."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = integer("KVCache", "capacity", capacity, 1), 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._start = np.zeros(1, np.int64)  # the length, as the kernel reads it

    def reset(self) -> None:
        """Forgets the tokens and keeps the memory."""
        self.length = 0

    def positions(self, n: int) -> Tensor:
        """The places that the next n tokens take, (n,) of int64."""
        places = recording.cell(np.empty(n, np.int64))
        recording.repeat(partial(self._place, places))
        return Tensor._wrap(places)

    def _place(self, places: np.ndarray) -> None:
        places[:] = np.arange(self.length, self.length + len(places))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        """Takes up the new k and v (B, Hkv, T, D); the attention of q (B, Hq, T, D) to all so far,
        as `ops.attention_cached`."""
        if self.keys is None or self.values is None:
            recording.refuse("KVCache", "let it see its first tokens before the captured step")
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self.keys, self.values = (
                Tensor._placed(empty(shape, k.dtype), k.device) for _ in range(2)
            )
        n = k.shape[2]
        recording.repeat(partial(self._begin, n))
        start = recording.cell(self._start)
        out = ops.attention_cached(q, k, v, self.keys, self.values, start, causal=causal, mask=mask)
        recording.repeat(partial(self._take_up, n))
        return out

    def _begin(self, n: int) -> None:
        if self.length + n > self.capacity:
            raise ValueError(
                f"KVCache: {n} tokens after {self.length} do not fit its capacity of "
                f"{self.capacity}; make it larger, or reset it and begin with the last ones"
            )
        self._start[0] = self.length

    def _take_up(self, n: int) -> None:
        self.length += n
        for cached in (self.keys, self.values):
            assert cached is not None
            cached.storage.changed()


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
        op = type(self).__name__
        dim, n_heads = integer(op, "dim", dim, 1), integer(op, "n_heads", n_heads, 1)
        n_kv_heads = n_heads if n_kv_heads is None else integer(op, "n_kv_heads", n_kv_heads, 1)
        if dim % n_heads:
            raise ValueError(f"{op}: dim {dim} is no multiple of n_heads {n_heads}")
        if n_heads % n_kv_heads:
            raise ValueError(f"{op}: n_heads {n_heads} is no multiple of n_kv_heads {n_kv_heads}")
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.head_dim = dim // n_heads
        width = (n_heads + 2 * self.n_kv_heads) * self.head_dim
        self.qkv = Linear(dim, width, bias, generator=generator, init=init)
        self.projection = Linear(dim, dim, bias, generator=generator, init=projection_init)
        self.causal, self.dropout = causal, probability(op, "dropout", dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        if x.ndim != 3:
            raise ValueError(f"{type(self).__name__}: expected x (B, T, dim), got shape {x.shape}")
        b, t, dim = x.shape
        qkv = self.qkv(x).reshape(b, t, self.n_heads + 2 * self.n_kv_heads, self.head_dim)
        dropout = self.dropout if self.training else 0.0
        if cache is None:
            out = ops.attention_packed(
                qkv, self.n_heads, causal=self.causal, mask=mask, dropout=dropout
            )
        else:
            if dropout:
                raise ValueError(
                    "MultiheadAttention: decoding by a cache has no dropout; call eval() first"
                )
            ends = [self.n_heads, self.n_heads + self.n_kv_heads]
            q, k, v = ops.split(qkv.permute(0, 2, 1, 3), ends, axis=1)
            out = cache.attend(q, k, v, self.causal, mask).permute(0, 2, 1, 3)
        return self.projection(out.reshape(b, t, dim))
