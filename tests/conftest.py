"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import minigrad as mg

LEVELS = mg.levels()


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction-set level that this machine can run, in turn."""
    with mg.use_level(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    mg.manual_seed(0)
