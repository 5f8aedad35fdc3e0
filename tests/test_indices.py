"""Checks and counts of indices and targets, and the factor that clips gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest

import minigrad as mg
from minigrad.dispatch import launch

SETS = ["native", "ref"] if mg.levels() else ["ref"]


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_check_range_finds_what_is_outside(dtype: str, kernels: str) -> None:
    with mg.use_kernels(kernels):
        for fine in ([], [0, 4, 2], [[4], [0]]):
            launch("check_range", np.array(fine, dtype), 5, False, 0)
        launch("check_range", np.array([1, -100, 4], dtype), 5, True, -100)
        for bad, first in (([0, 5, -1], 5), ([-1, 5], -1), ([[0], [-100]], -100)):
            with pytest.raises(IndexError, match=rf"index {first} .*outside \[0, 5\)"):
                launch("check_range", np.array(bad, dtype), 5, False, 0)
        with pytest.raises(IndexError, match=r"index 0 .*outside \[0, 0\)"):
            launch("check_range", np.array([0], dtype), 0, False, 0)


@pytest.mark.skipif(not mg.levels(), reason="the native kernels are not built")
def test_indices_must_be_contiguous_integers(level: str) -> None:
    with pytest.raises(ValueError, match="check_range: expected contiguous indices"):
        launch("check_range", np.arange(6)[::2], 9, False, 0)
    with pytest.raises(ValueError, match="check_range: no kernel for dtype float32"):
        launch("check_range", np.zeros(3, np.float32), 9, False, 0)


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("n_ignored", [0, 1, 6, 7])
def test_row_share_counts_what_is_used(n_ignored: int, wide: str, dtype: str, kernels: str) -> None:
    targets = np.arange(7).astype(dtype)
    targets[:n_ignored] = -100
    out = np.zeros((), wide)
    with mg.use_kernels(kernels):
        launch("row_share", targets, out, -100)
    expected = 1 / (7 - n_ignored) if n_ignored < 7 else math.nan
    assert np.array_equal(out, np.array(expected, wide), equal_nan=True)


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("norm", [0.0, 0.5, 1.0, 3.0, math.inf])
def test_clip_factor_follows_the_formula(norm: float, kernels: str) -> None:
    out = np.zeros(())
    with mg.use_kernels(kernels):
        launch("clip_factor", np.array(norm**2), out, 1.0)
    assert out == min(1.0, 1.0 / (norm + 1e-6))
