"""What a step that is being recorded (`mg.capture`) must know of work outside of kernels.

A replay runs the recorded launches again, not the Python between them. So whatever else belongs to
a step says so here: counts and cells that every replay writes anew (`repeat`, `cell`),
conditions under which the recording holds (`guard`), and what a replay could not do (`refuse`).
Where nothing is being recorded these do nothing, or the plain thing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from minigrad.tensor import Tensor


class Notes:
    """What one recording was told: actions in order, among its launches."""

    def __init__(self) -> None:
        self.entries: list[Any] = []  # actions, and launches as `capture` has them
        self.cells: list[np.ndarray] = []
        self.guards: list[Callable[[], bool]] = []
        self.leaves: dict[Tensor, None] = {}  # whose gradients were set


class _Active(threading.local):
    notes: Notes | None = None


_active = _Active()


def active() -> bool:
    """Whether this thread is recording a step."""
    return _active.notes is not None


@contextlib.contextmanager
def noted() -> Iterator[Notes]:
    """Within the block (of this thread), a step is being recorded; its notes."""
    notes = _active.notes = Notes()
    try:
        yield notes
    finally:
        _active.notes = None


def repeat(action: Callable[[], None]) -> None:
    """Does `action` now, and again at this place in every replay of the step being recorded."""
    action()
    if _active.notes is not None:
        _active.notes.entries.append(action)


def cell(array: np.ndarray) -> np.ndarray:
    """The array itself, which a repeated action fills: its values may differ from step to step."""
    if _active.notes is not None:
        _active.notes.cells.append(array)
    return array


def note_leaf(leaf: Tensor) -> None:
    """Notes that the step being recorded set the gradient of this leaf."""
    if _active.notes is not None:
        _active.notes.leaves[leaf] = None


def has_leaf(leaf: Tensor) -> bool:
    """Whether the step being recorded set the gradient of this leaf."""
    return _active.notes is not None and leaf in _active.notes.leaves


def guard(holds: Callable[[], bool]) -> None:
    """The recording is made anew once `holds()` is false."""
    if _active.notes is not None:
        _active.notes.guards.append(holds)


def refuse(what: str, instead: str) -> None:
    """Raises where a step is being recorded, for what a replay could not do."""
    if _active.notes is not None:
        raise RuntimeError(
            f"{what}: a captured step is replayed without its Python, so this would not happen "
            f"again; {instead}"
        )
