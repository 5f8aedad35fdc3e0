"""The kernels of one step: what they read, what they mean in NumPy, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.cost import Cost, nbytes
from minigrad.ops.linear_bf16 import pack_reference

# Places in the hyperparameter array; csrc/optim.cpp says what each means.
RATE, DECAY, APART, SCALE, EPS, BETA1, BETA2, CORRECT1, CORRECT2, NESTEROV, DAMPENING, OWN = range(
    12
)

Arrays = list[np.ndarray]

# Lists of moments each kernel takes; then come packed copies, two a parameter, or none.
LISTS = {"sgd": 1, "adam": 2, "rmsprop": 2, "adagrad": 1}


def _reference(update: Callable[..., None]) -> Callable[..., None]:
    """A kernel from the update of one tensor: update(hyper, param, gradient, *moments), float64."""

    def run(params: Arrays, grads: Arrays, *rest: Any) -> None:
        *lists, packed, h = rest
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            wide, d = p.astype(np.float64), g.astype(np.float64) * h[SCALE]
            if h[APART]:
                wide *= 1 - h[RATE] * h[DECAY]
            else:
                d += h[DECAY] * wide
            update(h, wide, d, *[m[i] for m in lists if m])
            p[...] = wide
            for b, panels in zip((p.T, p), packed[2 * i : 2 * i + 2], strict=False):
                if panels is not None:
                    pack_reference(b, panels)

    return run


def _sgd(h: np.ndarray, p: np.ndarray, d: np.ndarray, m: np.ndarray | None = None) -> None:
    if m is not None:
        m[...] = h[BETA1] * m + (1 - h[DAMPENING]) * d
        d = d + h[BETA1] * m if h[NESTEROV] else m
    p -= h[RATE] * d


def _adam(h: np.ndarray, p: np.ndarray, d: np.ndarray, m: np.ndarray, s: np.ndarray) -> None:
    m[...] = h[BETA1] * m + (1 - h[BETA1]) * d
    s[...] = h[BETA2] * s + (1 - h[BETA2]) * d * d
    p -= (h[RATE] / h[CORRECT1] * m + h[OWN] * d) / (np.sqrt(s / h[CORRECT2]) + h[EPS])


def _rmsprop(
    h: np.ndarray, p: np.ndarray, d: np.ndarray, s: np.ndarray, m: np.ndarray | None = None
) -> None:
    s[...] = h[BETA2] * s + (1 - h[BETA2]) * d * d
    step = d / (np.sqrt(s) + h[EPS])
    if m is not None:
        m[...] = h[BETA1] * m + step
        step = m
    p -= h[RATE] * step


def _adagrad(h: np.ndarray, p: np.ndarray, d: np.ndarray, s: np.ndarray) -> None:
    s += d * d
    p -= h[RATE] * d / (np.sqrt(s) + h[EPS])


REFERENCE = {
    "sgd": _reference(_sgd),
    "adam": _reference(_adam),
    "rmsprop": _reference(_rmsprop),
    "adagrad": _reference(_adagrad),
}


def _cost(params: Arrays, grads: Arrays, *rest: Any) -> Cost:
    *moments, packed, _ = rest
    changed = nbytes(*params) + sum(nbytes(*m) for m in moments)
    moved = 2 * changed + nbytes(*grads) + nbytes(*packed)
    return Cost(moved, 12 * sum(p.size for p in params))


COST = dict.fromkeys(REFERENCE, _cost)
