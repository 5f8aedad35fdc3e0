"""Changes in place: what they write, what they refuse, and that a refused one changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import minigrad as mg

LARGE = 100_000  # more than one thread's share of a copy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_overlapping_assignment_reads_before_it_writes(level: str, dtype: str) -> None:
    for to, source in [
        (slice(1, None), slice(None, -1)),
        (slice(None, -1), slice(1, None)),
        (slice(None), slice(None, None, -1)),
    ]:
        x = mg.arange(LARGE).to(dtype)
        expected = np.array(x)
        expected[to] = expected[source].copy()
        x[to] = x[source]
        np.testing.assert_array_equal(x.numpy(), expected)


def test_overlapping_copy_and_assignment_by_an_index() -> None:
    x = mg.arange(LARGE)
    x[1:].copy_(x[:-1])
    np.testing.assert_array_equal(x.numpy(), np.r_[0, np.arange(LARGE - 1)])
    x = mg.arange(LARGE)
    x[np.arange(1, LARGE)] = x[:-1]
    np.testing.assert_array_equal(x.numpy(), np.r_[0, np.arange(LARGE - 1)])


TOO_LARGE: list[Callable[[mg.Tensor], object]] = [
    lambda x: x.__setitem__(slice(0, 1), mg.ones((2, 4))),
    lambda x: x.__setitem__(0, mg.ones((2, 4))),
    lambda x: x.__setitem__((slice(None), slice(0, 1)), mg.ones((3, 4))),
    lambda x: x.__setitem__(np.array([0]), mg.ones((2, 4))),
    lambda x: x.copy_(mg.ones((2, 3, 4))),
    lambda x: x.copy_(mg.ones((3, 5))),
    lambda x: x.__iadd__(mg.ones((2, 3, 4))),
    lambda x: x[0].__imul__(mg.ones((2, 4))),
]


@pytest.mark.parametrize("case", range(len(TOO_LARGE)))
def test_a_value_larger_than_its_target_is_refused(case: int) -> None:
    x = mg.zeros((3, 4))
    with pytest.raises(ValueError, match="does not fit"):
        TOO_LARGE[case](x)
    assert not x.any()
    assert x.version == 0


def test_values_broadcast_as_numpy_has_it() -> None:
    x = mg.zeros((3, 4))
    x[1] = mg.ones((1, 1, 4))
    x[:, 1:2] = mg.full((3, 1), 2.0)
    x[2] = 3
    x[np.array([0, 0]), np.array([2, 3])] = 5.0
    assert x.tolist() == [[0, 2, 5, 5], [1, 2, 1, 1], [3, 3, 3, 3]]


DROPPING: list[Callable[[mg.Tensor, mg.Tensor], object]] = [
    lambda y, w: y.__iadd__(w),
    lambda y, w: y.__itruediv__(w),
    lambda y, w: y.__setitem__(0, w[0]),
    lambda y, w: y.__setitem__(np.array([0]), w[:1]),
    lambda y, w: y.copy_(w),
]


@pytest.mark.parametrize("case", range(len(DROPPING)))
def test_a_value_with_a_gradient_is_refused_not_dropped(case: int) -> None:
    y, w = mg.zeros((3,)), mg.ones((3,), requires_grad=True)
    with pytest.raises(RuntimeError, match=r"leaves no graph; make a new tensor \(y = y \+ x"):
        DROPPING[case](y, w)
    assert y.tolist() == [0, 0, 0]
    DROPPING[case](y, w.detach())
    with mg.no_grad():
        DROPPING[case](y, w)
