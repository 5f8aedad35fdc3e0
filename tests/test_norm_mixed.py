"""Norms in mixed precision: bfloat16 updates, results and their gradients beside float32 rows have
the bits of norms of float32 with conversions around them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import minigrad as mg

Array = np.ndarray
BF16 = np.dtype(ml_dtypes.bfloat16)
NORMS: dict[str, Any] = {
    "layer_norm": lambda x, w, b, **options: mg.layer_norm(x, w, b, **options),
    "rms_norm": lambda x, w, b, **options: mg.rms_norm(x, w, **options),
}


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def leaves(rows: int, columns: int, update: Any) -> list[mg.Tensor]:
    """x or an update of the stream, the stream, weight and bias."""
    arrays = [floats(rows, columns).astype(update), floats(rows, columns, seed=1)]
    arrays += [floats(columns, seed=2), floats(columns, seed=3)]
    return [mg.tensor(a, requires_grad=True) for a in arrays]


def bits(tensors: list[mg.Tensor | None]) -> list[Any]:
    return [None if t is None else (t.dtype.name, t.numpy().tobytes()) for t in tensors]


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (70, 129), (0, 4)])
@pytest.mark.parametrize(
    ("update", "with_residual"), [(np.float32, False), (np.float32, True), (BF16, True)]
)
@pytest.mark.parametrize("name", NORMS)
def test_mixed_norms_have_the_bits_of_conversions(
    name: str, update: Any, with_residual: bool, shape: tuple[int, int], level: str
) -> None:
    g, g_summed = mg.tensor(floats(*shape, seed=4), "bfloat16"), mg.tensor(floats(*shape, seed=5))
    seen = []
    for fused in (True, False):
        x, stream, w, b = leaves(*shape, update)
        given = x if fused else x.to("float32")
        options = {"residual": stream} if with_residual else {}
        out = NORMS[name](given, w, b, **options, **({"dtype": "bfloat16"} if fused else {}))
        normed, summed = out if with_residual else (out, None)
        normed = normed if fused else normed.to("bfloat16")
        outputs, seeds = [normed], [g]
        if summed is not None:
            outputs, seeds = [normed, summed], [g, g_summed]
        wanted = [x, w] + ([stream] if with_residual else []) + ([b] if name[0] == "l" else [])
        seen.append(bits([normed, summed, *mg.grad(outputs, wanted, seeds)]))
    assert seen[0] == seen[1]
    assert seen[0][0][0] == "bfloat16"
    assert seen[0][2][0] == np.dtype(update).name


@pytest.mark.parametrize("name", NORMS)
def test_kernels_follow_their_references(name: str, level: str) -> None:
    seen = []
    for kernels in ("native", "ref"):
        with mg.use_kernels(kernels):
            x, stream, w, b = leaves(5, 33, BF16)
            normed, summed = NORMS[name](x, w, b, residual=stream, dtype="bfloat16")
            g = mg.tensor(floats(5, 33, seed=4), "bfloat16")
            seen.append([normed, summed, *mg.grad([normed], [x, stream, w], [g])])
    for got, expected in zip(*seen, strict=True):
        assert got.dtype == expected.dtype
        rounding = 2.0**-7 if got.dtype == BF16 else 1e-5
        np.testing.assert_allclose(
            got.numpy().astype(np.float64), expected.numpy().astype(np.float64), rounding, rounding
        )


@pytest.mark.parametrize("name", NORMS)
def test_one_gradient_alone_and_the_sum_alone(name: str) -> None:
    x, stream, w, b = leaves(5, 33, BF16)
    normed, summed = NORMS[name](x, w, b, residual=stream, dtype="bfloat16")
    g = mg.tensor(floats(5, 33, seed=4), "bfloat16")
    both = bits(mg.grad([normed], [x, stream], [g], retain_graph=True))
    for i, leaf in enumerate((x, stream)):
        other = (stream, x)[i]
        other.requires_grad = False
        out = NORMS[name](x, w, b, residual=stream, dtype="bfloat16")[0]
        assert bits(mg.grad([out], [leaf], [g])) == both[i : i + 1]
        other.requires_grad = True
    ones = mg.grad([summed.sum()], [x, stream])
    assert [t.dtype.name for t in ones] == ["bfloat16", "float32"]
    assert all((t.numpy().astype(np.float32) == 1).all() for t in ones)


@pytest.mark.parametrize("name", NORMS)
def test_second_derivative(name: str) -> None:
    def second(mixed: bool) -> Array:
        x, stream, w, b = leaves(5, 33, BF16 if mixed else np.float32)
        normed, _ = NORMS[name](x, w, b, residual=stream, dtype="bfloat16" if mixed else "float32")
        (first,) = mg.grad((normed.to("float32") ** 2).sum(), stream, create_graph=True)
        return mg.grad((first * first).sum(), w)[0].numpy().astype(np.float64)

    exact = second(False)
    assert np.linalg.norm(second(True) - exact) <= 2.0**-5 * np.linalg.norm(exact)


def test_other_mixtures_are_refused() -> None:
    x = mg.tensor(floats(3, 4))
    with pytest.raises(TypeError, match=r"layer_norm: dtype float16 for a norm of float32; expect"):
        mg.layer_norm(x, dtype="float16")
    with pytest.raises(TypeError, match=r"rms_norm: dtype bfloat16 for a norm of float64; expect"):
        mg.rms_norm(x.to("float64"), dtype="bfloat16")


def test_layers_pass_the_dtype_on() -> None:
    x = mg.tensor(floats(3, 4))
    for layer in (mg.nn.LayerNorm(4), mg.nn.RMSNorm(4)):
        assert layer(x).dtype.name == "float32"
        assert layer(x, dtype="bfloat16").dtype.name == "bfloat16"
        assert [t.dtype.name for t in layer(x, x, "bfloat16")] == ["bfloat16", "float32"]
