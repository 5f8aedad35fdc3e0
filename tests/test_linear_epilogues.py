"""What `linear` does after its products: the bits of the product and then the op, in one precision
or the other, whatever the batch; and what it keeps for backward."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import minigrad as mg
from minigrad.dispatch import empty, launch
from minigrad.memory import memory_statistics, reset_peak_memory

Array = np.ndarray
FORMS = {"gelu": "none", "gelu_tanh": "tanh"}
# (rows, in, out) around what a vector, a panel, a K block and a task take.
SHAPES = [(1, 3, 5), (5, 31, 33), (26, 70, 48), (97, 513, 34)]


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def leaves(m: int, k: int, n: int, bias: bool = True) -> list[mg.Tensor]:
    arrays = [floats(m, k), floats(n, k, seed=1)] + ([floats(n, seed=2)] if bias else [])
    return [mg.tensor(a, requires_grad=True) for a in arrays]


def bits(*tensors: mg.Tensor) -> list[bytes]:
    return [t.numpy().tobytes() for t in tensors]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", FORMS)
def test_gelu_has_the_bits_of_the_op_after_the_product(
    activation: str, shape: tuple[int, int, int], bias: bool, level: str
) -> None:
    """So do the gradients of x and weight; that of the bias is summed in blocks of rows."""
    together, apart = leaves(*shape, bias), leaves(*shape, bias)
    weights = mg.tensor(floats(shape[0], shape[2], seed=3))
    out = mg.linear(*together, activation=activation)
    composed = mg.linear(*apart[:2])
    composed = mg.gelu(composed + apart[2] if bias else composed, FORMS[activation])
    with mg.no_grad():
        assert bits(out) == bits(composed) == bits(mg.linear(*together, activation=activation))
    for y in (out, composed):
        (y * weights).sum().backward()
    assert bits(*(t.grad for t in together[:2])) == bits(*(t.grad for t in apart[:2]))
    if bias:
        size = np.abs(weights.numpy()).sum(0)
        difference = np.abs(together[2].grad.numpy() - apart[2].grad.numpy())
        assert (difference <= 2.0**-22 * (1 + size)).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", FORMS)
def test_gelu_in_bf16_has_the_bits_of_the_op_after_the_product(
    activation: str, shape: tuple[int, int, int], level: str
) -> None:
    x, w, b = leaves(*shape)
    with mg.precision("bf16"):
        out = mg.linear(x, w, b, activation)
        composed = mg.gelu(mg.linear(x, w, b), FORMS[activation])
        with mg.no_grad():
            assert bits(out) == bits(composed) == bits(mg.linear(x, w, b, activation))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("tanh_form", [False, True])
def test_kernels_follow_their_references(tanh_form: bool, dtype: str, level: str) -> None:
    """Also where the result or the slope takes the place of x, and without a bias."""
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    rounding = {"float32": 2.0**-22, "float64": 4e-15, "bfloat16": 2.0**-8, "float16": 2.0**-11}
    x, b = (floats(*s, seed=i).astype(kind) * 3 for i, s in enumerate([(300, 37), (37,)]))
    g = floats(300, 37, seed=2).astype(kind)
    sums = np.dtype(np.float32) if kind.itemsize == 2 else kind  # what `linear` asks for
    for bias in (b, None):
        results: list[list[Array]] = []
        for reference in (True, False):
            with mg.use_kernels("ref" if reference else "native"):
                out, slope = empty(x.shape, kind), x.copy()
                launch("bias_gelu_fwd", slope, bias, out, slope, tanh_form)
                alone = x.copy()
                launch("bias_gelu_fwd", alone, bias, alone, None, tanh_form)
                assert alone.tobytes() == out.tobytes()
                dx, dbias = empty(x.shape, kind), empty((37,), sums)
                launch("bias_gelu_bwd", g, slope, dx, dbias)
                only = empty(x.shape, kind)
                launch("bias_gelu_bwd", g, slope, only, None)
                assert only.tobytes() == dx.tobytes()
                results.append([out, slope, dx, dbias])
        for expected, got in zip(*results, strict=True):
            wide, actual = expected.astype(np.float64), got.astype(np.float64)
            tolerance = rounding[dtype] * (300 if expected is results[0][3] else 4)
            np.testing.assert_allclose(actual, wide, rtol=tolerance, atol=tolerance)


def test_not_finite_values_pass_through_gelu(level: str) -> None:
    x = np.array([[np.nan, np.inf, -np.inf, 1.0, -30.0, 30.0, -200.0, 200.0, 0.0]], np.float32)
    for tanh_form in (False, True):
        out, slope = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
        launch("bias_gelu_fwd", x, None, out, slope, tanh_form)
        assert np.isnan(out[0, 0])
        assert np.isnan(slope[0, 0])
        assert np.isfinite(slope[0, 1:]).all()
        assert out[0, 1:3].tolist() == [np.inf, 0.0]
        assert slope[0, [1, 2, 5, 7, 8]].tolist() == [1.0, 0.0, 1.0, 1.0, 0.5]


def test_a_layer_keeps_its_result_and_one_array_more(level: str) -> None:
    """The slope lies where the product was; without gradients the result does."""
    x, w, b = leaves(64, 128, 4096)
    array = 64 * 4096 * 4
    for needs, kept in ((True, 2), (False, 1)):
        for t in (x, w, b):
            t.requires_grad = needs
        before = memory_statistics()["live_bytes"]
        reset_peak_memory()
        out = mg.linear(x, w, b, "gelu")
        held = memory_statistics()["live_bytes"] - before
        assert kept * array <= held < (kept + 0.5) * array
        del out


def test_second_backward_and_freed_graph() -> None:
    x, w, b = leaves(5, 7, 9)
    out = mg.linear(x, w, b, "gelu").sum()
    out.backward(retain_graph=True)
    first = bits(x.grad, w.grad, b.grad)
    for t in (x, w, b):
        t.grad = None
    out.backward()
    assert bits(x.grad, w.grad, b.grad) == first
    with pytest.raises(RuntimeError, match="freed"):
        out.backward()
