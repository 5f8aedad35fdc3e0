"""Memory: what views of one buffer share, who owns it, and on which device an operation's is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from minigrad import dispatch

if TYPE_CHECKING:
    from minigrad.tensor import Tensor


class Storage:
    """What views of one buffer share: its device, its version, and packed copies made for the
    matrix product."""

    __slots__ = ("device", "packed", "version")

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        if device != "cpu":
            dispatch.elsewhere = True
        self.version = 0
        self.packed: dict[str, tuple[int, np.ndarray]] = {}

    def changed(self) -> None:
        """Notes a change of the memory in place."""
        self.version += 1


def common_device(op: str, tensors: Sequence[Tensor | None]) -> str:
    """The device that an op's tensors are on. Numbers (0-d tensors) go with those that have axes.

    Raises RuntimeError where they are on different ones.
    """
    numbers, found = "cpu", None
    for t in tensors:
        if t is None:
            continue
        device = t.device
        if not t._array.ndim:
            numbers = device if numbers == "cpu" else numbers
        elif found is None:
            found = device
        elif device != found:
            raise RuntimeError(
                f"{op}: one tensor is on {found} and another on {device}; bring them to one "
                f"device, with x.to({found!r}) or x.to({device!r})"
            )
    return found or numbers


def device_away(op: str, *tensors: Tensor | None) -> str | None:
    """The device of an op's tensors (see `common_device`) if it has yet to be activated."""
    if not dispatch.elsewhere:
        return None
    device = common_device(op, tensors)
    return None if device == dispatch.active_device() else device


def owner_of(array: np.ndarray) -> np.ndarray:
    """The array that `array` is a view of, or itself."""
    while array.base.__class__ is np.ndarray:
        array = array.base
    return array
