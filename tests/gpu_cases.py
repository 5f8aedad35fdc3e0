"""Cases that the Triton and the CUDA kernels share: through the public function and dispatch,
against the same function by the references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

import minigrad as mg

DTYPES = ("float32", "float16", "bfloat16")
# Of the largest result: float32 sums in another order; half types may round the other way, and the
# interpreter's stores cut bfloat16 off instead of rounding it.
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


def zeros(dtype: str, *shape: int) -> np.ndarray:
    return np.zeros(shape, getattr(ml_dtypes, dtype, dtype))


@dataclass(frozen=True)
class GpuCase:
    name: str
    make: Callable[[str], list[mg.Tensor]]  # inputs of a dtype
    call: Callable[..., Any]
    dtype: str = "float32"
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}-{self.dtype}"


def normal(*shapes: tuple[int, ...], scale: float = 1.0) -> Callable[[str], list[mg.Tensor]]:
    def make(dtype: str) -> list[mg.Tensor]:
        rng = np.random.default_rng(0)
        return [mg.tensor(rng.standard_normal(s) * scale, dtype) for s in shapes]

    return make


def strided(dtype: str) -> list[mg.Tensor]:
    """Rows that are not next to each other, and start at odd places."""
    return [mg.tensor(np.random.default_rng(0).standard_normal((9, 67)), dtype)[1::2, 3:60]]


def special(dtype: str) -> list[mg.Tensor]:
    x = np.random.default_rng(0).standard_normal((5, 130))
    x[0] = -np.inf
    x[1, 7] = np.inf
    x[2, 9] = np.nan
    x[3, :100] = -np.inf
    x[4] *= 1e4
    return [mg.tensor(x, dtype)]


def wide_special(dtype: str) -> list[mg.Tensor]:
    x = np.random.default_rng(0).standard_normal((4, 9001))
    x[0] = -np.inf
    x[1, :8999] = -np.inf
    x[2, 8999] = np.nan
    return [mg.tensor(x, dtype)]


SOFTMAX = [
    GpuCase(name, make, mg.softmax, dtype)
    for dtype in DTYPES
    for name, make in (
        ("softmax-1x1", normal((1, 1))),
        ("softmax-3x31", normal((3, 31))),
        ("softmax-5x33", normal((5, 33))),
        ("softmax-4x1024", normal((4, 1024))),
        ("softmax-2x8193", normal((2, 8193))),
        ("softmax-strided", strided),
        ("softmax-special", special),
        ("softmax-wide-special", wide_special),
    )
]


def norm(x: mg.Tensor, *rest: mg.Tensor) -> Any:
    return mg.layer_norm(x, *rest)


def norm_residual(x: mg.Tensor, r: mg.Tensor, w: mg.Tensor) -> Any:
    return mg.layer_norm(x, w, None, residual=r)


def far_from_zero(dtype: str) -> list[mg.Tensor]:
    return [mg.tensor(np.random.default_rng(0).standard_normal((3, 500)) + 1e4, dtype)]


NORMS = [
    GpuCase(name, make, call, dtype)
    for dtype in DTYPES
    for name, make, call in (
        ("layer_norm-3x1", normal((3, 1), (1,), (1,)), norm),
        ("layer_norm-3x127", normal((3, 127), (127,), (127,)), norm),
        ("layer_norm-3x768", normal((3, 768), (768,), (768,)), norm),
        ("layer_norm-plain", normal((3, 129)), norm),
        ("layer_norm-residual", normal((3, 129), (3, 129), (129,)), norm_residual),
        ("layer_norm-residual-128", normal((3, 128), (3, 128), (128,)), norm_residual),
        ("layer_norm-wide", normal((2, 8200), (2, 8200), (8200,)), norm_residual),
        ("layer_norm-strided", strided, norm),
    )
] + [GpuCase("layer_norm-far", far_from_zero, norm)]


def qkv(b: int, hq: int, hkv: int, tq: int, tk: int, d: int) -> Callable[[str], list[mg.Tensor]]:
    return normal((b, hq, tq, d), (b, hkv, tk, d), (b, hkv, tk, d))


def with_mask(dtype: str) -> list[mg.Tensor]:
    """Half of the pairs masked, one row and one key wholly; NaN and infinity behind the mask."""
    q, k, v = qkv(1, 2, 2, 19, 40, 16)(dtype)
    mask = np.random.default_rng(1).random((1, 1, 19, 40)) < 0.5
    mask[..., 5, :] = False
    mask[..., :, 7] = False
    wide_k, wide_v = k.numpy().copy(), v.numpy().copy()
    wide_k[:, :, 7], wide_v[:, :, 7] = np.nan, np.inf
    return [q, mg.tensor(wide_k), mg.tensor(wide_v), mg.tensor(mask)]


def half_hidden_nan(dtype: str) -> list[mg.Tensor]:
    """A value that only causality hides, from some queries and not from others."""
    q, k, v = qkv(1, 1, 1, 40, 40, 16)(dtype)
    wide = v.numpy().copy()
    wide[0, 0, 30, 3] = np.nan
    return [q, k, mg.tensor(wide)]


def with_bias(dtype: str) -> list[mg.Tensor]:
    q, k, v = qkv(2, 2, 2, 21, 37, 16)(dtype)
    bias = np.random.default_rng(1).standard_normal((1, 2, 21, 37))
    bias[:, :, 3] = -np.inf
    return [q, k, v, mg.tensor(bias, dtype)]


def attend(q: mg.Tensor, k: mg.Tensor, v: mg.Tensor, **options: Any) -> Any:
    return mg.attention(q, k, v, **options)


def attend_masked(q: mg.Tensor, k: mg.Tensor, v: mg.Tensor, mask: mg.Tensor) -> Any:
    return mg.attention(q, k, v, mask=mask)


def attend_biased(q: mg.Tensor, k: mg.Tensor, v: mg.Tensor, bias: mg.Tensor) -> Any:
    return mg.attention(q, k, v, bias=bias)


def attend_packed(qkv: mg.Tensor) -> Any:
    return mg.attention_packed(qkv, 2, causal=True)


ATTENTION = [
    GpuCase(name, make, call, dtype, options)
    for dtype in DTYPES
    for name, make, call, options in (
        ("attention-plain", qkv(2, 2, 2, 33, 33, 20), attend, {}),
        ("attention-causal", qkv(1, 2, 2, 65, 65, 64), attend, {"causal": True}),
        ("attention-grouped", qkv(1, 4, 2, 17, 70, 20), attend, {"causal": True}),
        ("attention-fewer-keys", qkv(1, 2, 2, 40, 9, 20), attend, {"causal": True}),
        ("attention-one", qkv(1, 1, 1, 1, 1, 20), attend, {}),
        ("attention-window", qkv(1, 2, 2, 50, 50, 20), attend, {"window": 7}),
        (
            "attention-window-causal",
            qkv(1, 1, 1, 70, 90, 20),
            attend,
            {"window": 5, "causal": True},
        ),
        ("attention-dropout", qkv(1, 2, 2, 35, 35, 20), attend, {"dropout": 0.3, "causal": True}),
        ("attention-mask", with_mask, attend_masked, {}),
        ("attention-bias", with_bias, attend_biased, {}),
        ("attention-hidden-nan", half_hidden_nan, attend, {"causal": True}),
        ("attention-packed", normal((2, 37, 6, 16)), attend_packed, {}),
    )
]


def compare(case: GpuCase, kernels: str) -> None:
    """By the reference and by `kernels`, from equal inputs and an equal random stream."""
    inputs = case.make(case.dtype)
    results = []
    for chosen in ("ref", kernels):
        mg.manual_seed(7)
        with mg.no_grad(), mg.use_kernels(chosen):
            out = case.call(*inputs, **case.options)
        several = out if isinstance(out, tuple) else (out,)
        results.append([t.numpy().astype(np.float64) for t in several])
        assert all(t.dtype.name == case.dtype for t in several)
    for want, got in zip(*results, strict=True):
        finite = want[np.isfinite(want)]
        largest = np.abs(finite).max() if finite.size else 1.0
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[case.dtype] * largest)
