"""Every case of the table: forward, gradient and second gradient, on every level, against
float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import CASES, TOLERANCE, Case

import minigrad as mg

DIFFERENTIABLE = [c for c in CASES if c.differentiable]
SECOND = [c for c in DIFFERENTIABLE if c.second]


def ids(case: Case) -> str:
    return case.name


def weights_like(array: np.ndarray) -> np.ndarray:
    return np.random.default_rng(7).uniform(0.5, 1.5, array.shape)


def run(case: Case, arrays: list[np.ndarray], dtype: str) -> tuple[Any, list[Any]]:
    """The output and the gradients of its weighted sum."""
    tensors = [mg.tensor(a, dtype, requires_grad=case.differentiable) for a in arrays]
    out = case.op(*tensors)
    if not case.differentiable:
        return out, []
    (out * mg.tensor(weights_like(out.numpy()), out.dtype)).sum().backward()
    return out, [t.grad for t in tensors]


def numeric_gradients(case: Case, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Central differences of the reference's weighted sum, in float64."""
    step = 1e-6
    grads = []
    for a in arrays:
        grad = np.zeros_like(a)
        for i in np.ndindex(a.shape):
            kept = a[i]
            a[i] = kept + step
            up = np.array(case.reference(*arrays))
            a[i] = kept - step
            down = np.array(case.reference(*arrays))
            a[i] = kept
            grad[i] = ((up - down) * weights_like(up)).sum() / (2 * step)
        grads.append(grad)
    return grads


def check(actual: Any, expected: np.ndarray, tolerance: float, what: str) -> None:
    got = np.asarray(actual.numpy(), np.float64)
    assert got.shape == np.shape(expected), what
    error = np.abs(got - expected) / (1 + np.abs(expected))
    assert error.size == 0 or error.max() <= tolerance, f"{what}: error {error.max():.2e}"


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_forward_and_gradient(case: Case, dtype: str, level: str) -> None:
    arrays = [np.asarray(mg.tensor(a, dtype).to("float64").numpy()).copy() for a in case.inputs()]
    out, grads = run(case, arrays, dtype)
    forward, backward = TOLERANCE[dtype]
    if case.differentiable or dtype in ("float64", "float32"):
        check(out, case.reference(*arrays), forward * case.tolerance, "forward")
    if case.differentiable:
        exact = run(case, arrays, "float64")[1]
        for i, (got, want) in enumerate(zip(grads, exact, strict=True)):
            assert got.dtype.name == dtype
            check(got, np.asarray(want.numpy()), backward * case.tolerance, f"gradient {i}")


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=ids)
def test_gradient_matches_differences(case: Case) -> None:
    arrays = case.inputs()
    if sum(a.size for a in arrays) > 1500:
        directional(case, arrays)
        return
    grads = run(case, arrays, "float64")[1]
    for got, want in zip(grads, numeric_gradients(case, arrays), strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-3, atol=1e-5)


def directional(case: Case, arrays: list[np.ndarray]) -> None:
    """The derivative along random directions, where an element at a time would take long."""
    rng = np.random.default_rng(3)
    grads = run(case, arrays, "float64")[1]
    for _ in range(4):
        ways = [rng.standard_normal(a.shape) for a in arrays]

        def at(step: float, ways: list[np.ndarray] = ways) -> float:
            moved = [a + step * w for a, w in zip(arrays, ways, strict=True)]
            value = np.asarray(case.reference(*moved))
            return float((value * weights_like(value)).sum())

        slope = (at(1e-6) - at(-1e-6)) / 2e-6
        exact = sum(float((g.numpy() * w).sum()) for g, w in zip(grads, ways, strict=True))
        assert exact == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("case", SECOND, ids=ids)
def test_second_gradient_matches_differences(case: Case) -> None:
    """d/dx of <v, gradient> against differences of the gradient along v."""
    arrays = case.inputs()
    rng = np.random.default_rng(5)
    ways = [rng.standard_normal(a.shape) for a in arrays]

    def gradients(values: list[np.ndarray], create_graph: bool) -> tuple[list[Any], list[Any]]:
        tensors = [mg.tensor(a, requires_grad=True) for a in values]
        out = case.op(*tensors)
        # Squared, so that linear operations have a second derivative, too.
        total = (out * out * mg.tensor(weights_like(out.numpy()))).sum()
        return tensors, mg.grad(total, tensors, create_graph=create_graph)

    tensors, grads = gradients(arrays, True)
    inner = sum((g * mg.tensor(w)).sum() for g, w in zip(grads, ways, strict=True))
    if not inner.requires_grad:
        return  # a gradient that is constant: floor, sign, ...
    second = mg.grad(inner, tensors, allow_unused=True)
    step = 1e-6
    up = gradients([a + step * w for a, w in zip(arrays, ways, strict=True)], False)[1]
    down = gradients([a - step * w for a, w in zip(arrays, ways, strict=True)], False)[1]
    for got, high, low in zip(second, up, down, strict=True):
        want = (high.numpy() - low.numpy()) / (2 * step)
        have = np.zeros_like(want) if got is None else got.numpy()
        np.testing.assert_allclose(have, want, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=ids)
def test_strided_inputs(case: Case, level: str) -> None:
    """Every other element of an array twice as large, reversed, gives the same as a copy of it."""
    arrays = case.inputs()
    plain = case.op(*[mg.tensor(a, "float32") for a in arrays])
    views = []
    for a in arrays:
        wide = np.zeros([2 * n for n in a.shape], np.float32)
        wide[tuple(slice(None, None, 2) for _ in a.shape)] = a[
            tuple(slice(None, None, -1) for _ in a.shape)
        ]
        tensor = mg.tensor(wide)
        views.append(
            tensor[tuple(slice(None, None, 2) for _ in a.shape)][
                tuple(slice(None, None, -1) for _ in a.shape)
            ]
        )
    np.testing.assert_allclose(case.op(*views).numpy(), plain.numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("case", [c for c in CASES if c.torch is not None], ids=ids)
def test_agrees_with_torch(case: Case) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    arrays = case.inputs()
    out, grads = run(case, arrays, "float32")
    leaves = [torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in arrays]
    theirs = case.torch(torch, *leaves)
    (theirs * torch.tensor(weights_like(out.numpy()), dtype=torch.float32)).sum().backward()
    np.testing.assert_allclose(out.numpy(), theirs.detach().numpy(), rtol=1e-5, atol=1e-5)
    for got, leaf in zip(grads, leaves, strict=True):
        np.testing.assert_allclose(got.numpy(), leaf.grad.numpy(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_reference_kernels_agree(case: Case) -> None:
    """The plain NumPy definitions run the same operations."""
    arrays = case.inputs()
    with mg.use_kernels("ref"):
        out, grads = run(case, arrays, "float32")
    check(out, case.reference(*arrays), 1e-5, "forward")
    for got, want in zip(grads, run(case, arrays, "float32")[1], strict=True):
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-3, atol=1e-4)
