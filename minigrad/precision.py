"""The precision that linear layers multiply in: a mode of the engine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np

from minigrad import dtypes

PRECISIONS = ("fp32", "bf16")


class _Mode(threading.local):
    name = "fp32"


_mode = _Mode()


def active_precision() -> str:
    """The name of the precision in force (in this thread)."""
    return _mode.name


def operand_dtype() -> np.dtype | None:
    """The dtype that `linear` rounds its operands to, None where it does not: what feeds linear
    layers alone may come in it."""
    return dtypes.bfloat16 if _mode.name == "bf16" else None


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Within the block (of this thread), `linear` multiplies in this precision.

    "fp32" leaves everything in the dtype it has. "bf16" (mixed precision, Micikevicius et al. 2018)
    rounds the operands of `linear` to bfloat16 and gives bfloat16 results, so that activations
    after it are bfloat16, too. Sums, statistics and losses stay float32; parameters stay the
    float32 that they are, and so do their gradients. Backward follows what forward did, in the
    block or out of it.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision: unknown {name!r}; expected one of {', '.join(PRECISIONS)}")
    before, _mode.name = _mode.name, name
    try:
        yield
    finally:
        _mode.name = before
