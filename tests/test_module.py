"""Modules: what counts as a parameter, a buffer, or neither."""

from __future__ import annotations

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn


class Layer(nn.Module):
    def __init__(self) -> None:
        self.weight = mg.ones((2, 2), requires_grad=True)
        self.later = mg.ones((2,))
        self.table = mg.arange(4)
        self.made = self.weight * 2
        self.register_buffer("average", mg.zeros((2,)))


def names(module: nn.Module) -> tuple[list[str], list[str]]:
    return [n for n, _ in module.named_parameters()], [n for n, _ in module.named_buffers()]


def test_parameters_are_leaves_that_require_a_gradient() -> None:
    layer = Layer()
    assert names(layer) == (["weight"], ["average"])
    assert set(layer.state_dict()) == {"weight", "average"}
    layer.later.requires_grad_()
    assert names(layer)[0] == ["weight", "later"]


def test_a_frozen_parameter_stays_in_the_state() -> None:
    model = nn.Sequential(nn.Linear(2, 3), Layer())
    before = names(model)
    for p in model.parameters():
        p.requires_grad_(False)
    assert names(model) == before
    model.load_state_dict(model.state_dict())
    model.layers[1].weight = mg.ones((2, 2))  # a plain tensor in its place is no parameter
    assert "layers.1.weight" not in names(model)[0]


def test_to_converts_in_place_and_keeps_ties() -> None:
    layer = Layer()
    both = nn.Sequential(layer, Layer())
    both.layers[1].weight = layer.weight
    assert both.to("bfloat16") is both
    assert both.layers[1].weight is layer.weight
    assert [p.dtype.name for p in both.parameters()] == ["bfloat16"]
    assert all(p.requires_grad and p.is_leaf for p in both.parameters())
    assert layer.average.dtype.name == "bfloat16"
    assert layer.table.dtype.name == "int64"
    with pytest.raises(TypeError, match="expected a floating dtype, got int32"):
        both.to("int32")


def test_to_multiplies_by_the_converted_weight() -> None:
    """Not by a packed copy of the one before."""
    layer = nn.Linear(40, 40, bias=False)
    x = mg.randn((8, 40))
    layer(x)
    want = layer.to("bfloat16").weight.numpy().astype(np.float64)
    got = layer.to("float32")(x).numpy()
    np.testing.assert_allclose(got, x.numpy().astype(np.float64) @ want.T, rtol=0, atol=1e-5)


def test_to_the_same_dtype_changes_nothing() -> None:
    layer = nn.Linear(4, 4)
    storage, layer.weight.grad = layer.weight.storage, mg.ones((4, 4))
    layer.to("float32")
    assert layer.weight.storage is storage
    assert layer.weight.grad is not None


def test_a_graph_from_before_a_conversion_is_refused() -> None:
    layer = nn.Linear(4, 4)
    y = layer(mg.ones((2, 4), requires_grad=True)).sum()
    layer.to("bfloat16")
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()
