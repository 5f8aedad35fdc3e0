"""Running an entry on the PTX machine, and judging what came out."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad import ptx

from . import Entry, Run, parameters, program


def start(run: Run, architecture: int, **options: Any) -> Any:
    """Runs an entry's start on the machine; its arrays hold the results afterwards."""
    compiled = program(run.launch, architecture)
    grid = tuple(run.launch.grid) + (1,) * (3 - len(run.launch.grid))
    return ptx.run(
        compiled.text,
        compiled.kernel,
        grid,
        compiled.block,
        parameters(run.launch, compiled, grid),
        shared_bytes=compiled.shared_bytes,
        **options,
    )


def check(entry: Entry, run: Run, result: Any) -> None:
    """Errors are relative to the largest magnitude of a row (what the last axis holds), or to a
    thousandth of the array's where a row vanishes."""
    if entry.prints is not None:
        assert result.output == entry.prints
    for at, want in run.expected.items():
        got = run.launch.arguments[at]
        label = f"{entry.name}, argument {at}"
        if entry.tolerance == 0:
            np.testing.assert_array_equal(got.astype(want.dtype), want, label)
            continue
        tolerance = 1e-14 if got.dtype == np.float64 else entry.tolerance
        got, want = got.astype(np.float64), want.astype(np.float64)
        assert got.shape == want.shape, label
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want), label)
        finite = np.where(np.isfinite(want), np.abs(want), 0)
        largest = np.maximum(finite.max(-1, keepdims=True, initial=0), 1e-3 * finite.max(initial=0))
        allowed = tolerance * largest
        with np.errstate(invalid="ignore"):
            wrong = (got != want) & ~(np.abs(got - want) <= allowed) & ~np.isnan(want)
        if wrong.any():
            worst = np.unravel_index(np.argmax(np.where(wrong, np.abs(got - want), 0)), got.shape)
            raise AssertionError(
                f"{label}: {wrong.sum()} of {wrong.size} differ; at {tuple(map(int, worst))} "
                f"{got[worst]} instead of {want[worst]}, allowed {allowed[*worst[:-1], 0]}"
            )


def outputs(run: Run) -> bytes:
    """The bits of all arrays after a run."""
    arrays = [a for a in run.launch.arguments if isinstance(a, np.ndarray)]
    return b"".join(a.tobytes() for a in arrays)
