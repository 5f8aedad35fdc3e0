"""Dropout (Srivastava et al. 2014). The mask is a function of (seed, stream, index), made again in
backward."""

from __future__ import annotations

import math

import numpy as np

from minigrad.arguments import probability
from minigrad.autograd import Function, Node
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch
from minigrad.ops.creation import as_tensor, copied
from minigrad.random import Generator, next_cell, philox_words
from minigrad.tensor import Tensor, TensorLike

__all__ = ["dropout"]


def keep_mask(shape: tuple[int, ...], p: float, rng: np.ndarray, start: int = 0) -> np.ndarray:
    """Which elements stay: word(seed, stream, start + flat index) >= floor(p · 2^32)."""
    words = philox_words(int(rng[0]), int(rng[1]), math.prod(shape), start)
    return (words >= np.uint32(math.floor(p * 2**32))).reshape(shape)


def _dropout_ref(x: np.ndarray, out: np.ndarray, p: float, rng: np.ndarray) -> None:
    kept = np.where(keep_mask(x.shape, p, rng), x.astype(np.float64) / (1 - p), 0)
    out[...] = kept.astype(out.dtype)


def _random_bits_ref(out: np.ndarray, rng: np.ndarray) -> None:
    out[...] = philox_words(int(rng[0]), int(rng[1]), out.size).reshape(out.shape)


def _unit(words: np.ndarray) -> np.ndarray:
    """53 random bits in [0, 1) from two words each: (n, 2) → (n,) float64."""
    wide = words.astype(np.uint64)
    bits = (wide[:, 0] << np.uint64(21)) ^ (wide[:, 1] >> np.uint64(11))
    return bits.astype(np.float64) * 2**-53


def _draw(rng: np.ndarray, n: int, per: int) -> np.ndarray:
    """`per` words for each of n elements, (n, per)."""
    return philox_words(int(rng[0]), int(rng[1]), n * per).reshape(n, per)


def _uniform_ref(out: np.ndarray, rng: np.ndarray) -> None:
    if out.dtype == np.float32:
        values = (_draw(rng, out.size, 1)[:, 0] >> np.uint32(8)) * 2.0**-24
    else:
        values = _unit(_draw(rng, out.size, 2))
    out[...] = values.reshape(out.shape)


def _normal_ref(out: np.ndarray, rng: np.ndarray) -> None:
    """Box and Muller (1958), the cosine branch."""
    if out.dtype == np.float32:
        first, second = (_draw(rng, out.size, 2) >> np.uint32(8)).T * 2.0**-24
    else:
        words = _draw(rng, out.size, 4)
        first, second = _unit(words[:, :2]), _unit(words[:, 2:])
    values = np.sqrt(-2 * np.log(1 - first)) * np.cos((second - 0.5) * 2 * np.pi)
    out[...] = values.reshape(out.shape)


REFERENCE = {
    "dropout": _dropout_ref,
    "random_bits": _random_bits_ref,
    "random_uniform": _uniform_ref,
    "random_normal": _normal_ref,
}
COST = {
    "dropout": lambda x, out, p, rng: Cost(nbytes(x, out), x.size),
    "random_bits": lambda out, rng: Cost(nbytes(out), 0),
    "random_uniform": lambda out, rng: Cost(nbytes(out), 0),
    "random_normal": lambda out, rng: Cost(nbytes(out), 0),
}


class Dropout(Function):
    @staticmethod
    def forward(ctx: Node, x: np.ndarray, p: float, rng: np.ndarray) -> np.ndarray:
        ctx.p, ctx.rng = p, rng
        out = empty(x.shape, x.dtype)
        launch("dropout", x if x.flags.c_contiguous else copied(x), out, p, rng)
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return Dropout.apply(g, p=ctx.p, rng=ctx.rng)


def dropout(
    x: TensorLike,
    p: float,
    generator: Generator | None = None,
    rng: np.ndarray | None = None,
) -> Tensor:
    """x with elements zeroed with probability p and the others scaled by 1 / (1 - p).

    Always active: layers decide by their mode. Draws one stream of `generator` (the default one for
    None), or takes the cell `rng`, [seed, stream] as uint64.
    """
    p = probability("dropout", "p", p)
    x = as_tensor(x)
    if p == 0:
        return x
    cell = next_cell("dropout", generator) if rng is None else rng
    return Dropout.apply(x, p=float(p), rng=cell)
