"""The norm of all gradients together, and the factor that limits it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minigrad import dtypes, recording
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch
from minigrad.optim.optimizer import contiguous_grad
from minigrad.tensor import Tensor


def _sum_squares(arrays: list[np.ndarray], out: np.ndarray) -> None:
    out[...] = sum(float((a.astype(np.float64) ** 2).sum()) for a in arrays)


def _clip_factor(squares: np.ndarray, out: np.ndarray, max_norm: float) -> None:
    out[...] = min(1.0, max_norm / (math.sqrt(squares) + 1e-6))


REFERENCE = {"sum_squares": _sum_squares, "clip_factor": _clip_factor}
COST = {
    "sum_squares": lambda arrays, out: Cost(nbytes(*arrays), 2 * sum(a.size for a in arrays)),
    "clip_factor": lambda squares, out, max_norm: Cost(nbytes(squares, out), 3),
}


def _sum_squares_of(params: Sequence[Tensor]) -> np.ndarray:
    total = empty((), dtypes.float64)
    launch("sum_squares", [contiguous_grad(p) for p in params if p.grad is not None], total)
    return total


def grad_norm(params: Sequence[Tensor]) -> float:
    """The Euclidean norm of all gradients together."""
    recording.refuse("grad_norm", "use clip_scale, which stays with the kernels")
    return math.sqrt(_sum_squares_of(params))


def clip_scale(params: Sequence[Tensor], max_norm: float) -> np.ndarray:
    """What to multiply gradients by so that their norm is at most `max_norm` (0-d, float64); pass
    it to `step`."""
    scale = empty((), dtypes.float64)
    launch("clip_factor", _sum_squares_of(params), scale, max_norm)
    return scale
