"""Linear + cross-entropy in chunks: against float64, against the composed form bit for bit, in less
memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad import memory
from minigrad.models import GPT, GPTConfig
from minigrad.models.gpt import LARGE_VOCABULARY
from minigrad.ops.linear_cross_entropy import CHUNK_ROWS

Array = np.ndarray

DIM, CLASSES = 19, 37
# float32 logits of some 20 products against float64; half types: the rounding of their inputs is
# in the reference, so only that of their results is left
TOLERANCE = {"float32": 2e-6, "float64": 1e-13, "bfloat16": 2**-8, "float16": 2**-11}


def data(n: int, dtype: str = "float32") -> tuple[list[mg.Tensor], Array]:
    """Leaves x (n, D), weight (V, D), bias (V,), and targets (n,), some of them ignored."""
    rng = np.random.default_rng(n)
    shapes = ((n, DIM), (CLASSES, DIM), (CLASSES,))
    leaves = [mg.tensor(rng.standard_normal(s), dtype, requires_grad=True) for s in shapes]
    targets = rng.integers(0, CLASSES, n)
    targets[::5] = -100
    return leaves, targets


def reference(
    x: Array, w: Array, b: Array, targets: Array, smoothing: float, weights: Array
) -> list[Array]:
    """Losses (n,), and the gradients of Σ weights · losses, in float64."""
    logits = x @ w.T + b
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = np.full(logits.shape, smoothing / CLASSES)
    used = np.flatnonzero(targets != -100)
    wanted[used, targets[used]] += 1 - smoothing
    on = (targets != -100)[:, None]
    slope = np.where(on, np.exp(logs) - wanted, 0) * weights[:, None]
    losses = np.where(on[:, 0], -(wanted * logs).sum(-1), 0)
    return [losses, slope @ w, slope.T @ x, slope.sum(0)]


def close(actual: Array, expected: Array, tolerance: float) -> None:
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, 0, tolerance * scale)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", [1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 3])
def test_loss_and_gradients(n: int, reduction: str, level: str) -> None:
    for dtype, tolerance in TOLERANCE.items():
        leaves, targets = data(n, dtype)
        exact = [np.asarray(t.to("float64").numpy()) for t in leaves]
        weights = np.random.default_rng(1).uniform(0.5, 1.5, n)
        if reduction != "none":
            weights[:] = 3 / (max(1, (targets != -100).sum()) if reduction == "mean" else 1)
        losses, *gradients = reference(*exact, targets, 0.1, weights)
        loss = mg.linear_cross_entropy(
            leaves[0], leaves[1], targets, leaves[2], label_smoothing=0.1, reduction=reduction
        )
        if reduction == "mean" and not (targets != -100).any():
            assert np.isnan(loss.item())
            continue
        assert loss.dtype.name == ("float64" if dtype == "float64" else "float32")
        seed = mg.tensor(weights, loss.dtype) if reduction == "none" else 3.0
        close(loss.numpy() * (1 if reduction == "none" else 3),
              losses if reduction == "none" else (losses * weights).sum(),
              max(tolerance, 4e-6) if dtype != "float64" else tolerance)  # fmt: skip
        for got, want in zip(mg.grad((loss * seed).sum(), leaves), gradients, strict=True):
            assert got.dtype.name == dtype
            close(got.numpy(), want, 4 * tolerance)


def test_the_bits_are_those_of_the_composed_form(level: str) -> None:
    """A chunk is a block of the products' inner dimension, so sums have the same order."""
    leaves, targets = data(2 * CHUNK_ROWS + 100)
    x, w, b = leaves
    fused = mg.linear_cross_entropy(x, w, targets, b)
    composed = mg.cross_entropy(mg.linear(x, w, b), targets)
    pairs = zip(mg.grad(fused, [x, w]), mg.grad(composed, [x, w]), strict=True)
    for got, want in [(fused, composed), *pairs]:
        assert got.numpy().tobytes() == want.numpy().tobytes()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("n", [2, CHUNK_ROWS + 1])
def test_mixed_precision_multiplies_in_bf16(n: int, reduction: str, level: str) -> None:
    """Logits are those of rounded operands, not rounded themselves; gradients have the dtypes of
    what they are of, within the rounding of the logits' gradient and of x's."""
    leaves, targets = data(n)
    x, w, b = leaves
    rounded = [np.asarray(t.to("bfloat16").to("float64").numpy()) for t in (x, w)]
    weights = np.ones(n)
    if reduction == "mean":
        weights /= (targets != -100).sum()
    losses, *gradients = reference(*rounded, b.numpy().astype(np.float64), targets, 0.0, weights)
    with mg.precision("bf16"):
        loss = mg.linear_cross_entropy(x, w, targets, b, reduction=reduction)
    assert loss.dtype.name == "float32"
    close(loss.numpy(), losses if reduction == "none" else losses.sum() * weights[0], 4e-6)
    for got, want in zip(mg.grad(loss.sum(), leaves), gradients, strict=True):
        assert got.dtype.name == "float32"
        difference = np.linalg.norm(got.numpy().astype(np.float64) - want)
        assert difference <= 2.0**-8 * np.linalg.norm(want)


def test_in_mixed_precision_the_weight_is_packed_once_a_version() -> None:
    (x, w, b), targets = data(2 * CHUNK_ROWS + 3)
    with mg.precision("bf16"):
        mg.linear_cross_entropy(x, w, targets, b).backward()
        with mg.profile() as p:
            loss = mg.linear_cross_entropy(x, w, targets, b)
            loss.backward()
    assert p.rows["pack_bf16"].calls == 3  # the rows of three chunks, for the weight's gradient
    assert len(w.storage.packed) == 2
    wrong = pytest.raises(TypeError, match="linear_cross_entropy: weight is float64")
    with mg.precision("bf16"), wrong:
        mg.linear_cross_entropy(x, w.to("float64"), targets)


@pytest.mark.parametrize("needs", [(0,), (1,), (2,), (0, 2)])
def test_only_what_is_asked_for(needs: tuple[int, ...]) -> None:
    leaves, targets = data(300)
    full = mg.grad(mg.linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2]), leaves)
    some = [t if i in needs else t.detach() for i, t in enumerate(leaves)]
    mg.linear_cross_entropy(some[0], some[1], targets, some[2]).backward()
    for i, (t, want) in enumerate(zip(some, full, strict=True)):
        assert (t.grad is not None) == (i in needs)
        if t.grad is not None:
            assert t.grad.numpy().tobytes() == want.numpy().tobytes()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_graph_can_be_walked_twice(reduction: str) -> None:
    (x, w, b), targets = data(300)
    loss = (mg.linear_cross_entropy(x, w, targets, b, reduction=reduction) * 2.0).sum()
    first = [g.numpy().copy() for g in mg.grad(loss, [x, w, b], retain_graph=True)]
    for got, want in zip(mg.grad(loss, [x, w, b]), first, strict=True):
        assert got.numpy().tobytes() == want.tobytes()


def test_no_rows() -> None:
    (x, w, b), targets = data(0)
    total = mg.linear_cross_entropy(x, w, targets, b, reduction="sum")
    assert total.item() == 0
    for got in mg.grad(total, [x, w, b]):
        assert not got.numpy().any()
    assert np.isnan(mg.linear_cross_entropy(x, w, targets, b).item())


def test_second_derivative_names_the_composed_form() -> None:
    (x, w, b), targets = data(3)
    loss = mg.linear_cross_entropy(x, w, targets, b)
    with pytest.raises(NotImplementedError, match=r"cross_entropy\(linear\(x, weight, bias\)"):
        mg.grad(loss, x, create_graph=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": [0, CLASSES, 1]}, IndexError, "linear_cross_entropy: target 37"),
        ({"targets": [0, 1]}, ValueError, r"targets \(2,\) do not fit logits \(3, 37\)"),
        ({"weight": mg.zeros((CLASSES, 4))}, ValueError, "does not fit a weight"),
        ({"bias": mg.zeros((4,))}, ValueError, r"bias of shape \(4,\); expected \(37,\)"),
        ({"reduction": "max"}, ValueError, "unknown reduction 'max'"),
        ({"label_smoothing": 1.0}, ValueError, r"must be in \[0, 1\), got 1.0"),
    ],
)
def test_what_does_not_fit_is_named(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    (x, w, b), _ = data(3)
    given: dict[str, Any] = {"x": x, "weight": w, "targets": [0, 1, 2], "bias": b}
    with pytest.raises(error, match=message):
        mg.linear_cross_entropy(**given | change)


def test_the_logits_never_exist_as_a_whole() -> None:
    n, classes = 6 * CHUNK_ROWS, 1000
    rng = np.random.default_rng(0)
    x = mg.tensor(rng.standard_normal((n, 8)), "float32", requires_grad=True)
    w = mg.tensor(rng.standard_normal((classes, 8)), "float32", requires_grad=True)
    targets = rng.integers(0, classes, n)
    memory.reset_peak_memory()
    before = mg.memory_statistics()["live_bytes"]
    mg.linear_cross_entropy(x, w, targets).backward()
    taken = mg.memory_statistics()["peak_bytes"] - before
    assert taken < n * classes * 4 / 2


def test_gpt_with_a_large_vocabulary_uses_it_and_has_the_same_loss() -> None:
    model = GPT(GPTConfig(LARGE_VOCABULARY, seq_len=8, n_layers=1, n_heads=1, dim=8))
    tokens = mg.tensor(np.random.default_rng(0).integers(0, LARGE_VOCABULARY, (2, 9)))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    composed = mg.cross_entropy(model(inputs), targets)
    with mg.profile() as p:
        loss = model.loss(inputs, targets)
        loss.backward()
    assert loss.item() == composed.item()
    assert p.rows["scale"].calls == 2  # of the sum, and of the gradients
