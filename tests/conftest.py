"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from isa_model import MODELS, level_model

import minigrad as mg


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--level-models",
        action="store_true",
        help="run the tests of instruction-set levels on models of processors that are not here",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "level" in metafunc.fixturenames:
        models = metafunc.config.getoption("--level-models")
        metafunc.parametrize("level", MODELS if models else mg.levels(), indirect=True)


@pytest.fixture
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction-set level that this machine can run, in turn (or, with --level-models, the
    models of others)."""
    level = request.param
    with level_model(level) if level in MODELS else mg.use_level(level):
        yield level


@pytest.fixture(autouse=True)
def _seeded() -> None:
    mg.manual_seed(0)
