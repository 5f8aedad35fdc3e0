"""Indices and targets: checks, counts, positions; and the factor that clips gradients."""

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


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5), (700, 1, 300), (1, 5, 0)])
def test_positions_along_an_axis(shape: tuple[int, int, int], dtype: str, kernels: str) -> None:
    n, (outer, _, inner) = 7, shape
    wanted = np.random.default_rng(0).integers(-n, n, shape).astype(dtype)
    out = np.empty(shape, np.int64)
    with mg.use_kernels(kernels):
        launch("positions_along", wanted, out, n)
        every = np.arange(outer * n * inner).reshape(outer, n, inner)
        np.testing.assert_array_equal(out, np.take_along_axis(every, wanted.astype(np.int64), 1))
        for bad in (-n - 1, n):
            if wanted.size:
                wanted[-1, -1, -1] = bad
                with pytest.raises(IndexError, match="positions_along: "):
                    launch("positions_along", wanted, out, n)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
def test_take_along_axis_is_numpys(dtype: str, axis: int, level: str) -> None:
    rng = np.random.default_rng(0)
    x = mg.permute(mg.tensor(rng.integers(0, 9, (4, 6, 5))).to(dtype), (2, 0, 1))
    for shape in ((3, 4, 6), (5, 3, 6), (5, 4, 3), (1, 4, 6), (5, 1, 6)):
        others = [a in (1, b) for a, b in zip(shape, x.shape, strict=True)]
        others[axis] = True
        if not all(others):
            continue
        wanted = rng.integers(-x.shape[axis], x.shape[axis], shape)
        got = mg.take_along_axis(x, wanted, axis).numpy()
        np.testing.assert_array_equal(got, np.take_along_axis(x.numpy(), wanted, axis))
    with pytest.raises(ValueError, match=r"take_along_axis: indices \(2, 3, 3\) do not broadcast"):
        mg.take_along_axis(x, np.zeros((2, 3, 3), int), axis)


@pytest.mark.parametrize("wanted", [[2, 0, -1, 2], [[1], [1]], []])
def test_rows_by_integers_are_numpys(wanted: list, level: str) -> None:
    given = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    x = mg.tensor(given, requires_grad=True)
    rows = np.array(wanted, int)
    for view, plain in ((x, given), (mg.permute(x, (0, 2, 1)), given.transpose(0, 2, 1))):
        out = view[rows]
        np.testing.assert_array_equal(out.numpy(), plain[rows])
        (grad,) = mg.grad((out * out).sum(), x)
        times = np.bincount(rows.reshape(-1) % 3, minlength=3)[:, None, None]
        np.testing.assert_allclose(grad.numpy(), 2 * given * times, rtol=1e-6)
    with pytest.raises(IndexError, match=r"index: index 3 is out of bounds .*shape \(3, 4, 5\)"):
        x[[0, 3]]


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
