"""Captured steps: the bits of the step as it is, over many steps; and what cannot be captured."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny
from child import run_python

import minigrad as mg
from minigrad import nn, optim
from minigrad.capture import MAX_CALLS, MAX_RECORDINGS
from minigrad.memory import reset_peak_memory
from minigrad.models import GPT, GPTConfig

N_STEPS = 12
Arrays = list[np.ndarray]


def same_bits(a: Arrays, b: Arrays) -> bool:
    return len(a) == len(b) and all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# ---- the same bits as the step as it is ----


def mlp(optimizer: Callable[..., optim.Optimizer]) -> tuple[Any, Callable[..., mg.Tensor]]:
    model = nn.Sequential(
        nn.Linear(6, 8, activation="relu"), nn.Dropout(0.25), nn.LayerNorm(8), nn.Linear(8, 3)
    )
    made = optimizer(model.parameters())

    def update(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
        made.zero_grad()
        loss = mg.cross_entropy(model(x), y)
        loss.backward()
        made.step(optim.clip_scale(model.parameters(), 0.5))
        return loss

    return (model, made), update


def mlp_batch(t: int) -> tuple[np.ndarray, np.ndarray]:
    targets = np.random.default_rng(t).integers(0, 3, 5)
    targets[: t % 3] = -100  # how many count differs from step to step
    return numbers((5, 6), t), targets


OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.02),
    "nadam": lambda p: optim.Nadam(p),
    "rmsprop": lambda p: optim.RMSprop(p, momentum=0.5),
    "adagrad": lambda p: optim.Adagrad(p, initial_accumulator=0.1),
}


def trained(make: Callable[[], Any], batch: Callable[[int], Any], captured: bool) -> Arrays:
    """Losses, parameters, gradients, moments, counts and the next stream after some steps."""
    mg.manual_seed(3)
    (model, optimizer), update = make()
    step = mg.capture(update) if captured else update
    schedule = optim.cosine_schedule(3, N_STEPS)
    losses = []
    for t in range(N_STEPS):
        optimizer.lr = 0.05 * schedule(t)
        arrays = batch(t)
        losses.append(step(*(arrays if captured else map(mg.tensor, arrays))).numpy().copy())
    state = optimizer.state_dict()
    counts = [state["steps"], *state["parameter_steps"], mg.random.default_generator().stream]
    parameters = model.parameters()
    versions = [p.version for p in parameters]
    gradients = [p.grad.numpy() for p in parameters]
    arrays = [p.numpy() for p in parameters] + gradients + list(state["moments"].values())
    return [*losses, *arrays, np.array(counts), np.array(versions)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_mlp_steps_have_the_same_bits(name: str, level: str) -> None:
    """With dropout, clipping, a schedule and ignored targets."""
    as_it_is, captured = (
        trained(lambda: mlp(OPTIMIZERS[name]), mlp_batch, captured) for captured in (False, True)
    )
    assert same_bits(as_it_is, captured)
    assert len({a.tobytes() for a in captured[:N_STEPS]}) == N_STEPS


def gpt() -> tuple[Any, Callable[..., mg.Tensor]]:
    model = GPT(GPTConfig(vocab_size=11, seq_len=8, n_layers=2, n_heads=2, dim=16, dropout=0.2))
    optimizer = optim.AdamW(model.parameter_groups(0.1), lr=0.01)

    def update(*batches: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
        optimizer.zero_grad()
        losses = []
        for i in range(0, len(batches), 2):  # gradients add up over two batches
            loss = model.loss(batches[i], batches[i + 1]) * 0.5
            loss.backward()
            losses.append(loss)
        optimizer.step(optim.clip_scale(model.parameters(), 1.0))
        return mg.stack(losses)

    return (model, optimizer), update


def gpt_batch(t: int) -> Arrays:
    rng = np.random.default_rng(t)
    return [rng.integers(0, 11, (3, 8)) for _ in range(4)]


def test_gpt_steps_have_the_same_bits(level: str) -> None:
    as_it_is, captured = (trained(gpt, gpt_batch, captured) for captured in (False, True))
    assert same_bits(as_it_is, captured)


@pytest.mark.parametrize("form", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_gpt_steps_in_every_mode_have_the_same_bits(
    form: str, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the loss made in chunks, ignored targets, packed weights, recomputed blocks."""
    monkeypatch.setattr("minigrad.models.gpt.LARGE_VOCABULARY", 1)

    def make() -> tuple[Any, Callable[..., mg.Tensor]]:
        shape = GPTConfig(vocab_size=11, seq_len=8, n_layers=2, n_heads=2, dim=16, dropout=0.2)
        model = GPT(shape, checkpointed)
        optimizer = optim.AdamW(model.parameter_groups(0.1), lr=0.01)

        def update(tokens: mg.Tensor, targets: mg.Tensor) -> mg.Tensor:
            optimizer.zero_grad()
            with mg.precision(form):
                loss = model.loss(tokens, targets)
            loss.backward()
            optimizer.step(optim.clip_scale(model.parameters(), 1.0))
            return loss

        return (model, optimizer), update

    def batch(t: int) -> Arrays:
        tokens, targets = gpt_batch(t)[:2]
        targets[0, : t % 5] = -100  # another number of them in every step
        return [tokens, targets]

    as_it_is, captured = (trained(make, batch, captured) for captured in (False, True))
    assert same_bits(as_it_is, captured)


def test_references_have_the_same_bits() -> None:
    """What is Python, not native, is replayed, too."""
    with mg.use_kernels("ref"):
        as_it_is, captured = (
            trained(lambda: mlp(OPTIMIZERS["adamw"]), mlp_batch, captured)
            for captured in (False, True)
        )
    assert same_bits(as_it_is, captured)


def test_random_numbers_and_numpy_are_drawn_and_done_again() -> None:
    def draw(x: mg.Tensor) -> tuple[mg.Tensor, ...]:
        wide = mg.cast(x, "float64")
        drawn = mg.randint(0, 1000, (4,)), mg.randperm(6), mg.rand((3,)), mg.randn((3,))
        return (*drawn, wide @ wide, mg.argsort(x, axis=1), mg.arange(3) + 1)

    results = []
    for step in (draw, mg.capture(draw)):
        mg.manual_seed(1)
        results.append(
            [y.numpy().copy() for t in range(6) for y in step(mg.tensor(numbers((3, 3), t)))]
        )
    assert same_bits(*results)


@pytest.mark.parametrize("config", [tiny.GPT, tiny.AUTOENCODER, tiny.GAN], ids=lambda c: c.__doc__)
def test_the_trainer_captures_its_steps_and_they_have_the_same_bits(config: Any) -> None:
    runs = []
    for eager in (True, False):
        mg.manual_seed(0)
        task = tiny.make(dataclasses.replace(config, eager=eager))
        losses = [task.step(t) for t in range(N_STEPS)]
        runs.append([np.array(losses), *task.model.state_dict().values()])
    assert same_bits(*runs)


# ---- when it is replayed, and in what memory ----


def counted(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    calls: list[int] = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs)

    return mg.capture(wrapped), calls


def test_two_calls_are_recorded_and_the_others_replayed() -> None:
    step, calls = counted(lambda x, k: x * k)
    for t in range(5):
        assert step(np.full(3, t), 2).tolist() == [2 * t] * 3
    assert len(calls) == 2
    assert step(np.full(4, 1), 2).tolist() == [2] * 4  # another shape
    assert step(np.full(3, 1.5), 2).tolist() == [3.0] * 3  # dtype
    assert step(np.full(3, 1), 3).tolist() == [3] * 3  # constant
    assert step(np.full(3, 1), k=3).tolist() == [3] * 3
    with mg.use_kernels("ref"):
        assert step(np.full(3, 7), 2).tolist() == [14] * 3
    assert len(calls) == 7
    assert step(np.full(3, 9), 2).tolist() == [18] * 3  # the first recording is still there
    assert len(calls) == 7
    for n in range(10, 10 + MAX_RECORDINGS):
        step(np.full(n, 1), 2)
    step(np.full(3, 9), 2)  # and makes room
    assert len(calls) == 8 + MAX_RECORDINGS


def test_results_are_in_memory_of_their_own() -> None:
    step = mg.capture(lambda x: [x + 1, x])
    kept = [step(np.full(2, t)) for t in range(5)]
    assert [[y.tolist() for y in pair] for pair in kept] == [
        [[t + 1] * 2, [t] * 2] for t in range(5)
    ]
    assert not any(y.requires_grad for pair in kept for y in pair)


class Pair(NamedTuple):
    first: mg.Tensor
    rest: dict[str, Any]


def test_results_may_be_nested() -> None:
    def nested(x: mg.Tensor) -> Pair:
        return Pair(x + 1, {"squares": [x * x, None], "sum": (mg.sum(x),)})

    step = mg.capture(nested)
    for t in range(4):
        made = step(np.full(2, t))
        assert type(made) is Pair
        assert made.first.tolist() == [t + 1] * 2
        assert list(made.rest) == ["squares", "sum"]
        assert made.rest["squares"][0].tolist() == [t * t] * 2
        assert made.rest["squares"][1] is None
        assert made.rest["sum"][0].item() == 2 * t


@pytest.mark.parametrize(("one", "other"), [(0.0, -0.0), (1, 1.0), (1, True), (0, False)], ids=repr)
def test_constants_that_only_compare_equal_are_apart(one: Any, other: Any) -> None:
    def as_it_is(x: mg.Tensor, k: Any) -> mg.Tensor:
        return mg.full((2,), k) if isinstance(k, int) else x * k

    step, x = mg.capture(as_it_is), mg.ones((2,))
    for k in (one, other, one, other, one, other):
        made, expected = step(x, k), as_it_is(x, k)
        assert made.dtype == expected.dtype
        assert made.numpy().tobytes() == expected.numpy().tobytes()


def test_nan_is_a_constant_like_others() -> None:
    step, calls = counted(lambda x, k: x * k)
    for _ in range(5):
        assert np.isnan(step(np.ones(2), float("nan")).numpy()).all()
    assert len(calls) == 2


def test_gradients_are_those_of_the_replay() -> None:
    w = mg.tensor([1.0, 2.0], requires_grad=True)

    def update(x: mg.Tensor) -> None:
        w.grad = None
        (w * x).sum().backward()

    step = mg.capture(update)
    for t in range(4):
        step(np.float32([t, 1]))
        step(np.float32([[t, 2], [0, 0]]))  # another recording, with a gradient of its own
        step(np.float32([t, 3]))
        assert w.grad is not None
        assert w.grad.tolist() == [t, 3]


def test_gradients_that_are_kept_stay_what_they_were() -> None:
    w = mg.tensor([1.0, 2.0], requires_grad=True)

    def update(x: mg.Tensor) -> None:
        w.grad = None
        (w * x).sum().backward()

    step = mg.capture(update)
    kept, views = [], []
    for t in range(6):
        step(np.float32([t, 1]))
        assert w.grad is not None
        assert w.grad is w.grad
        kept.append(w.grad)
        views.append(w.grad.numpy())
        w.grad *= 2  # this step's alone
        assert w.grad.tolist() == [2 * t, 2]
    w.grad = None
    (w * 3).sum().backward()  # as it is: adds to nothing of a replay
    assert w.grad.tolist() == [3, 3]
    assert [g.tolist() for g in kept] == [[2 * t, 2] for t in range(6)]
    assert [v.tolist() for v in views] == [[2 * t, 2] for t in range(6)]


@pytest.mark.parametrize("between", ["nothing", "kept", "scaled", "set"])
def test_gradients_of_one_captured_step_are_read_by_another(between: str) -> None:
    """Whatever of its recordings made them, and whatever is done to them in between."""

    def trained(captured: bool) -> Arrays:
        w = mg.tensor([1.0, 2.0], requires_grad=True)
        optimizer = optim.SGD([w], lr=0.1, momentum=0.9)

        def differentiate(x: mg.Tensor) -> None:
            optimizer.zero_grad()
            (w * x).sum().backward()

        def update() -> None:
            optimizer.step(optim.clip_scale([w], 1.0))

        first, second = differentiate, update
        if captured:
            first, second = mg.capture(differentiate), mg.capture(update)
        kept = []
        for t in range(10):
            x = numbers((2 + t % 2, 2), t)
            first(x if captured else mg.tensor(x))
            if between == "kept":
                kept.append(w.grad.numpy())
            elif between == "scaled":
                w.grad *= 0.5
            elif between == "set":
                w.grad = mg.tensor([float(t), 1.0])
            second()
            kept.append(w.numpy().copy())
        return kept

    assert same_bits(trained(False), trained(True))


def test_gradients_that_are_not_zeroed_add_up() -> None:
    w = mg.tensor([1.0, 2.0], requires_grad=True)
    step, calls = counted(lambda x: (w * x).sum().backward() if x.ndim else None)
    for t in range(8):
        step(np.float32([t, 1]))
        assert w.grad is not None
        assert w.grad.tolist() == [t * (t + 1) / 2, t + 1]
    assert len(calls) == 3
    w.grad = None  # from outside: it does something else, so it is recorded anew
    for t in range(4):
        step(np.float32([t, 1]))
        assert w.grad.tolist() == [t * (t + 1) / 2, t + 1]


def test_an_error_in_a_replay_leaves_no_gradient() -> None:
    w = mg.tensor(numbers((2, 3), 0), requires_grad=True)

    def update(y: mg.Tensor) -> None:
        w.grad = None
        mg.cross_entropy(w, y).backward()

    step = mg.capture(update)
    for _ in range(4):
        step(np.array([0, 2]))
    with pytest.raises(IndexError):
        step(np.array([0, 3]))
    assert w.grad is None


def test_a_recording_that_is_dropped_without_its_end() -> None:
    """Its memory stays whole until the thread goes on elsewhere, and comes back then."""
    code = """
from minigrad import dispatch, dtypes, memory_statistics
core = dispatch._core
before = memory_statistics()["live_bytes"]
arena = core.Arena()
arena.begin()
kept = core.empty((100,), dtypes.float32)
del arena
others = [core.empty((100,), dtypes.float32) for _ in range(50)]
del others, kept
core.Arena.end()
print(memory_statistics()["live_bytes"] - before)
"""
    assert run_python(code) == "0"


def test_a_loaded_state_is_followed() -> None:
    def run(captured: bool) -> Arrays:
        (model, optimizer), update = mlp(OPTIMIZERS["adamw"])
        step = mg.capture(update) if captured else lambda *b: update(*map(mg.tensor, b))
        for t in range(4):
            step(*mlp_batch(t))
        weights, state = model.state_dict(), optimizer.state_dict()
        for t in range(4, 7):
            step(*mlp_batch(t))
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
        for t in range(7, 11):
            step(*mlp_batch(t))
        return [p.numpy().copy() for p in model.parameters()]

    results = []
    for captured in (False, True):
        mg.manual_seed(0)
        results.append(run(captured))
    assert same_bits(*results)


def test_buffers_are_used_again_within_a_recording() -> None:
    def step(x: mg.Tensor) -> mg.Tensor:
        for _ in range(20):
            x = x + 1
        return x

    captured = mg.capture(step)
    x = mg.zeros((1 << 18,))
    gc.collect()  # what other tests left is not to be freed below
    live = mg.memory_statistics()["live_bytes"]
    reset_peak_memory()
    for _ in range(4):
        captured(x)
    # The argument's copy and two buffers in turn, not twenty, nor those of the first call beside
    # those of the second. A result is a copy.
    assert mg.memory_statistics()["live_bytes"] - live <= 3 * x.nbytes + (1 << 16)
    assert mg.memory_statistics()["peak_bytes"] - live <= 4 * x.nbytes + (1 << 16)
    del captured
    gc.collect()
    assert mg.memory_statistics()["live_bytes"] == live


def test_a_gradient_outlives_its_recording() -> None:
    w = mg.tensor([1.0, 2.0], requires_grad=True)

    def update(x: mg.Tensor) -> None:
        w.grad = None
        (w * x).sum().backward()

    step = mg.capture(update)
    for _ in range(4):
        step(np.float32([3, 4]))
    del step, update
    gc.collect()
    others = [mg.zeros((2,)) for _ in range(10)]
    assert w.grad is not None
    assert w.grad.tolist() == [3, 4]
    assert len(others) == 10


def test_a_profile_shows_what_is_replayed() -> None:
    step = mg.capture(lambda x: mg.tanh(x) * 2)
    x = mg.zeros((4,))
    for _ in range(3):
        with mg.profile() as p:
            step(x)
        assert p.rows["tanh"].calls == p.rows["mul"].calls == 1


def test_a_captured_step_within_another_is_part_of_it() -> None:
    inner = mg.capture(lambda x: x + 1)
    outer = mg.capture(lambda x: inner(x) * 2)
    assert [outer(np.array([t])).item() for t in range(5)] == [2, 4, 6, 8, 10]


def test_other_threads_are_not_recorded() -> None:
    def step(x: mg.Tensor) -> mg.Tensor:
        thread = threading.Thread(target=lambda: mg.exp(mg.ones((3,))).numpy())
        thread.start()
        thread.join()
        return x + 1

    captured = mg.capture(step)
    assert [captured(np.array([t])).item() for t in range(4)] == [1, 2, 3, 4]
    with mg.profile() as p:
        captured(np.array([5]))
    assert set(p.rows) == {"add", "copy"}


def test_threads_may_share_a_captured_step() -> None:
    step = mg.capture(lambda x: mg.exp(x * 2) - 1)
    wrong: list[int] = []

    def work(i: int) -> None:
        x = numbers((64,), i)
        expected = (mg.exp(mg.tensor(x) * 2) - 1).numpy()
        wrong.extend(t for t in range(100) if step(x).numpy().tobytes() != expected.tobytes())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- what cannot be captured ----

WEIGHT = mg.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
READS: dict[str, Callable[[mg.Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "float": lambda x: float(x.sum()),
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
    "dlpack": lambda x: np.from_dlpack(x),
    "tolist": lambda x: x.tolist(),
    "tensor": lambda x: mg.tensor([1.0, 2.0]),
    "operand": lambda x: x + np.ones(2, np.float32),
    "index": lambda x: x[mg.argmax(x, 0)],
    "gather": lambda x: mg.take_along_axis(x, mg.argsort(x), 1),
    "grad_norm": lambda x: optim.grad_norm([WEIGHT]),
    "divisor": lambda x: mg.argmax(x, 0) % mg.ones((2,), "int64"),
    "rate": lambda x: setattr(optim.SGD([WEIGHT], lr=1.0), "lr", 0.5),
}


@pytest.mark.parametrize("name", READS)
def test_reading_within_is_refused(name: str) -> None:
    step = mg.capture(READS[name])
    x = mg.tensor([[1.0, 2.0], [3.0, 0.0]])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a captured step is replayed without its Python"):
            step(x)
    READS[name](x)  # as it is: fine


def test_memory_that_a_call_leaves_for_the_next_is_refused() -> None:
    state = {"mean": mg.zeros((2,))}

    def update(x: mg.Tensor) -> None:
        state["mean"] = state["mean"] * 0.9 + x * 0.1

    step = mg.capture(update)
    for _ in range(MAX_CALLS - 1):
        step(np.float32([1, 2]))
    with pytest.raises(RuntimeError, match=r"was in other memory.*must be changed in place"):
        step(np.float32([1, 2]))


def test_values_of_python_that_change_are_refused() -> None:
    values = iter(range(10))
    step = mg.capture(lambda x: x + next(values))
    for _ in range(MAX_CALLS - 1):
        step(np.float32([1, 2]))
    with pytest.raises(RuntimeError, match=r"argument 1 of launch 0, add, .* had other values"):
        step(np.float32([1, 2]))


def test_launches_that_change_are_refused() -> None:
    calls: list[int] = []

    def grow(x: mg.Tensor) -> mg.Tensor:
        calls.append(1)
        for _ in calls:
            x = mg.exp(x)
        return x

    step = mg.capture(grow)
    for _ in range(MAX_CALLS - 1):
        step(np.float32([1, 2]))
    with pytest.raises(RuntimeError, match="3 launches, then 4"):
        step(np.float32([1, 2]))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (WEIGHT, "requires a gradient"),
        ([1.0], "an argument is a list; expected tensors, arrays, numbers"),
        (np.array(["a"]), "not supported; expected one of float32"),
    ],
    ids=["gradient", "list", "dtype"],
)
def test_arguments_that_do_not_fit(argument: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        mg.capture(lambda x: None)(argument)


def test_what_it_returns_must_be_tensors() -> None:
    with pytest.raises(TypeError, match="returned a float, which a replay could not make"):
        mg.capture(lambda x: 0.5)(np.zeros(2))


def test_anomalies_are_not_hunted_in_captured_steps() -> None:
    with mg.detect_anomaly(), pytest.raises(RuntimeError, match="detect_anomaly reads every"):
        mg.capture(lambda x: x)(np.zeros(2))


def test_an_error_in_a_call_or_a_replay_leaves_the_step_usable() -> None:
    step = mg.capture(lambda x, y: mg.cross_entropy(x, y))
    logits = numbers((2, 3), 0)
    expected = mg.cross_entropy(logits, np.array([0, 2])).item()
    for t in range(5):
        if t in (1, 4):
            with pytest.raises(IndexError, match=r"3 .*outside \[0, 3\)"):
                step(logits, np.array([1, 3]))
        assert step(logits, np.array([0, 2])).item() == expected


def test_a_step_of_some_parameters_in_between_is_followed() -> None:
    """Adam corrects by each parameter's own count."""
    results = []
    for captured in (False, True):
        a, b = (mg.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
        optimizer = optim.Adam([a, b], lr=0.1)

        def update(optimizer: Any = optimizer, a: mg.Tensor = a, b: mg.Tensor = b) -> mg.Tensor:
            optimizer.zero_grad()
            loss = (a * a + b).sum()
            loss.backward()
            optimizer.step()
            return loss

        step = mg.capture(update) if captured else update
        for t in range(8):
            step()
            if t == 5:
                optimizer.zero_grad()
                (a * 3).sum().backward()
                optimizer.step()
        results.append([a.tolist(), b.tolist(), optimizer.state_dict()["parameter_steps"]])
    assert results[0] == results[1]
