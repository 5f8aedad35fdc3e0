"""Counter-based random numbers: Philox 4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As
Easy as 1, 2, 3").

Word i of a draw is a function of (seed, stream, i) alone, so a draw has the same bits on every
device and at any thread count, and can be made again instead of stored. A generator hands out one
stream a draw.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from functools import partial

import numpy as np

from minigrad import recording
from minigrad.arguments import integer, shown

_lock = threading.Lock()  # one for all generators, so that they can be copied
os.register_at_fork(  # a child must not find it held by a thread that it does not have
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


class _Cells(threading.local):
    recorded: list[np.ndarray] | None = None
    replayed: Iterator[np.ndarray] | None = None


_cells = _Cells()


@contextlib.contextmanager
def record_cells() -> Iterator[list[np.ndarray]]:
    """Within the block, the cells that this thread's generators hand out are listed, too."""
    before, _cells.recorded = _cells.recorded, []
    try:
        yield _cells.recorded
    finally:
        inner, _cells.recorded = _cells.recorded, before
        if before is not None:
            before.extend(inner)


@contextlib.contextmanager
def replay_cells(cells: list[np.ndarray]) -> Iterator[None]:
    """Within the block, this thread's generators hand out these cells again and do not advance."""
    before, _cells.replayed = _cells.replayed, iter(cells)
    try:
        yield
    finally:
        _cells.replayed = before


class Generator:
    """A seed and the number of the next stream."""

    def __init__(self, seed: int) -> None:
        self.seed = integer("Generator", "seed", seed)
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"Generator: expected a seed in [0, 2^64), got {seed}")
        self.stream = 0

    def next_cell(self) -> np.ndarray:
        """[seed, stream] as uint64, read by kernels through a pointer; advances the stream.

        In a captured step, every replay draws a stream of its own into the cell.
        """
        if _cells.replayed is not None:
            cell = next(_cells.replayed, None)
            if cell is None:
                raise RuntimeError("a recomputation draws more random numbers than what it repeats")
        else:
            cell = recording.cell(np.empty(2, dtype=np.uint64))
            recording.repeat(partial(self._draw, cell))
        if _cells.recorded is not None:
            _cells.recorded.append(cell)
        return cell

    def _draw(self, cell: np.ndarray) -> None:
        with _lock:
            cell[:] = self.seed, self.stream
            self.stream += 1

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "stream": self.stream}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seed, self.stream = int(state["seed"]), int(state["stream"])


_default = Generator(0)


def default_generator() -> Generator:
    """The generator that random functions use when given none."""
    return _default


def next_cell(op: str, generator: Generator | None) -> np.ndarray:
    """The next cell of `generator`, or of the default one for None."""
    if generator is None:
        generator = _default
    elif not isinstance(generator, Generator):
        raise TypeError(
            f"{op}: generator must be a Generator, got {shown(generator)}; mg.Generator(seed) "
            "makes one"
        )
    return generator.next_cell()


def manual_seed(seed: int) -> Generator:
    """Restarts the default generator from `seed` and returns it."""
    _default.load_state_dict({"seed": Generator(seed).seed, "stream": 0})
    return _default


def philox_words(seed: int, stream: int, n: int, start: int = 0) -> np.ndarray:
    """Words start … start+n-1 of a stream (uint32): the definition, in NumPy."""
    index = np.arange(start, start + n, dtype=np.uint64)
    blocks, inverse = np.unique(index >> np.uint64(2), return_inverse=True)
    low = np.uint64(0xFFFFFFFF)
    counter = [
        blocks & low,
        blocks >> np.uint64(32),
        np.full_like(blocks, np.uint64(stream) & low),
        np.full_like(blocks, np.uint64(stream) >> np.uint64(32)),
    ]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first = counter[0] * np.uint64(0xD2511F53)
        second = counter[2] * np.uint64(0xCD9E8D57)
        counter = [
            (second >> np.uint64(32)) ^ counter[1] ^ np.uint64(key[0]),
            second & low,
            (first >> np.uint64(32)) ^ counter[3] ^ np.uint64(key[1]),
            first & low,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    words = np.stack(counter, axis=1)[inverse, index & np.uint64(3)]
    return words.astype(np.uint32)
