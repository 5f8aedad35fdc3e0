"""Kernels of the usual kinds on the PTX machine, for both architectures, against NumPy in float64;
and one compiled form against another."""

from __future__ import annotations

from typing import Any

import pytest
from ptx_corpus import Entry, entries
from ptx_corpus.compare import check, outputs, start

ENTRIES = entries()
CASES = [(entry, arch) for entry in ENTRIES for arch in entry.architectures]

pytestmark = pytest.mark.skipif(
    not ENTRIES, reason="neither Triton nor NVRTC is installed: pip install 'minigrad[gpu]'"
)


def case_id(value: Any) -> str:
    return str(value) if isinstance(value, Entry) else f"sm_{value}"


@pytest.mark.parametrize(("entry", "architecture"), CASES, ids=case_id)
def test_agrees(entry: Entry, architecture: int) -> None:
    """With all checks on, no report, and the same bits again."""
    run = entry.make(0)
    check(entry, run, start(run, architecture))
    again = entry.make(0)
    start(again, architecture)
    assert outputs(again) == outputs(run)


@pytest.mark.parametrize(("entry", "architecture"), CASES, ids=case_id)
def test_other_schedules(entry: Entry, architecture: int) -> None:
    """Other inputs under another order of warps and blocks."""
    run = entry.make(1)
    check(entry, run, start(run, architecture, seed=5))
