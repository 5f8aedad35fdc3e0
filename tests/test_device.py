"""Tensors of another device: where results, views, gradients and state are, and what may not mix.

The operations here have no GPU kernel, so they need no compiler: the references do them there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn

DEVICE = "emulated:sm_80"


def on_device(*shape: int, requires_grad: bool = False) -> mg.Tensor:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return mg.tensor(values, device=DEVICE, requires_grad=requires_grad)


def test_where_tensors_are_made() -> None:
    assert mg.zeros((2,)).device == "cpu"
    with mg.device(DEVICE):
        made = [mg.zeros((2,)), mg.tensor([1.0]), mg.randn((3,)), mg.arange(4), mg.eye(2)]
        assert [x.device for x in made] == [DEVICE] * 5
        assert mg.tensor([1.0], device="cpu").device == "cpu"
    assert on_device(2, 3).is_leaf
    assert "device=emulated:sm_80" in repr(on_device(1))
    for make in (mg.zeros_like, mg.ones_like, mg.empty_like):
        assert make(on_device(2)).device == DEVICE


@pytest.mark.parametrize(
    "op",
    [
        lambda x: x * 2.0 + 1,
        lambda x: 1.0 - x,
        lambda x: (x * x).sum(),
        lambda x: x @ x.T,
        lambda x: x[0, 1:],
        lambda x: x.T.detach(),
        lambda x: x > 0,
        lambda x: mg.where(x > 0, x, 0),
        lambda x: (x > 0).any(),
        lambda x: x.argmax(axis=1),
        lambda x: mg.sort(x),
        lambda x: mg.topk(x, 2)[1],
        lambda x: mg.tril(x),
        lambda x: mg.concat([x, x]),
        lambda x: mg.split(x, 3)[1],
        lambda x: x.to("bfloat16"),
        lambda x: mg.attention(x[None, None], x[None, None], x[None, None], impl="composed"),
    ],
)
def test_results_are_where_the_inputs_are(op: Callable[[mg.Tensor], mg.Tensor]) -> None:
    """Within a block for another device, too; with the values of the cpu, by other kernels."""
    x = on_device(3, 4)
    with mg.profile() as profile:
        got = op(x)
    want = op(x.to("cpu"))
    with mg.device("emulated:sm_90"):
        again = op(x)
    assert (got.device, again.device, want.device) == (DEVICE, DEVICE, "cpu")
    ran = set(profile.rows) - {"copy", "positions_along"}  # a mask and positions, made on the cpu
    assert all(name.startswith("numpy:") for name in ran)
    assert np.allclose(got.numpy().astype(float), want.numpy().astype(float), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (lambda x, y: x + y, "Add"),
        (lambda x, y: x <= y, "le"),
        (lambda x, y: x @ y.T, "MatMul"),
        (lambda x, y: mg.where(x > 0, x, y), "Where"),
        (lambda x, y: x.copy_(y), "copy_"),
        (lambda x, y: x.__setitem__(0, y[0]), r"x\[...\] ="),
    ],
)
def test_devices_do_not_mix(op: Callable[[mg.Tensor, mg.Tensor], object], name: str) -> None:
    message = rf"(?i){name}: one tensor is on {DEVICE} and another on cpu.*x\.to\('{DEVICE}'\)"
    with pytest.raises(RuntimeError, match=message):
        op(on_device(3, 4), mg.zeros((3, 4)))


def test_numbers_go_anywhere() -> None:
    x = on_device(3)
    assert (x * mg.tensor(2.0)).device == (mg.tensor(2.0) * x).device == DEVICE
    assert (mg.zeros((3,)) + x.sum()).device == "cpu"
    assert (x.sum() * mg.tensor(2.0)).device == DEVICE


def test_gradients() -> None:
    """They are where their tensors are, also behind a change of device."""
    x = on_device(3, 4, requires_grad=True)
    w = mg.ones((4, 2), requires_grad=True)
    for times in (1, 2):
        (x.to("cpu") @ w).to("emulated:sm_90").sum().backward()
        assert x.grad is not None
        assert w.grad is not None
        assert (x.grad.device, w.grad.device) == (DEVICE, "cpu")
        np.testing.assert_array_equal(x.grad.numpy(), np.full((3, 4), 2.0 * times))
    (first,) = mg.grad((x * x * x).sum(), x, create_graph=True)
    (second,) = mg.grad(first.sum(), x)
    assert second.device == DEVICE
    np.testing.assert_allclose(second.numpy(), 6 * x.numpy(), rtol=1e-6)


def test_modules_and_optimizers() -> None:
    layers = [nn.Linear(4, 4) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    assert layers[1].to(DEVICE) is layers[1]
    assert {p.device for p in layers[1].parameters()} == {DEVICE}
    x = on_device(5, 4)
    for layer, given in zip(layers, (x.to("cpu"), x), strict=True):
        optimizer = mg.optim.SGD(layer.parameters(), lr=0.1)
        layer(given).sum().backward()
        with mg.profile() as profile:
            optimizer.step()
        by_numpy = {name.startswith("numpy:") for name in profile.rows}
        assert by_numpy == {layer is layers[1]}
    for a, b in zip(*[layer.parameters() for layer in layers], strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
    layers[1].load_state_dict(layers[0].state_dict())
    assert {p.device for p in layers[1].parameters()} == {DEVICE}
    assert {p.device for p in layers[1].to("float64").parameters()} == {DEVICE}
    assert {p.device for p in layers[1].to("cpu").parameters()} == {"cpu"}


def test_random_bits() -> None:
    mg.manual_seed(5)
    want = [mg.randint(0, 1000, (7,)), mg.dropout(mg.ones((64,)), 0.5)]
    mg.manual_seed(5)
    with mg.device(DEVICE):
        got = [mg.randint(0, 1000, (7,)), mg.dropout(mg.ones((64,)), 0.5)]
    for w, g in zip(want, got, strict=True):
        np.testing.assert_array_equal(g.numpy(), w.numpy())


def test_unknown_devices() -> None:
    for ask in (lambda: mg.tensor(1.0, device="cuda"), lambda: mg.zeros((1,)).to("emulated:sm_1")):
        with pytest.raises(ValueError, match=r"unknown device .*expected one of cpu, emulated"):
            ask()
