"""The Witten-Bell character n-gram (Witten and Bell 1991): the baseline that a language model must
beat."""

from __future__ import annotations

import numpy as np


def _codes(tokens: np.ndarray, length: int, vocab_size: int) -> np.ndarray:
    """One number for every window of `length` tokens."""
    out = np.zeros(len(tokens) - length + 1, dtype=np.int64)
    for i in range(length):
        out = out * vocab_size + tokens[i : i + len(out)]
    return out


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values where keys (sorted) has the wanted number, else 0."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def witten_bell(train: np.ndarray, held_out: np.ndarray, vocab_size: int, order: int = 5) -> float:
    """Mean -log p in nats of the held-out tokens, from counts of the training tokens.

    p_n(w | h) = (c(h w) + t(h) p_{n-1}(w | h')) / (c(h) + t(h)), with c counts, t the number of
    different tokens seen after h, h' the context without its oldest token, and p_0 = 1 /
    vocab_size. The first held-out tokens have the end of the training text as their context.
    """
    while order > 1 and float(vocab_size) ** order > 2.0**62:
        order -= 1  # large vocabularies: as long a context as fits 62 bits
    order = min(order, len(train))
    text = np.concatenate([train[len(train) - (order - 1) :], held_out]).astype(np.int64)
    train = train.astype(np.int64)
    n = len(held_out)
    p = np.full(n, 1.0 / vocab_size)
    for length in range(1, order + 1):
        grams, counts = np.unique(_codes(train, length, vocab_size), return_counts=True)
        contexts, first = np.unique(grams // vocab_size, return_index=True)
        totals = np.add.reduceat(counts, first)
        kinds = np.diff(np.append(first, len(grams)))
        start = order - length
        wanted = _codes(text, length, vocab_size)[start : start + n]
        c = _look_up(grams, counts, wanted)
        total = _look_up(contexts, totals, wanted // vocab_size)
        kind = _look_up(contexts, kinds, wanted // vocab_size)
        seen = total > 0
        p = np.where(seen, (c + kind * p) / np.maximum(total + kind, 1), p)
    return float(-np.log(p).mean())
