"""Instruction-set levels that this machine may lack, as models that run on its AVX2.

The kernels are compiled as for the level, with `immintrin.h` of this folder in place of the
instructions. Build and run:

    MINIGRAD_LEVELS=models python setup.py build_ext --inplace
    python -m pytest tests/test_ops.py tests/test_bits.py tests/test_linear_bf16.py --level-models
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

import pytest

from minigrad import dispatch

MODELS = ["avx512_model", "amx_model"]


@contextlib.contextmanager
def level_model(name: str) -> Iterator[None]:
    """Within the block, native kernels are those of this model; skips where it is not built."""
    if importlib.util.find_spec(f"minigrad._kernels_{name}") is None:
        pytest.skip(f"{name} is not built: MINIGRAD_LEVELS=models, as tests/isa_model says")
    with dispatch._activated("native", name, dispatch.active_device()):
        yield
