"""What holds for the operations of a thread: whether they leave a graph, whether they look for NaN.

The tape and the walk read `mode` itself: for what is small, a function call would be felt.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from minigrad import dtypes

if TYPE_CHECKING:
    from minigrad.tensor import Tensor


class Mode(threading.local):
    grad = True
    anomaly = False


mode = Mode()
# Whether any thread ever looked for anomalies: what a thread's mode says is slow to ask.
anomaly_used = False


def is_grad_enabled() -> bool:
    """Whether operations leave a graph (in this thread)."""
    return mode.grad


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Within the block (of this thread), operations leave no graph."""
    before, mode.grad = mode.grad, False
    try:
        yield
    finally:
        mode.grad = before


@contextlib.contextmanager
def enable_grad() -> Iterator[None]:
    """Within the block, operations leave a graph again, also inside `no_grad`."""
    before, mode.grad = mode.grad, True
    try:
        yield
    finally:
        mode.grad = before


@contextlib.contextmanager
def detect_anomaly() -> Iterator[None]:
    """Within the block, the first NaN raises FloatingPointError naming the op that made it.

    Checks every output of every operation, forward and backward; slow, for hunting only.
    """
    global anomaly_used
    anomaly_used = True
    before, mode.anomaly = mode.anomaly, True
    try:
        yield
    finally:
        mode.anomaly = before


def is_anomaly_enabled() -> bool:
    """Whether results are checked for NaN (in this thread)."""
    return anomaly_used and mode.anomaly


def _has_nan(tensor: Tensor | None) -> bool:
    return (
        tensor is not None
        and dtypes.is_floating(tensor._array.dtype)
        and bool(np.isnan(tensor._array.astype(np.float32)).any())
    )


def check_finite(name: str, tensor: Tensor, what: str, sources: Sequence[Tensor | None]) -> None:
    """Raises FloatingPointError if the tensor has NaN; the message says whether its sources had."""
    if not _has_nan(tensor):
        return
    bad = [t for t in sources if _has_nan(t)]
    if bad:
        assert bad[0] is not None
        origin = f"it came in with what {name} was given (shape {bad[0].shape})"
    else:
        origin = f"nothing that {name} was given had any, so it arose here"
    raise FloatingPointError(
        f"anomaly: the {what} of {name} (shape {tensor.shape}, {tensor.dtype.name}) has NaN; "
        + origin
    )
