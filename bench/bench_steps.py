"""A training step of a GPT (forward, backward, AdamW) at every size of `minigrad bench step`."""

from __future__ import annotations

from typing import Any

import pytest

from minigrad.bench.ours import step
from minigrad.train.config import SIZES


@pytest.mark.parametrize("size", list(SIZES))
def bench_step(benchmark: Any, size: str) -> None:
    benchmark.pedantic(step(size), rounds=5, warmup_rounds=2)
