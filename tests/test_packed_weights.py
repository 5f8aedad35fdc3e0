"""Packed copies of weights in mixed precision: products use the weight as it is, whoever changed
it; an optimizer writes its copies with it, and replays find them up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn, optim
from minigrad.dispatch import empty, launch

Array = np.ndarray

OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, 0.1),
    "momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9),
    "adamw": lambda p: optim.AdamW(p, 0.02),
    "rmsprop": lambda p: optim.RMSprop(p),
    "rmsprop with momentum": lambda p: optim.RMSprop(p, momentum=0.5),
    "adagrad": lambda p: optim.Adagrad(p),
}
# Around the edges of panels (32), of pairs and of what a task updates (32 rows by a K block).
SHAPES = [(1, 1), (31, 33), (64, 32), (33, 257), (70, 530)]


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def leaf(array: Array) -> mg.Tensor:
    return mg.tensor(array, requires_grad=True)


def panels(b: Array) -> bytes:
    """b (K, N) packed afresh."""
    packed = empty((-(-b.shape[1] // 32), -(-b.shape[0] // 32) * 16, 32, 2), mg.bfloat16)
    launch("pack_bf16", b, packed)
    return packed.tobytes()


def copies(weight: mg.Tensor) -> set[bytes]:
    """The packed copies of the present version."""
    entries = weight.storage.packed.values()
    return {a.tobytes() for version, a in entries if version == weight.version}


def fresh(weight: mg.Tensor) -> set[bytes]:
    """What they must be."""
    return {panels(weight.numpy()), panels(weight.numpy().T)}


def train(weights: list[mg.Tensor], x: mg.Tensor) -> None:
    """Gradients of every weight, by products of bfloat16."""
    with mg.precision("bf16"):
        for i, w in enumerate(weights):
            w.grad = None
            mg.linear(x[:, : w.shape[1]] + i, w).sum().backward()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_writes_the_copies_with_the_weights(name: str, level: str) -> None:
    arrays = [floats(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    packed, plain = ([leaf(a) for a in arrays] for _ in range(2))
    bias = [leaf(floats(7)) for _ in range(2)]  # beside them, without copies
    x = leaf(floats(5, 530, seed=9))
    made = [OPTIMIZERS[name]([*ws, b]) for ws, b in zip((packed, plain), bias, strict=True)]
    for step in range(3):
        train(packed, x)
        assert step == 0 or all(w.storage.packed for w in packed)
        for b in bias:
            b.grad = mg.tensor(floats(7, seed=step))
        for w, p in zip(packed, plain, strict=True):
            p.grad = w.grad
        for optimizer in made:
            optimizer.step()
        for w, p in zip(packed, plain, strict=True):
            assert w.numpy().tobytes() == p.numpy().tobytes()
            assert copies(w) == fresh(w)
            assert not p.storage.packed
    assert bias[0].numpy().tobytes() == bias[1].numpy().tobytes()


def test_the_reference_writes_them_too() -> None:
    w = leaf(floats(40, 9))
    train([w], leaf(floats(5, 9, seed=1)))
    with mg.use_kernels("ref"):
        optim.AdamW([w], 0.1).step()
    assert copies(w) == fresh(w)


def test_only_the_copies_in_use_are_written() -> None:
    w = leaf(floats(40, 9))
    train([w], mg.tensor(floats(5, 9, seed=1)))  # no gradient of x: one copy
    optimizer = optim.SGD([w], 0.1)
    optimizer.step()
    assert copies(w) == {panels(w.numpy().T)}
    with mg.no_grad():
        w *= 2.0  # the copy is of an older version now, so nobody keeps it up
    before = [a.tobytes() for _, a in w.storage.packed.values()]
    optimizer.step()
    assert copies(w) == set()
    assert [a.tobytes() for _, a in w.storage.packed.values()] == before


def test_weights_of_steps_apart_keep_their_copies() -> None:
    """One weight is frozen, one takes no part in the step: their copies stay theirs."""
    frozen, idle, moving = (leaf(floats(40, 9, seed=i)) for i in range(3))
    frozen.requires_grad = False
    x = leaf(floats(5, 9, seed=4))
    with mg.precision("bf16"):
        hidden = [mg.linear(x, w) for w in (frozen, idle, moving)]
    (hidden[0] + hidden[1] + hidden[2]).sum().backward()
    idle.grad = None
    optim.SGD([frozen, idle, moving], 0.1).step()
    assert all(copies(w) == fresh(w) for w in (frozen, idle, moving))


def model_and_step(captured: bool) -> tuple[nn.Module, Any, Any]:
    """A network whose first and last weight are tied, its training step and its evaluation."""
    mg.manual_seed(0)
    first = nn.Linear(24, 40, activation="gelu")
    model = nn.Sequential(first, nn.Linear(40, 24), nn.Linear(24, 40))
    model.layers[2].weight = model.layers[0].weight
    optimizer = optim.AdamW(model.parameters(), lr=0.01)

    def update(x: mg.Tensor) -> mg.Tensor:
        optimizer.zero_grad()
        with mg.precision("bf16"):
            loss = (model(x).to("float32") ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    def evaluate(x: mg.Tensor) -> mg.Tensor:
        with mg.precision("bf16"), mg.no_grad():
            return model(x)

    return model, *(map(mg.capture, (update, evaluate)) if captured else (update, evaluate))


def story(captured: bool) -> list[bytes]:
    """Losses and outputs of a training in which weights change in every way."""
    model, update, evaluate = model_and_step(captured)
    seen: list[bytes] = []
    x = mg.tensor(floats(6, 24))

    def look(steps: int) -> None:
        seen.extend(update(x).numpy().tobytes() for _ in range(steps))
        seen.append(evaluate(x).numpy().tobytes())

    look(4)
    look(1)
    saved = model.state_dict()
    look(2)
    model.load_state_dict(saved)
    look(2)
    with mg.no_grad():
        model.layers[0].weight *= 0.5  # between steps
        seen.append(evaluate(x).numpy().tobytes())
        model.layers[1].weight[3] = 1.0  # a view's change is its owner's
    look(2)
    model.load_state_dict(saved)
    seen.append(evaluate(x).numpy().tobytes())
    seen.append(evaluate(x).numpy().tobytes())
    look(3)
    return seen


def test_weights_changed_in_every_way_are_packed_as_they_are(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager and captured, against a run whose optimizer leaves the copies alone."""
    eager, captured = story(False), story(True)
    monkeypatch.setattr("minigrad.optim.optimizer.current_copies", lambda w: [None, None])
    repacked = story(False)
    assert len(set(repacked)) > 15
    assert eager == repacked
    assert captured == repacked


def pack_launches(run: Callable[[], Any]) -> int:
    with mg.profile() as profile:
        run()
    return profile.rows["pack_bf16"].calls if "pack_bf16" in profile.rows else 0


@pytest.mark.parametrize("captured", [False, True])
def test_steps_pack_activations_only(captured: bool) -> None:
    _, update, evaluate = model_and_step(captured)
    x = mg.tensor(floats(6, 24))
    assert pack_launches(lambda: update(x)) == 7  # 2 weights, 1 twice, 1 tied; 3 weight gradients
    for _ in range(3):
        update(x)
        evaluate(x)
    assert pack_launches(lambda: update(x)) == 3
    assert pack_launches(lambda: evaluate(x)) == 0


def test_a_captured_evaluation_packs_what_changed() -> None:
    model, _, evaluate = model_and_step(True)
    x = mg.tensor(floats(6, 24))
    first = [evaluate(x).numpy().tobytes() for _ in range(4)]
    assert len(set(first)) == 1
    assert pack_launches(lambda: evaluate(x)) == 0
    with mg.no_grad():
        model.layers[1].weight *= 2.0
    assert pack_launches(lambda: evaluate(x)) == 1
    assert pack_launches(lambda: evaluate(x)) == 0
    assert evaluate(x).numpy().tobytes() not in first


def test_a_weight_changed_within_the_step_is_packed_within_it() -> None:
    w, x = mg.tensor(floats(8, 5)), mg.tensor(floats(3, 5, seed=1))

    @mg.capture
    def step(x: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
        with mg.no_grad(), mg.precision("bf16"):
            before = mg.linear(x, w)
            w.copy_(w * 0.5 + 1.0)
            return before, mg.linear(x, w)

    last = None
    for _ in range(6):
        before, after = (t.numpy().tobytes() for t in step(x))
        assert last in (None, before)
        with mg.precision("bf16"):
            last = mg.linear(x, mg.tensor(w.numpy().copy())).numpy().tobytes()
        assert after == last != before


@pytest.mark.parametrize("wrong", ["count", "size", "dtype"])
def test_copies_that_do_not_fit_are_refused(wrong: str) -> None:
    p, g = floats(3, 4), floats(3, 4, seed=1)
    before = p.copy()
    good = empty((1, 16, 32, 2), mg.bfloat16)
    packed = {"count": [good], "size": [good[:, :8], good], "dtype": [good.view("u2"), good]}[wrong]
    packed = [a if a.dtype == good.dtype else a.astype(np.float16) for a in packed]
    with pytest.raises(ValueError, match="sgd: packed copies do not match their parameters"):
        launch("sgd", [p], [g], [], packed, np.zeros(12))
    assert p.tobytes() == before.tobytes()
