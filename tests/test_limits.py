"""The limits that figures are shares of: how they are measured, and what they say."""

from __future__ import annotations

import numpy as np
import pytest

import minigrad as mg
from minigrad import dispatch, limits


@pytest.mark.parametrize("kernel", ["peak_fma", "peak_bf16"])
def test_peaks_count_the_operations_of_every_task(kernel: str, level: str) -> None:
    counted = np.zeros(3)
    dispatch.launch(kernel, counted)
    assert counted[0] > 1e6
    np.testing.assert_array_equal(counted, counted[0])


def test_limits_are_measured_by_the_references_too() -> None:
    with mg.use_kernels("ref"):
        found = limits.measure_limits(1e6, repeats=1)
    assert min(found.copy_gb_per_s, found.gflop_per_s, found.bf16_gflop_per_s) > 0


def test_the_least_time_counts_bfloat16_by_its_own_rate() -> None:
    machine = limits.Limits(copy_gb_per_s=10, gflop_per_s=100, bf16_gflop_per_s=400)
    assert machine.least_ms(0, 2e8) == pytest.approx(2)
    assert machine.least_ms(0, 2e8, 2e8) == pytest.approx(0.5)
    assert machine.least_ms(0, 2e8, 1e8) == pytest.approx(1.25)
    assert machine.least_ms(3e7, 2e8) == pytest.approx(3)
    other = limits.Limits(copy_gb_per_s=20, gflop_per_s=50, bf16_gflop_per_s=500)
    assert limits.best_of([machine, other]) == limits.Limits(20, 100, 500)
