"""A decoder-only Transformer in GPT-2's form (Radford et al. 2019): layer norm before each part,
learned positions, tied embeddings, initial weights N(0, 0.02) with residual projections scaled by 1
/ sqrt(2 · layers)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from minigrad import autograd, nn, ops
from minigrad.precision import active_precision
from minigrad.random import Generator
from minigrad.recompute import checkpoint_activations
from minigrad.tensor import Tensor

# From here on the loss is made without the whole logits: measured at 8192 and 50257 classes, as
# fast or faster and smaller by the logits and their gradient; where those are small, nothing gains.
LARGE_VOCABULARY = 4096


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. `dropout` acts on embeddings, attention weights and both residual
    updates."""

    vocab_size: int
    seq_len: int = 256
    n_layers: int = 6
    n_heads: int = 6
    dim: int = 384
    dropout: float = 0.0
    activation: str = "gelu_tanh"


_init = partial(nn.normal, std=0.02)


def _projection_init(config: GPTConfig) -> Callable[[tuple[int, ...]], Tensor]:
    """Of the layers that end on the residual stream, which is the sum of all of them."""
    return partial(nn.normal, std=0.02 / math.sqrt(2 * config.n_layers))


class FeedForward(nn.Module):
    """Two linear layers around a GELU, four times as wide inside."""

    def __init__(self, config: GPTConfig) -> None:
        dim, wide = config.dim, 4 * config.dim
        self.expand = nn.Linear(dim, wide, activation=config.activation, init=_init)
        self.projection = nn.Linear(wide, dim, init=_projection_init(config))

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.expand(x))


class Block(nn.Module):
    """(stream, update) → (stream, update): each part normalises stream + update in one kernel."""

    def __init__(self, config: GPTConfig) -> None:
        self.norm1 = nn.LayerNorm(config.dim)
        self.attention = nn.MultiheadAttention(
            config.dim,
            config.n_heads,
            dropout=config.dropout,
            causal=True,
            init=_init,
            projection_init=_projection_init(config),
        )
        self.norm2 = nn.LayerNorm(config.dim)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, stream: Tensor, update: Tensor | None = None, cache: nn.KVCache | None = None
    ) -> tuple[Tensor, Tensor]:
        if update is None:
            normed = self.norm1(stream)
        else:
            normed, stream = self.norm1(update, stream)
        attended = self.dropout(self.attention(normed, cache=cache))
        normed, stream = self.norm2(attended, stream)
        return stream, self.dropout(self.feed_forward(normed))


class GPT(nn.Module):
    """Tokens (B, T) → logits (B, T, vocab_size). With `checkpoint_activations` a block keeps only
    its inputs for backward and is computed again there."""

    def __init__(self, config: GPTConfig, checkpoint_activations: bool = False) -> None:
        self.config, self.checkpoint_activations = config, checkpoint_activations
        self.token = nn.Embedding(config.vocab_size, config.dim, init=_init)
        self.position = nn.Embedding(config.seq_len, config.dim, init=_init)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = [Block(config) for _ in range(config.n_layers)]
        self.norm = nn.LayerNorm(config.dim)

    def features(self, tokens: Tensor, caches: list[nn.KVCache] | None = None) -> Tensor:
        """The final, normalised states (B, T, dim)."""
        start = caches[0].length if caches else 0
        length = tokens.shape[1]
        if start + length > self.config.seq_len:
            raise ValueError(
                f"GPT: {start + length} tokens do not fit the context of {self.config.seq_len}"
            )
        stream = self.dropout(self.token(tokens) + self.position.weight[start : start + length])
        update = None
        for i, block in enumerate(self.blocks):
            if self.checkpoint_activations and caches is None:
                given = (stream,) if update is None else (stream, update)
                stream, update = checkpoint_activations(block, *given)
            else:
                stream, update = block(stream, update, caches[i] if caches else None)
        if update is None:
            return self.norm(stream)
        return self.norm(update, stream)[0]

    def forward(self, tokens: Tensor, caches: list[nn.KVCache] | None = None) -> Tensor:
        return ops.linear(self.features(tokens, caches), self.token.weight)

    def loss(self, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats a token; targets (B, T), -100 where none."""
        # In mixed precision the head is a product of bfloat16, which only `linear` does.
        if self.config.vocab_size >= LARGE_VOCABULARY and active_precision() == "fp32":
            return ops.linear_cross_entropy(
                self.features(tokens), self.token.weight, targets, reduction=reduction
            )
        return ops.cross_entropy(self(tokens), targets, reduction=reduction)

    def generate(
        self,
        prompt: np.ndarray,
        n_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Generator | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """`prompt` (T,) and `n_tokens` sampled after it, by a key-value cache.

        `temperature` 0 takes the likeliest token; `top_k` and `top_p` keep only the likeliest, by
        count and by total probability (Holtzman et al. 2019). When the context is full, it starts
        again from its last half.
        """
        if prompt.size == 0:
            raise ValueError("generate: the prompt needs at least one token")
        if temperature < 0 or (top_k is not None and top_k < 1):
            raise ValueError("generate: expected temperature >= 0 and top_k >= 1")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"generate: expected top_p in (0, 1], got {top_p}")
        was_training = self.training
        self.eval()
        tokens = [int(t) for t in prompt]
        caches: list[nn.KVCache] = []
        pending = tokens[-self.config.seq_len :]
        generator = generator or Generator(0)
        try:
            with autograd.no_grad():
                for _ in range(n_tokens):
                    if not caches or caches[0].length + len(pending) > self.config.seq_len:
                        if caches:
                            pending = tokens[-(self.config.seq_len // 2 or 1) :]
                        caches = [nn.KVCache() for _ in self.blocks]
                    states = self.features(ops.tensor([pending]), caches)
                    logits = ops.linear(states[:, -1], self.token.weight).numpy()[0]
                    draw = float(ops.rand((), generator=generator).item())
                    token = choose(logits, draw, temperature, top_k, top_p)
                    tokens.append(token)
                    pending = [token]
                    if on_token:
                        on_token(token)
        finally:
            self.train(was_training)
        return np.array(tokens, dtype=np.int64)


def choose(
    logits: np.ndarray,
    draw: float,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> int:
    """The token that `draw`, uniform on [0, 1), picks from logits (V,)."""
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[:top_k]
    scaled = logits[order].astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    if top_p is not None:
        keep = int(np.searchsorted(np.cumsum(p), top_p)) + 1
        order, p = order[:keep], p[:keep] / p[:keep].sum()
    return int(order[min(int(np.searchsorted(np.cumsum(p), draw, side="right")), len(p) - 1)])
