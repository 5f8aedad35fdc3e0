"""Mutated and malformed PTX never ends the process, hangs it, or raises what callers do not
expect. It runs in a process of its own, so that a crash is a failed test that names the mutant."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ptx_corpus import entries

pytestmark = pytest.mark.skipif(
    not entries(), reason="neither Triton nor NVRTC is installed: pip install 'minigrad[gpu]'"
)
COUNT = 2000


def test_mutants() -> None:
    script = Path(__file__).parent / "ptx_corpus" / "fuzz.py"
    command = [sys.executable, "-X", "faulthandler", str(script), "--count", str(COUNT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"the last mutant is to blame:\n{done.stderr[-3000:]}"
    ends = {name: int(n) for name, n in re.findall(r"(\w+)=(\d+)", done.stdout)}
    assert sum(ends.values()) == COUNT
    # Mutants that all fail to parse would test only the parser.
    assert ends["refused"] < 0.8 * COUNT
    assert ends["ran"] > 0.05 * COUNT
    assert sum(n for name, n in ends.items() if name not in ("ran", "refused")) > 0.05 * COUNT
