"""Activation checkpointing: the same bits, dropout included, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad import memory
from minigrad.models import GPT, GPTConfig
from minigrad.random import replay_cells

Array = np.ndarray

SHAPE = GPTConfig(vocab_size=67, seq_len=40, n_layers=8, n_heads=2, dim=32, dropout=0.2)


def step(checkpointed: bool) -> tuple[list[Array], int]:
    """Loss, gradients and the next random number of a step; the peak of the pool."""
    mg.manual_seed(3)
    model = GPT(SHAPE, checkpointed)
    tokens = mg.tensor(np.random.default_rng(0).integers(0, 67, (4, 41)))
    before = mg.memory_statistics()["live_bytes"]
    memory.reset_peak_memory()
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    taken = mg.memory_statistics()["peak_bytes"] - before
    seen = [loss.numpy(), *(p.grad.numpy() for p in model.parameters()), mg.rand((3,)).numpy()]
    return seen, taken


def test_a_training_step_has_the_same_bits_in_less_memory(level: str) -> None:
    (plain, much), (again, less) = step(False), step(True)
    assert len(plain) == len(again)
    for a, b in zip(plain, again, strict=True):
        assert a.tobytes() == b.tobytes()
    assert less < 0.6 * much


def two_layers() -> tuple[Callable[[mg.Tensor], mg.Tensor], list[mg.Tensor]]:
    rng = np.random.default_rng(1)
    w, v = (mg.tensor(rng.standard_normal((4, 4)), requires_grad=True) for _ in range(2))
    return lambda x: mg.tanh(mg.dropout(mg.tanh(x @ w), 0.3) @ v), [w, v]


def test_gradients_of_inputs_and_parameters() -> None:
    fn, parameters = two_layers()
    x = mg.tensor(np.random.default_rng(2).standard_normal((5, 4)), requires_grad=True)
    results = []
    for call in (fn, lambda x: mg.checkpoint_activations(fn, x)):
        mg.manual_seed(4)
        results.append([g.numpy() for g in mg.grad((call(x) ** 2).sum(), [x, *parameters])])
    for a, b in zip(*results, strict=True):
        assert a.tobytes() == b.tobytes()
    with pytest.raises(NotImplementedError, match="no second derivative; call fn itself"):
        mg.grad(mg.checkpoint_activations(fn, x).sum(), x, create_graph=True)


def test_nested() -> None:
    fn, parameters = two_layers()
    x = mg.tensor(np.random.default_rng(2).standard_normal((5, 4)), requires_grad=True)

    def inner(x: mg.Tensor) -> mg.Tensor:
        return mg.checkpoint_activations(fn, fn(x))

    results = []
    for call in (lambda x: fn(fn(x)), lambda x: mg.checkpoint_activations(inner, x)):
        mg.manual_seed(4)
        results.append([g.numpy() for g in mg.grad(call(x).sum(), [x, *parameters])])
    for a, b in zip(*results, strict=True):
        assert a.tobytes() == b.tobytes()


def test_what_needs_no_gradient_and_what_is_not_used() -> None:
    fn, parameters = two_layers()
    x, unused = mg.ones((2, 4), "float64"), mg.ones((3,), requires_grad=True)
    out, same = mg.checkpoint_activations(lambda x, y: (fn(x), y), x, unused)
    assert out.requires_grad
    out.sum().backward()
    assert x.grad is None
    assert unused.grad is None
    assert all(p.grad is not None for p in parameters)
    assert not np.shares_memory(same.numpy(), unused.numpy())  # each has a version of its own
    with mg.no_grad():
        assert not mg.checkpoint_activations(fn, x).requires_grad


def test_an_input_changed_in_place_is_noticed() -> None:
    fn, _ = two_layers()
    x = mg.ones((2, 4), "float64")
    out = mg.checkpoint_activations(fn, x)
    x += 1.0
    with pytest.raises(RuntimeError, match="changed in place"):
        out.sum().backward()


def test_what_cannot_be_recomputed_is_named() -> None:
    x = mg.ones((2,), requires_grad=True)
    y = mg.exp(x)
    with pytest.raises(ValueError, match=r"uses a result of exp, of shape \(2,\)"):
        mg.checkpoint_activations(lambda a: a * y, x)
    with pytest.raises(ValueError, match="the same tensor is given twice"):
        mg.checkpoint_activations(lambda a, b: a * b, x, x)
    with replay_cells([]), pytest.raises(RuntimeError, match="draws more random numbers"):
        mg.rand((1,))


def test_results_without_a_history_have_none() -> None:
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    y, z = mg.checkpoint_activations(lambda x: (x * 2, x.detach() * 3), x)
    assert y.requires_grad
    assert not z.requires_grad
    (y.sum() + z.sum()).backward()
    assert x.grad.tolist() == [2, 2]


@pytest.mark.parametrize("fn", [lambda x: [x], lambda x: (x, None)])
def test_what_is_no_tensor_is_refused(fn: Any) -> None:
    x = mg.ones((2,), requires_grad=True)
    with pytest.raises(TypeError, match=r"checkpoint_activations: result of fn \d is a "):
        mg.checkpoint_activations(fn, x)
    with pytest.raises(TypeError, match="checkpoint_activations: input 1 is a NoneType"):
        mg.checkpoint_activations(lambda x, y: x, x, None)
