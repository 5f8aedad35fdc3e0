"""Optimizers against their formulas in float64 and against PyTorch; schedules at known points."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad import optim

Array = np.ndarray
State = dict[str, Any]
TOLERANCE = {"float32": 3e-6, "float64": 1e-12}
TORCH_TOLERANCE = {"Nadam": 1e-8}  # PyTorch keeps the product of the momenta in float32
SHAPES = [(3, 5), (), (7,), (16_385,), (0, 4)]  # 16,384 is what one task updates
N_STEPS = 6


def sgd(
    p: Array,
    g: Array,
    s: State,
    t: int,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
) -> Array:
    g = g + weight_decay * p
    if momentum:
        s["b"] = g if t == 1 else momentum * s["b"] + (1 - dampening) * g
        g = g + momentum * s["b"] if nesterov else s["b"]
    return p - lr * g  # fmt: skip


def adam(
    p: Array,
    g: Array,
    s: State,
    t: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    apart: bool = False,
) -> Array:
    p, g = (p * (1 - lr * weight_decay), g) if apart else (p, g + weight_decay * p)
    s["m"] = betas[0] * s.get("m", 0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0) + (1 - betas[1]) * g**2
    mean, square = s["m"] / (1 - betas[0] ** t), s["v"] / (1 - betas[1] ** t)
    return p - lr * mean / (np.sqrt(square) + eps)  # fmt: skip


def nadam(
    p: Array,
    g: Array,
    s: State,
    t: int,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
) -> Array:
    g = g + weight_decay * p
    now, following = (betas[0] * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in (t, t + 1))
    s["product"] = s.get("product", 1.0) * now
    s["m"] = betas[0] * s.get("m", 0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0) + (1 - betas[1]) * g**2
    mean = following * s["m"] / (1 - s["product"] * following) + (1 - now) * g / (1 - s["product"])
    return p - lr * mean / (np.sqrt(s["v"] / (1 - betas[1] ** t)) + eps)  # fmt: skip


def rmsprop(
    p: Array,
    g: Array,
    s: State,
    t: int,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> Array:
    g = g + weight_decay * p
    s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g**2
    step = g / (np.sqrt(s["v"]) + eps)
    if momentum:
        step = s["b"] = momentum * s.get("b", 0) + step
    return p - lr * step  # fmt: skip


def adagrad(
    p: Array,
    g: Array,
    s: State,
    t: int,
    lr: float = 1e-2,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    initial_accumulator: float = 0.0,
) -> Array:
    g = g + weight_decay * p
    s["v"] = s.get("v", initial_accumulator) + g**2
    return p - lr * g / (np.sqrt(s["v"]) + eps)  # fmt: skip


def adamw(p: Array, g: Array, s: State, t: int, **options: Any) -> Array:
    return adam(p, g, s, t, **({"weight_decay": 0.01} | options), apart=True)


@dataclass(frozen=True)
class Case:
    kind: str
    formula: Callable[..., Array]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.kind, *self.options])

    def ours(self, params: list[Any], **more: Any) -> optim.Optimizer:
        return getattr(optim, self.kind)(params, **self.options | more)

    def torch(self, torch: Any, params: list[Any]) -> Any:
        theirs = {"Nadam": "NAdam"}.get(self.kind, self.kind)
        names = {"initial_accumulator": "initial_accumulator_value"}
        options = {names.get(k, k): v for k, v in self.options.items()}
        return getattr(torch.optim, theirs)(params, **options)


CASES = [
    Case("SGD", sgd, {"lr": 0.1}),
    Case("SGD", sgd, {"lr": 0.1, "weight_decay": 0.2}),
    Case("SGD", sgd, {"lr": 0.1, "momentum": 0.9}),
    Case("SGD", sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    Case("SGD", sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.2}),
    Case("Adam", adam),
    Case("Adam", adam, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    Case("AdamW", adamw),
    Case("AdamW", adamw, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    Case("Nadam", nadam),
    Case("Nadam", nadam, {"lr": 0.02, "momentum_decay": 0.3, "weight_decay": 0.2}),
    Case("RMSprop", rmsprop),
    Case("RMSprop", rmsprop, {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.2}),
    Case("RMSprop", rmsprop, {"momentum": 0.9}),
    Case("Adagrad", adagrad),
    Case("Adagrad", adagrad, {"lr": 0.1, "initial_accumulator": 0.3, "weight_decay": 0.2}),
]
STEPPED = pytest.mark.parametrize("case", CASES, ids=str)


def start(dtype: str) -> list[Array]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]


def gradients(t: int, dtype: str) -> list[Array]:
    rng = np.random.default_rng(t + 100)
    return [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]


def leaves(arrays: list[Array]) -> list[mg.Tensor]:
    return [mg.tensor(a, requires_grad=True) for a in arrays]


def run(optimizer: optim.Optimizer, dtype: str, steps: range, scale: float = 1.0) -> None:
    for t in steps:
        for p, g in zip(optimizer.params, gradients(t, dtype), strict=True):
            p.grad = mg.tensor(g)
        optimizer.step(scale)


def by_formula(case: Case, dtype: str, scale: float = 1.0) -> list[Array]:
    out = [a.astype(np.float64) for a in start(dtype)]
    states: list[State] = [{} for _ in out]
    for t in range(1, N_STEPS + 1):
        for i, g in enumerate(gradients(t, dtype)):
            out[i] = case.formula(
                out[i], g.astype(np.float64) * scale, states[i], t, **case.options
            )
    return out


def close(actual: list[Array], expected: list[Array], dtype: str, least: float = 0.0) -> None:
    tolerance = max(TOLERANCE[dtype], least)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@STEPPED
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_follow_the_formula(case: Case, dtype: str, level: str) -> None:
    optimizer = case.ours(leaves(start(dtype)))
    run(optimizer, dtype, range(1, N_STEPS + 1))
    close([p.numpy() for p in optimizer.params], by_formula(case, dtype), dtype)


@STEPPED
def test_reference_kernels_follow_the_formula(case: Case) -> None:
    with mg.use_kernels("ref"):
        optimizer = case.ours(leaves(start("float64")))
        run(optimizer, "float64", range(1, N_STEPS + 1))
    close([p.numpy() for p in optimizer.params], by_formula(case, "float64"), "float64")


@STEPPED
def test_steps_are_those_of_torch(case: Case) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    for dtype in ("float64", "float32"):
        optimizer = case.ours(leaves(start(dtype)))
        run(optimizer, dtype, range(1, N_STEPS + 1))
        theirs = [torch.tensor(a, requires_grad=True) for a in start(dtype)]
        peer = case.torch(torch, theirs)
        for t in range(1, N_STEPS + 1):
            for p, g in zip(theirs, gradients(t, dtype), strict=True):
                p.grad = torch.tensor(g)
            peer.step()
        expected = [p.detach().numpy() for p in theirs]
        least = TORCH_TOLERANCE.get(case.kind, 0.0)
        close([p.numpy() for p in optimizer.params], expected, dtype, least)


@STEPPED
def test_a_scale_is_a_scale_of_the_gradients(case: Case) -> None:
    optimizer = case.ours(leaves(start("float64")))
    run(optimizer, "float64", range(1, N_STEPS + 1), scale=0.3)
    close([p.numpy() for p in optimizer.params], by_formula(case, "float64", 0.3), "float64")


def uneven(optimizer: optim.Optimizer, steps: range) -> None:
    """Steps in which parameter i has no gradient before step i, nor in every third."""
    for t in steps:
        for i, (p, g) in enumerate(zip(optimizer.params, gradients(t, "float64"), strict=True)):
            p.grad = mg.tensor(g) if took_part(i, t) else None
        optimizer.step()


def took_part(i: int, t: int) -> bool:
    return t > i and (t + i) % 3 != 0


@STEPPED
def test_a_parameter_counts_its_own_steps(case: Case) -> None:
    optimizer = case.ours(leaves(start("float64")))
    uneven(optimizer, range(1, 4))
    resumed = case.ours(leaves([p.numpy() for p in optimizer.params]))
    resumed.load_state_dict(optimizer.state_dict())
    uneven(resumed, range(4, N_STEPS + 1))
    expected = [a.astype(np.float64) for a in start("float64")]
    for i, array in enumerate(expected):
        state: State = {}
        taken = [t for t in range(1, N_STEPS + 1) if took_part(i, t)]
        for own, t in enumerate(taken, start=1):
            g = gradients(t, "float64")[i]
            expected[i] = array = case.formula(array, g, state, own, **case.options)
    close([p.numpy() for p in resumed.params], expected, "float64")


def test_parameters_in_step_share_one_launch() -> None:
    optimizer = optim.AdamW(leaves(start("float32")))
    with mg.profile() as p:
        run(optimizer, "float32", range(1, N_STEPS + 1))
    assert p.rows["adam"].calls == N_STEPS


@STEPPED
def test_state_goes_on_bit_for_bit(case: Case) -> None:
    """Through an optimizer that had been somewhere else before."""
    whole = case.ours(leaves(start("float32")))
    run(whole, "float32", range(1, N_STEPS + 1))
    first = case.ours(leaves(start("float32")))
    run(first, "float32", range(1, 4))
    second = case.ours(leaves([p.numpy() for p in first.params]), lr=7.0)
    for p, g in zip(second.params, gradients(9, "float32"), strict=True):
        p.grad = mg.tensor(g)
    second.state_dict()
    second.load_state_dict(first.state_dict())
    run(second, "float32", range(4, N_STEPS + 1))
    for a, b in zip(whole.params, second.params, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()
    assert second.steps == N_STEPS


def test_an_early_state_forgets_later_moments() -> None:
    optimizer = optim.Adam(leaves(start("float32")), lr=0.1)
    early = optimizer.state_dict()
    run(optimizer, "float32", range(1, 4))
    optimizer.load_state_dict(early)
    assert optimizer.state_dict()["moments"] == {}
    for p, a in zip(optimizer.params, start("float32"), strict=True):
        with mg.no_grad():
            p.copy_(a)
    run(optimizer, "float32", range(1, N_STEPS + 1))
    expected = by_formula(Case("Adam", adam, {"lr": 0.1}), "float32")
    close([p.numpy() for p in optimizer.params], expected, "float32")


def test_state_that_does_not_fit_is_refused_and_loads_nothing() -> None:
    optimizer = optim.Adam(leaves(start("float32")))
    run(optimizer, "float32", range(1, 3))
    before = optimizer.state_dict()
    for wrong in (
        before | {"moments": {"0.0": np.zeros((5, 3))}},
        before | {"moments": {"9.0": np.zeros(1)}},
        before | {"moments": {"0.2": np.zeros((3, 5))}},
        before | {"groups": []},
        before | {"parameter_steps": [1]},
    ):
        with pytest.raises(ValueError, match=r"not fit the parameters|has 0 groups, expected 1"):
            optimizer.load_state_dict(wrong)
    after = optimizer.state_dict()
    assert after["steps"] == 2
    for key, array in before["moments"].items():
        np.testing.assert_array_equal(after["moments"][key], array)


def test_groups_have_settings_of_their_own_and_a_common_rate() -> None:
    a, b = leaves([np.ones(3, np.float32), np.ones(3, np.float32)])
    groups = [{"params": [a], "weight_decay": 0.5}, {"params": [b], "lr_scale": 0.1}]
    optimizer = optim.SGD(groups, lr=0.1)
    optimizer.lr = 0.2
    assert optimizer.lr == 0.2
    a.grad, b.grad = mg.ones((3,)), mg.ones((3,))
    optimizer.step()
    np.testing.assert_allclose(a.numpy(), 1 - 0.2 * 1.5, rtol=1e-6)
    np.testing.assert_allclose(b.numpy(), 1 - 0.02, rtol=1e-6)
    optimizer.zero_grad()
    assert a.grad is b.grad is None


def test_parameters_without_a_gradient_are_left_alone_and_versions_tell_who_moved() -> None:
    a, b = leaves([np.ones(3, np.float32), np.ones(3, np.float32)])
    optimizer = optim.AdamW([a, b], weight_decay=0.5)
    a.grad = mg.ones((3,))
    before = a.version, b.version
    optimizer.step()
    assert b.tolist() == [1, 1, 1]
    assert a.tolist() != [1, 1, 1]
    assert (a.version, b.version) == (before[0] + 1, before[1])
    assert set(optimizer.state_dict()["moments"]) == {"0.0", "0.1"}


def test_a_step_between_forward_and_backward_is_noticed() -> None:
    (w,) = leaves([np.ones((2, 2), np.float32)])
    loss = (mg.ones((1, 2)) @ w @ w).sum()
    w.grad = mg.ones((2, 2))
    optim.SGD([w], 0.1).step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_gradients_of_any_strides_are_read_right() -> None:
    (w,) = leaves([np.zeros((3, 4), np.float32)])
    g = np.arange(12, dtype=np.float32).reshape(4, 3)
    w.grad = mg.tensor(g).permute(1, 0)
    optim.SGD([w], 1.0).step()
    np.testing.assert_array_equal(w.numpy(), -g.T)
    assert optim.grad_norm([w]) == pytest.approx(np.linalg.norm(g), rel=1e-6)


@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_clipping_bounds_the_norm_of_all_gradients_together(largest: float, level: str) -> None:
    params = leaves(start("float32"))
    grads = gradients(1, "float32")
    for p, g in zip(params, grads, strict=True):
        p.grad = mg.tensor(g)
    norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads))
    assert optim.grad_norm(params) == pytest.approx(norm, rel=1e-6)
    scale = optim.clip_scale(params, largest)
    assert scale == pytest.approx(min(1.0, largest / norm), rel=1e-5)
    before = [p.numpy().copy() for p in params]
    optim.SGD(params, 1.0).step(scale)
    moved = [b - p.numpy() for b, p in zip(before, params, strict=True)]
    length = math.sqrt(sum(float((m.astype(np.float64) ** 2).sum()) for m in moved))
    assert length == pytest.approx(min(norm, largest), rel=1e-4)
    for p in params:
        p.grad = None
    assert optim.grad_norm(params) == 0
    assert optim.clip_scale(params, largest) == 1


def test_clipping_inside_the_update_has_the_bits_of_clipping_before_it(level: str) -> None:
    """And reads the gradients twice, for their norm and for the update, and writes none."""
    results = []
    for inside in (True, False):
        params = leaves(start("float32"))
        optimizer = optim.AdamW(params, lr=0.1)
        for t in range(1, N_STEPS + 1):
            given = gradients(t, "float32")
            for p, g in zip(params, given, strict=True):
                p.grad = mg.tensor(g)
            if inside:
                with mg.profile() as profile:
                    optimizer.step(optim.clip_scale(params, 0.5))
                if t > 1:  # the first step fills the moments
                    assert set(profile.rows) == {"sum_squares", "clip_factor", "copy", "adam"}
                    assert profile.rows["copy"].bytes <= 16  # the factor
                for p, g in zip(params, given, strict=True):
                    assert p.grad.numpy().tobytes() == g.tobytes()
            else:
                scale = float(optim.clip_scale(params, 0.5))
                assert scale < 1
                for p in params:
                    p.grad = p.grad * scale
                optimizer.step()
        results.append([p.numpy().tobytes() for p in params])
    assert results[0] == results[1]


def test_accumulated_batches_are_the_whole_batch() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 5)), rng.integers(0, 3, 8)
    weights = []
    for parts in (1, 4):
        (w,) = leaves([np.ones((3, 5))])
        optimizer = optim.Adam([w], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            for rows in np.split(np.arange(8), parts):
                loss = mg.cross_entropy(mg.linear(mg.tensor(x[rows]), w), mg.tensor(y[rows]))
                (loss * (1 / parts)).backward()
            optimizer.step()
        weights.append(w.numpy())
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-12)


def test_bad_arguments_are_named() -> None:
    (w,) = leaves([np.ones(3, np.float32)])
    with pytest.raises(ValueError, match="nesterov needs a momentum and no dampening"):
        optim.SGD([w], 0.1, nesterov=True)
    with pytest.raises(ValueError, match="nesterov needs a momentum and no dampening"):
        optim.SGD([w], 0.1, momentum=0.9, dampening=0.1, nesterov=True)
    with pytest.raises(TypeError, match=r"Adam: parameters must be float32 or float64 leaves, got"):
        optim.Adam([w * 2])
    with pytest.raises(TypeError, match=r"got float16 \(3,\)"):
        optim.Adam([mg.ones((3,), "float16")])
    with pytest.raises(ValueError, match="Adam: no parameters"):
        optim.Adam([])
    with pytest.raises(TypeError, match=r"Adam: expected a list of parameters; write \[p\]"):
        optim.Adam(w)
    for lr in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"SGD: lr {lr}: expected a number of at least 0"):
            optim.SGD([w], lr)
    with pytest.raises(ValueError, match=r"AdamW: betas \(2, 3\): expected numbers in \[0, 1\)"):
        optim.AdamW([w], betas=(2, 3))
    with pytest.raises(ValueError, match="AdamW: weight_decay -1"):
        optim.AdamW([{"params": [w], "weight_decay": -1.0}])


# ---- schedules ----

SCHEDULES = [
    (optim.cosine_schedule(10, 110, 0.1), {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 60: 0.55, 110: 0.1,
                                           500: 0.1}),
    (optim.cosine_schedule(10, 110), {35: (1 + math.sqrt(0.5)) / 2, 85: (1 - math.sqrt(0.5)) / 2}),
    (optim.cosine_schedule(0, 100), {0: 1.0, 50: 0.5, 100: 0.0}),
    (optim.cosine_schedule(5, 5, 0.2), {0: 0.2, 4: 1.0, 6: 0.2}),
    (optim.inverse_sqrt_schedule(100), {0: 0.01, 49: 0.5, 99: 1.0, 399: 0.5, 9999: 0.1}),
    (optim.linear_schedule(4, 104, 0.2), {0: 0.25, 3: 1.0, 4: 1.0, 54: 0.6, 104: 0.2, 999: 0.2}),
    (optim.linear_schedule(0, 10), {0: 1.0, 5: 0.5, 10: 0.0}),
    (optim.slanted_triangular_schedule(1000), {0: 0.03125, 50: 0.515625, 100: 1.0, 1000: 0.03125}),
    (optim.slanted_triangular_schedule(5), {0: 0.03125, 1: 1.0, 5: 1 / 32 + 31 / 32 * 5 / 9}),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(SCHEDULES)))
def test_schedules_at_known_points(case: int) -> None:
    schedule, points = SCHEDULES[case]
    assert {t: schedule(t) for t in points} == {t: pytest.approx(v) for t, v in points.items()}


def test_slanted_triangular_has_the_papers_rates() -> None:
    rate = optim.slanted_triangular_schedule(1000, cut=0.1, ratio=32)
    assert 0.01 * rate(0) == pytest.approx(0.0003125, rel=1e-12)
    assert 0.01 * rate(100) == pytest.approx(0.01, rel=1e-12)
    assert 0.01 * rate(550) == pytest.approx(0.005156, abs=5e-7)


def test_plateau_waits_and_then_decays() -> None:
    schedule = optim.PlateauSchedule(decay=0.5, patience=2, threshold=0.01)
    losses = [10, 9, 8.95, 9, 8.95, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0]
    #         best best  1   2  decay best 1    2  decay 1    2  decay
    factors = [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]
    assert [schedule.report(loss) for loss in losses] == factors
