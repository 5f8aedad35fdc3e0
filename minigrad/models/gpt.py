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
from minigrad.arguments import integer, number, probability, shown
from minigrad.capture import capture
from minigrad.ops.matmul import check_activation
from minigrad.precision import operand_dtype
from minigrad.random import Generator
from minigrad.recompute import checkpoint_activations
from minigrad.tensor import Tensor, TensorLike

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

    def __post_init__(self) -> None:
        op = "GPTConfig"
        for name in ("vocab_size", "seq_len", "n_layers", "n_heads", "dim"):
            integer(op, name, getattr(self, name), 1)
        if self.dim % self.n_heads:
            raise ValueError(f"{op}: dim {self.dim} is no multiple of n_heads {self.n_heads}")
        probability(op, "dropout", self.dropout)
        check_activation(op, self.activation)


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
        dtype = operand_dtype()  # norms feed linear layers
        if update is None:
            normed = self.norm1(stream, dtype=dtype)
        else:
            normed, stream = self.norm1(update, stream, dtype)
        attended = self.dropout(self.attention(normed, cache=cache))
        normed, stream = self.norm2(attended, stream, dtype)
        return stream, self.dropout(self.feed_forward(normed))


class GPT(nn.Module):
    """Tokens (B, T) → logits (B, T, vocab_size). With `checkpoint_activations` a block keeps only
    its inputs for backward and is computed again there."""

    def __init__(self, config: GPTConfig, checkpoint_activations: bool = False) -> None:
        if not isinstance(config, GPTConfig):
            raise TypeError(f"GPT: expected a GPTConfig, got {shown(config)}")
        self.config, self.checkpoint_activations = config, checkpoint_activations
        self.token = nn.Embedding(config.vocab_size, config.dim, init=_init)
        self.position = nn.Embedding(config.seq_len, config.dim, init=_init)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = [Block(config) for _ in range(config.n_layers)]
        self.norm = nn.LayerNorm(config.dim)

    def features(self, tokens: TensorLike, caches: list[nn.KVCache] | None = None) -> Tensor:
        """The final, normalised states (B, T, dim)."""
        tokens = ops.as_tensor(tokens)
        if tokens.ndim != 2:
            raise ValueError(f"GPT: expected tokens (B, T), got shape {tokens.shape}")
        start = caches[0].length if caches else 0
        length = tokens.shape[1]
        if start + length > self.config.seq_len:
            raise ValueError(
                f"GPT: {start + length} tokens do not fit the context of {self.config.seq_len}"
            )
        if caches:
            position = self.position(caches[0].positions(length))
        else:
            position = self.position.weight[:length]
        stream = self.dropout(self.token(tokens) + position)
        update = None
        for i, block in enumerate(self.blocks):
            if self.checkpoint_activations and caches is None:
                given = (stream,) if update is None else (stream, update)
                stream, update = checkpoint_activations(block, *given)
            else:
                stream, update = block(stream, update, caches[i] if caches else None)
        if update is None:
            return self.norm(stream, dtype=operand_dtype())
        return self.norm(update, stream, operand_dtype())[0]

    def forward(self, tokens: TensorLike, caches: list[nn.KVCache] | None = None) -> Tensor:
        return ops.linear(self.features(tokens, caches), self.token.weight)

    def loss(self, tokens: TensorLike, targets: TensorLike, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats a token; targets (B, T), -100 where none."""
        if self.config.vocab_size >= LARGE_VOCABULARY:
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
        on_token: Callable[[np.ndarray], None] | None = None,
    ) -> np.ndarray:
        """`prompt` (T,) or (B, T) and `n_tokens` sampled after each row, by a key-value cache:
        (T + n_tokens,) or (B, T + n_tokens), int64.

        `temperature` 0 takes the likeliest token; `top_k` and `top_p` keep only the likeliest, by
        count and by total probability (Holtzman et al. 2019). Row b of a step is drawn by element b
        of a stream of `generator`. `on_token` is called with every new token, () or (B,). When the
        context is full, it starts again from its last half.
        """
        prompt = self._checked_prompt(prompt)
        n_tokens = integer("generate", "n_tokens", n_tokens, 0)
        temperature = number("generate", "temperature", temperature)
        if not temperature >= 0:
            raise ValueError(f"generate: temperature must be at least 0, got {temperature}")
        if top_k is not None:
            top_k = integer("generate", "top_k", top_k, 1)
        if top_p is not None and not 0 < number("generate", "top_p", top_p) <= 1:
            raise ValueError(f"generate: expected top_p in (0, 1], got {top_p}")
        rows = prompt.reshape(-1, prompt.shape[-1])
        begin, end = rows.shape[1], rows.shape[1] + n_tokens
        try:
            tokens = np.empty((len(rows), end), np.int64)
        except MemoryError as error:
            raise MemoryError(f"generate: {error}") from None
        tokens[:, :begin] = rows
        generator = Generator(0) if generator is None else generator
        was_training = self.training
        self.eval()
        try:
            with autograd.no_grad():
                decoder = _Decoder(self)
                for t in range(begin, end):
                    logits = decoder.next_logits(tokens[:, :t])
                    draws = None
                    if temperature > 0:
                        draws = ops.rand((len(rows),), generator=generator).numpy()
                    tokens[:, t] = choose(logits, draws, temperature, top_k, top_p)
                    if on_token:
                        on_token(tokens[:, t].reshape(prompt.shape[:-1]).copy())
        finally:
            self.train(was_training)
        return tokens.reshape(*prompt.shape[:-1], -1)

    def _checked_prompt(self, prompt: np.ndarray) -> np.ndarray:
        try:
            tokens = np.asarray(prompt)
        except ValueError:
            raise ValueError(f"generate: rows of different lengths: {shown(prompt)}") from None
        if tokens.ndim in (1, 2) and tokens.size == 0:
            raise ValueError("generate: the prompt needs at least one token")
        if tokens.ndim not in (1, 2) or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(
                f"generate: expected a prompt (T,) or (B, T) of integers, got shape {tokens.shape} "
                f"of {tokens.dtype}"
            )
        outside = (tokens < 0) | (tokens >= self.config.vocab_size)
        if outside.any():
            raise IndexError(
                f"generate: token {tokens[outside][0]} is outside the vocabulary, "
                f"[0, {self.config.vocab_size})"
            )
        return tokens


class _Decoder:
    """The logits after rows of tokens that grow: what is new in them runs through caches, a single
    token, which does the same every time, as a captured step."""

    def __init__(self, model: GPT) -> None:
        self.context = model.config.seq_len
        self.caches = caches = [nn.KVCache(self.context) for _ in model.blocks]
        self.n_seen = 0

        def run(tokens: Tensor) -> Tensor:  # no method: a cycle would hold the caches
            return ops.linear(model.features(tokens, caches)[:, -1], model.token.weight)

        plain = autograd.is_anomaly_enabled()  # reads every result, which no replay does
        self.run: Callable[[Tensor], Tensor] = run
        self.run_one: Callable[[Tensor], Tensor] = run if plain else capture(run)

    def next_logits(self, tokens: np.ndarray) -> np.ndarray:
        """(B, V) after tokens (B, T), which begin with those of the call before."""
        first = self.caches[0]
        n_new = tokens.shape[1] - self.n_seen
        if self.n_seen == 0:
            n_new = min(n_new, self.context)
        elif first.length + n_new > self.context:
            n_new = self.context // 2 or 1
            for cache in self.caches:
                cache.reset()
        self.n_seen = tokens.shape[1]
        run = self.run_one if n_new == 1 and first.keys is not None else self.run
        return run(ops.tensor(tokens[:, -n_new:])).numpy()


def choose(
    logits: np.ndarray,
    draws: np.ndarray | None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> np.ndarray:
    """The tokens (B,) that draws (B,), uniform on [0, 1), pick from logits (B, V); temperature 0
    needs none."""
    if temperature == 0 or draws is None:
        return logits.argmax(-1)
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]
    scaled = np.take_along_axis(logits, order, -1).astype(np.float64) / temperature
    p = np.exp(scaled - scaled[:, :1])
    p /= p.sum(-1, keepdims=True)
    n_kept = np.full(len(p), p.shape[1])
    if top_p is not None:
        n_kept = 1 + (np.cumsum(p, -1)[:, :-1] < top_p).sum(-1)
        p = np.where(np.arange(p.shape[1]) < n_kept[:, None], p, 0)
        p /= p.sum(-1, keepdims=True)
    picked = (np.cumsum(p, -1) <= draws[:, None]).sum(-1)
    picked = np.minimum(picked, n_kept - 1)
    return np.take_along_axis(order, picked[:, None], -1)[:, 0]
