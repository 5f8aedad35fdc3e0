"""What happens at the edges: rows that see nothing, NaN behind a mask, empty axes, odd strides,
offsets beyond 2^31, indices out of range, mixed dtypes."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import CASES, attention, softmax

import minigrad as mg
from minigrad.dispatch import observe

Array = np.ndarray

DTYPES = ("float32", "float64", "bfloat16", "float16")
IMPLEMENTATIONS = ("fused", "composed")
TOLERANCE = {"float32": 2e-6, "float64": 1e-14, "bfloat16": 2e-2, "float16": 3e-3}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- attention: rows that see nothing ----

# (queries, keys, which rows see nothing, options): every way to hide all keys of a query.
FLAGS = np.ones((5, 70), bool)
FLAGS[[0, 3]] = False
UNSEEN: dict[str, tuple[int, int, list[int], Callable[[], dict[str, Any]]]] = {
    "boolean_mask": (5, 70, [0, 3], lambda: {"mask": mg.tensor(FLAGS)}),
    "infinite_bias": (
        5, 70, [0, 3], lambda: {"bias": mg.tensor(np.where(FLAGS, 0, -np.inf).astype(np.float32))}
    ),
    "causal_with_fewer_keys": (70, 3, list(range(67)), lambda: {"causal": True}),
    "no_keys": (5, 0, list(range(5)), dict),
    "no_keys_causal": (5, 0, list(range(5)), lambda: {"causal": True}),
    "mask_and_causal": (
        4, 4, [0, 1], lambda: {"causal": True, "mask": mg.tensor(np.arange(4) >= 2)}
    ),
    "mask_and_dropout": (5, 70, [0, 3], lambda: {"mask": mg.tensor(FLAGS), "dropout": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", UNSEEN)
def test_attention_row_without_keys_is_zero(name: str, impl: str, dtype: str, level: str) -> None:
    n_queries, n_keys, rows, options = UNSEEN[name]
    q = mg.tensor(normal(2, 2, n_queries, 8), dtype, requires_grad=True)
    k, v = (mg.tensor(normal(2, 2, n_keys, 8, seed=s), dtype, requires_grad=True) for s in (1, 2))
    left_behind = mg.full((2, 2, max(n_queries, 70), 8), math.nan, dtype=dtype)
    mg.attention(left_behind, left_behind, left_behind)  # in memory that the kernel uses again
    out = mg.attention(q, k, v, impl=impl, **options())
    out.backward(mg.ones(out.shape, dtype))
    assert (out.numpy()[:, :, rows] == 0).all()
    assert (q.grad.numpy()[:, :, rows] == 0).all()
    for leaf in (q, k, v):
        assert np.isfinite(leaf.grad.numpy().astype(np.float32)).all()
    seen = [i for i in range(n_queries) if i not in rows]
    if seen and "dropout" not in name:
        assert (out.numpy()[:, :, seen] != 0).all()


def test_reference_kernels_agree_on_rows_without_keys() -> None:
    with mg.use_kernels("ref"):
        for n_queries, n_keys, rows, options in UNSEEN.values():
            q, k = mg.tensor(normal(1, 2, n_queries, 8)), mg.tensor(normal(1, 2, n_keys, 8))
            assert (mg.attention(q, k, k, **options()).numpy()[:, :, rows] == 0).all()


# ---- attention: what a mask hides stays hidden ----

HIDDEN = np.ones((6, 130), bool)
HIDDEN[:, [3, 64, 129]] = False
MASKS: dict[str, tuple[int, list[int], Callable[[], dict[str, Any]]]] = {
    # (queries, the hidden keys, options), 130 keys: beyond two tiles
    "boolean_mask": (6, [3, 64, 129], lambda: {"mask": mg.tensor(HIDDEN)}),
    "infinite_bias": (
        6,
        [3, 64, 129],
        lambda: {"bias": mg.tensor(np.where(HIDDEN, 0, -np.inf).astype(np.float32))},
    ),
    "window": (6, list(range(120)), lambda: {"causal": True, "window": 5}),
}


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nan_behind_a_mask_reaches_neither_output_nor_gradients(
    impl: str, name: str, dtype: str, poison: float, level: str
) -> None:
    n_queries, hidden, options = MASKS[name]
    given = [normal(1, 2, n, 8, seed=n) for n in (n_queries, 130, 130)]

    def run(value: float, extra: dict[str, Any]) -> list[Array]:
        arrays = [a.copy() for a in given]
        arrays[1][:, :, hidden], arrays[2][:, :, hidden] = value, value
        leaves = [mg.tensor(a, dtype, requires_grad=True) for a in arrays]
        out = mg.attention(*leaves, **options(), **extra, impl=impl)
        out.backward(mg.ones(out.shape, dtype))
        return [t.to("float64").numpy() for t in (out, *(leaf.grad for leaf in leaves))]

    for extra in ({}, {"dropout": 0.3, "generator": None}):
        mg.manual_seed(1)
        clean = run(0.0, extra)
        mg.manual_seed(1)
        got = run(poison, extra)
        for a, b in zip(got, clean, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=4 * TOLERANCE[dtype])


@pytest.mark.parametrize("past", [90, 91])  # an even number of keys, and an odd one
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_causal_future_nan_stays_in_the_future(
    impl: str, dtype: str, past: int, level: str
) -> None:
    q, k, v = (normal(1, 1, 100, 16, seed=s) for s in range(3))
    k[:, :, past:], v[:, :, past:] = np.nan, np.inf
    leaves = [mg.tensor(x, dtype, requires_grad=True) for x in (q, k, v)]
    seen = (x.detach().to("float64").numpy()[:, :, :past] for x in leaves)
    want = attention(*seen, causal=True)
    out = mg.attention(*leaves, causal=True, impl=impl)
    got = out.to("float64").numpy()
    np.testing.assert_allclose(got[:, :, :past], want, atol=TOLERANCE[dtype])
    assert np.isnan(got[:, :, past:]).all()
    out[:, :, :past].sum().backward()
    assert np.isfinite(leaves[0].grad.to("float64").numpy()[:, :, :past]).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nan_in_a_visible_key_is_not_lost(impl: str, dtype: str, poison: float, level: str) -> None:
    q, k, v = (np.abs(normal(1, 1, 70, 8, seed=s)) for s in range(3))
    k[0, 0, 5] = poison
    mask = np.ones((70, 70), bool)
    mask[3, 5] = False
    leaves = [mg.tensor(x, dtype, requires_grad=True) for x in (q, k, v)]
    out = mg.attention(*leaves, mask=mg.tensor(mask), impl=impl)
    lost = np.isfinite(out.numpy().astype(np.float32)).all(-1)[0, 0]
    assert lost.tolist() == (np.arange(70) == 3).tolist()
    out.sum().backward()
    assert np.isnan(leaves[0].grad.numpy().astype(np.float32)[0, 0, 4]).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nan_in_a_query_that_sees_nothing_reaches_no_gradient(impl: str, level: str) -> None:
    q, k, v = (normal(1, 1, 6, 8, seed=s) for s in range(3))
    mask = np.ones((6, 6), bool)
    mask[2] = False
    q[0, 0, 2] = np.nan
    leaves = [mg.tensor(x, requires_grad=True) for x in (q, k, v)]
    out = mg.attention(*leaves, mask=mg.tensor(mask), impl=impl)
    out.sum().backward()
    assert (out.numpy()[0, 0, 2] == 0).all()
    for leaf in leaves:
        assert np.isfinite(leaf.grad.numpy()).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_window_beyond_all_keys_hides_none(impl: str, causal: bool, level: str) -> None:
    q, k, v = (mg.tensor(normal(1, 1, n, 8), requires_grad=True) for n in (40, 70, 70))
    plain = mg.attention(q, k, v, causal=causal, impl=impl)
    (wanted,) = mg.grad(plain.sum(), k)
    for window in (110, 2**31, 2**63 - 1, 2**70):
        out = mg.attention(q, k, v, causal=causal, impl=impl, window=window)
        np.testing.assert_array_equal(out.numpy(), plain.numpy())
        np.testing.assert_array_equal(mg.grad(out.sum(), k)[0].numpy(), wanted.numpy())


# ---- attention: scales of any sign, biases of any size ----


@pytest.mark.parametrize("scale", [-0.3, 0.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_takes_a_scale_of_any_sign(dtype: str, scale: float, level: str) -> None:
    given = [normal(1, 2, 70, 8, seed=s) for s in range(3)]

    def run(dtype: str) -> list[Array]:
        leaves = [mg.tensor(mg.tensor(x, dtype).numpy(), requires_grad=True) for x in given]
        out = mg.attention(*leaves, causal=True, scale=scale)
        out.sum().backward()
        return [t.to("float64").numpy() for t in (out, *(leaf.grad for leaf in leaves))]

    leaves = [mg.tensor(x, dtype).to("float64").requires_grad_() for x in given]
    exact = mg.attention(*leaves, causal=True, scale=scale, impl="composed")
    exact.sum().backward()
    wanted = (exact, *(leaf.grad for leaf in leaves))
    for got, want in zip(run(dtype), wanted, strict=True):
        np.testing.assert_allclose(got, want.numpy(), atol=4 * TOLERANCE[dtype])


@pytest.mark.parametrize("rise", [-0.25, 0.01, 0.11, 0.25])  # less and more than 8 over 64 keys
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_follows_a_maximum_that_rises(dtype: str, rise: float, level: str) -> None:
    """Tile after tile of keys; the first 70 keys are hidden from some of the queries."""
    given = [normal(1, 1, n, 8, seed=n) for n in (150, 300, 300)]
    bias = np.broadcast_to(rise * np.arange(300, dtype=np.float32), (150, 300)).copy()
    bias[::3, :70] = -np.inf

    def run(leaves: list[mg.Tensor], impl: str) -> list[Array]:
        extra = mg.tensor(bias).to("float64" if impl == "composed" else "float32")
        out = mg.attention(*leaves, causal=True, bias=extra, impl=impl)
        out.sum().backward()
        return [t.to("float64").numpy() for t in (out, *(leaf.grad for leaf in leaves))]

    leaves = [mg.tensor(x, dtype, requires_grad=True) for x in given]
    wide = [x.detach().to("float64").requires_grad_() for x in leaves]
    for got, want in zip(run(leaves, "fused"), run(wide, "composed"), strict=True):
        np.testing.assert_allclose(got, want, rtol=TOLERANCE[dtype], atol=8 * TOLERANCE[dtype])


@pytest.mark.parametrize("bias", [-1e9, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bias_that_leaves_no_key_weighs_all_alike(dtype: str, bias: float, level: str) -> None:
    """Finite, so nothing is hidden: scores are lost in it."""
    q, k, v = (mg.tensor(normal(1, 1, 70, 8, seed=s), dtype, requires_grad=True) for s in range(3))
    out = mg.attention(q, k, v, bias=mg.tensor(np.full((70, 70), bias, np.float32)))
    mean = np.broadcast_to(v.detach().to("float64").numpy().mean(2, keepdims=True), out.shape)
    np.testing.assert_allclose(out.to("float64").numpy(), mean, atol=TOLERANCE[dtype])
    out.sum().backward()
    for leaf in (q, k, v):
        assert np.isfinite(leaf.grad.to("float64").numpy()).all()


# ---- gradients where a formula divides by zero ----


@pytest.mark.parametrize("values", [[0.0, 3.0, 2.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 5.0]])
def test_second_derivatives_of_a_product_with_zeros(values: list[float]) -> None:
    n = len(values)
    x = mg.tensor(values, requires_grad=True)
    hooked = []
    x.register_hook(hooked.append)
    (first,) = mg.grad(mg.prod(x), x, create_graph=True)

    def without(*gone: int) -> float:
        return float(np.prod([v for i, v in enumerate(values) if i not in gone]))

    assert first.tolist() == [without(i) for i in range(n)]
    assert len(hooked) == 1
    for i in range(n):
        (second,) = mg.grad(first[i], x, retain_graph=True)
        assert second.tolist() == [0.0 if i == j else without(i, j) for j in range(n)]


def test_second_derivatives_of_products_over_axes_with_zeros() -> None:
    values = normal(2, 3, 5)
    values[0, 1, 2] = values[1, :, 3] = values[1, 0, 0] = 0
    x = mg.tensor(values.astype(np.float64), requires_grad=True)
    weight = mg.tensor(normal(2, 3, 5, seed=1).astype(np.float64))

    def gradient(x: mg.Tensor) -> mg.Tensor:
        return mg.grad((mg.prod(x, (0, 2)) * mg.tensor([1.0, 2.0, 3.0], "float64")).sum(), x,
                       create_graph=True)[0]  # fmt: skip

    (got,) = mg.grad((gradient(x) * weight).sum(), x)
    eps = (
        1e-4  # the product of each element with the others is linear: central differences are exact
    )
    shifted = [
        gradient(mg.tensor(x.numpy() + sign * eps * weight.numpy(), requires_grad=True)).numpy()
        for sign in (1, -1)
    ]
    np.testing.assert_allclose(got.numpy(), (shifted[0] - shifted[1]) / (2 * eps), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_standard_deviation_of_equal_elements(dtype: str, level: str) -> None:
    x = mg.tensor([[2.0] * 4, [1.0, 2.0, 3.0, 4.0]], dtype, requires_grad=True)
    for correction in (0, 1):
        out = mg.std(x, 1, correction)
        (got,) = mg.grad(out.sum(), x)
        wide = np.array([1.0, 2.0, 3.0, 4.0])
        deviation = wide.std(ddof=correction)
        assert got.tolist()[0] == [0, 0, 0, 0]
        np.testing.assert_allclose(
            got.to("float64").numpy()[1],
            (wide - 2.5) / (4 - correction) / deviation,
            rtol=4 * TOLERANCE[dtype],
        )
        np.testing.assert_allclose(
            out.to("float64").numpy(), [0, deviation], rtol=4 * TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_with_a_graph_keeps_the_dtype(dtype: str) -> None:
    x = mg.tensor(normal(4, 7), dtype, requires_grad=True)
    targets = mg.tensor([0, 6, -100, 3])
    loss = mg.cross_entropy(x, targets, label_smoothing=0.1)
    (plain,) = mg.grad(loss, x, retain_graph=True)
    (graph,) = mg.grad(loss, x, create_graph=True)
    assert graph.dtype == plain.dtype == x.dtype
    np.testing.assert_allclose(
        graph.to("float64").numpy(), plain.to("float64").numpy(), atol=TOLERANCE[dtype]
    )
    (second,) = mg.grad((graph * graph).sum(), x)
    assert second.dtype == x.dtype


# ---- reductions over any axes ----


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (2, 0), (0, 1, 2), (), None])
def test_logsumexp_over_any_axes(axis: Any, keepdims: bool, level: str) -> None:
    values = normal(2, 3, 4)
    x = mg.tensor(values, requires_grad=True)
    out = mg.logsumexp(x, axis, keepdims)
    wide = np.exp(values.astype(np.float64))
    total = wide.sum(axis, keepdims=True)
    np.testing.assert_allclose(
        out.numpy(), np.log(wide.sum(axis, keepdims=keepdims)), rtol=1e-6, atol=1e-6
    )
    out.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), wide / total, rtol=1e-5)
    assert mg.logsumexp(mg.tensor(2.5), None).item() == 2.5


@pytest.mark.parametrize("axis", [0, -1, None])
def test_positions_of_extremes_keep_axes(axis: int | None) -> None:
    values = normal(3, 4)
    for op, ours in ((np.argmax, mg.argmax), (np.argmin, mg.argmin)):
        for keepdims in (False, True):
            got = ours(mg.tensor(values), axis, keepdims)
            np.testing.assert_array_equal(got.numpy(), op(values, axis, keepdims=keepdims))
            assert got.shape == op(values, axis, keepdims=keepdims).shape


def test_a_reshape_is_a_view_exactly_where_numpy_has_one() -> None:
    rng = np.random.default_rng(0)
    shapes = [(4, 6), (24,), (2, 3, 4), (2, 2, 6), (1, 24), (4, 1, 6), (3, 8), (2, 3, 2, 2), (0, 5)]
    views = 0
    for _ in range(600):
        base = np.arange(240.0, dtype=np.float32).reshape(4, 3, 2, 10)
        cut = base[:: rng.integers(1, 3), :: rng.choice([1, -1, 2]), :, : rng.choice([0, 5, 6, 10])]
        array = cut.transpose(rng.permutation(4))
        if rng.random() < 0.2:
            array = np.broadcast_to(array[:1], array.shape)
        factors = [n for n in (2, 2, 2, 3, 5) if rng.random() < 0.9]
        cuts = [*shapes, array.shape, tuple(factors), (-1, 2), (2, -1), (-1,)]
        x = mg.Tensor._wrap(array)
        for shape in cuts:
            try:
                expected = array.reshape(shape)
            except ValueError:
                continue
            got = mg.reshape(x, shape)
            np.testing.assert_array_equal(got.numpy(), expected)
            shared = np.may_share_memory(expected, array)
            assert np.may_share_memory(got._array, array) == shared
            views += shared
    assert views > 100


# ---- softmax at infinity ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 7, 8, 16, 17, 127, 128, 130])
def test_softmax_at_infinity_is_as_numpy_says(width: int, dtype: str, level: str) -> None:
    x = np.tile(np.arange(width, dtype=np.float32) / width, (5, 1))
    x[0] = -np.inf
    x[1, -1] = np.inf
    x[2, 0] = np.nan
    x[3, : width - 1] = -np.inf
    t = mg.tensor(x, dtype)
    for op in (mg.softmax, mg.log_softmax):
        got = op(t).numpy().astype(np.float32)
        assert np.isnan(got[:3]).all(), op.__name__
        assert not np.isnan(got[3:]).any(), op.__name__
    assert mg.softmax(t).numpy()[3].tolist() == [0] * (width - 1) + [1]
    total = mg.logsumexp(t, -1).numpy().astype(np.float32)
    assert total[0] == -np.inf
    assert total[1] == np.inf
    assert np.isnan(total[2])
    assert np.isfinite(total[3:]).all()


# ---- empty axes ----

NOTHING = {
    "softmax": lambda x: mg.softmax(x),
    "log_softmax": lambda x: mg.log_softmax(x),
    "layer_norm": lambda x: mg.layer_norm(x),
    "rms_norm": lambda x: mg.rms_norm(x),
    "exp": lambda x: mg.exp(x),
    "add": lambda x: x + x,
    "where": lambda x: mg.where(x > 0, x, 0.0),
    "cumsum": lambda x: mg.cumsum(x, 0),
    "sort": lambda x: mg.sort(x, 0),
    "flip": lambda x: mg.flip(x, 0),
    "dropout": lambda x: mg.dropout(x, 0.5),
    "concat": lambda x: mg.concat([x, x], 0)[: x.shape[0]],
    "matmul": lambda x: x @ mg.ones((x.shape[1], x.shape[1])),
    "linear": lambda x: mg.linear(x, mg.ones((x.shape[1], x.shape[1]))),
}


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("name", NOTHING)
def test_of_nothing_comes_nothing(name: str, shape: tuple[int, int], level: str) -> None:
    x = mg.zeros(shape, requires_grad=True)
    out = NOTHING[name](x)
    assert out.shape == shape
    out.sum().backward()
    assert x.grad.shape == shape


def test_reductions_over_nothing(level: str) -> None:
    x = mg.zeros((0, 5), requires_grad=True)
    assert mg.sum(x, 0).tolist() == [0] * 5
    assert mg.prod(x, 0).tolist() == [1] * 5
    assert np.isnan(mg.mean(x, 0).numpy()).all()
    assert mg.any(x, 0).tolist() == [False] * 5
    assert mg.all(x, 0).tolist() == [True] * 5
    assert mg.sum(x, 1).shape == (0,)
    assert mg.max(x, 1).shape == (0,)
    for op in (mg.max, mg.min, mg.argmax, mg.argmin, mg.logsumexp):
        with pytest.raises(ValueError, match="nothing to"):
            op(x, 0)


def test_products_over_nothing(level: str) -> None:
    a, b = mg.zeros((3, 0), requires_grad=True), mg.zeros((0, 4), requires_grad=True)
    out = a @ b
    assert out.tolist() == [[0] * 4] * 3
    out.sum().backward()
    assert a.grad.shape == (3, 0)
    assert b.grad.shape == (0, 4)
    bias = mg.tensor([1.0, 2.0])
    assert mg.linear(mg.zeros((2, 0)), mg.zeros((2, 0)), bias).tolist() == [[1, 2], [1, 2]]
    assert mg.zeros((0, 3, 4)).__matmul__(mg.zeros((0, 4, 2))).shape == (0, 3, 2)


def test_scalars_are_arrays_of_no_dimension(level: str) -> None:
    x = mg.tensor(2.0, requires_grad=True)
    y = mg.sum(mg.exp(x) * x) + mg.max(x) + mg.mean(x)
    assert y.shape == ()
    y.backward()
    assert x.grad.item() == pytest.approx(3 * np.exp(2) + 2, rel=1e-6)


# ---- views: every case on inputs that are transposed, or repeated with a stride of 0 ----

VIEWED = [c for c in CASES if c.differentiable]


@pytest.mark.parametrize("case", VIEWED, ids=lambda c: c.name)
def test_transposed_and_repeated_inputs(case: Any, level: str) -> None:
    arrays = [a.astype(np.float32) for a in case.inputs()]
    plain, leaves = ([mg.tensor(a, requires_grad=True) for a in arrays] for _ in range(2))
    turned = [mg.permute(mg.permute(t, order(t)).contiguous(), order(t)) for t in leaves]
    compare(case, plain, turned, leaves)
    # The first axis of every input one and the same row.
    rows = [np.broadcast_to(a[:1], a.shape) if a.ndim else a for a in arrays]
    plain = [mg.tensor(np.ascontiguousarray(r), requires_grad=True) for r in rows]
    leaves = [mg.tensor(r[:1] if r.ndim else r, requires_grad=True) for r in rows]
    views = [mg.expand(leaf, r.shape) for leaf, r in zip(leaves, rows, strict=True)]
    compare(case, plain, views, leaves)


def order(t: mg.Tensor) -> tuple[int, ...]:
    return tuple(reversed(range(t.ndim)))


def compare(case: Any, plain: list, views: list, leaves: list) -> None:
    want, got = case.op(*plain), case.op(*views)
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=2e-6, atol=2e-6)
    want.sum().backward()
    got.sum().backward()
    for a, b in zip(leaves, plain, strict=True):
        exact = b.grad.numpy().astype(np.float64)
        if a.shape != b.shape:
            exact = exact.sum(0, keepdims=True)
        np.testing.assert_allclose(a.grad.numpy(), exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "uint8"])
@pytest.mark.parametrize("shape", [(37, 70), (8, 8), (1, 33), (5, 33, 9), (3, 17, 40, 12)])
def test_axes_in_any_order_are_copied_to_the_bit(
    shape: tuple[int, ...], dtype: str, level: str
) -> None:
    given = mg.tensor(np.random.default_rng(0).integers(0, 250, shape)).to(dtype)
    for x in (given, given[..., ::2], mg.flip(given, 0), given[..., 1:]):
        for order in itertools.permutations(range(len(shape))):
            out = mg.permute(x, order).contiguous().numpy()
            assert out.flags.c_contiguous
            np.testing.assert_array_equal(out, x.numpy().transpose(order))


# ---- beyond 2^31 ----

BEYOND = 2**31 + 4096


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Array:
    """3 x 4 float32, rows 8.6 GB apart in a sparse file: 17 GB of addresses, three pages."""
    path = tmp_path_factory.mktemp("sparse") / "memory"
    try:
        flat = np.memmap(path, np.float32, "w+", shape=(2 * BEYOND + 4,))
    except OSError as error:
        pytest.skip(f"no sparse file of 17 GB can be mapped here: {error}")
    path.unlink()
    view = np.lib.stride_tricks.as_strided(np.asarray(flat), (3, 4), (BEYOND * 4, 4))
    view[...] = normal(3, 4, seed=9)
    return view


BEYOND_OPS: dict[str, tuple[Callable[[Any], Any], Callable[[Array], Array]]] = {
    "copy": (lambda x: x.contiguous() * 1.0, lambda x: x),
    "transpose": (lambda x: x.T.contiguous() * 1.0, lambda x: x.T),
    "exp": (mg.exp, np.exp),
    "add": (lambda x: x + x, lambda x: x + x),
    "where": (lambda x: mg.where(x > 0, x, 0.0), lambda x: np.maximum(x, 0)),
    "sum_rows": (lambda x: mg.sum(x, 1), lambda x: x.sum(1)),
    "sum_columns": (lambda x: mg.sum(x, 0), lambda x: x.sum(0)),
    "max": (lambda x: mg.max(x), lambda x: x.max()),
    "argmax": (lambda x: mg.argmax(x, 0), lambda x: x.argmax(0)),
    "cumsum": (lambda x: mg.cumsum(x, 0), lambda x: x.cumsum(0)),
    "softmax": (mg.softmax, softmax),
    "layer_norm": (
        mg.layer_norm,
        lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5),
    ),
    "matmul": (lambda x: x @ mg.tensor(normal(4, 5)), lambda x: x @ normal(4, 5)),
    "matmul_right": (lambda x: mg.tensor(normal(4, 3)) @ x, lambda x: normal(4, 3) @ x),
    "matmul_both": (lambda x: x @ x.T, lambda x: x @ x.T),
    "embedding": (lambda x: mg.embedding(x, mg.tensor([2, 0, 1])), lambda x: x[[2, 0, 1]]),
    "attention": (
        lambda x: mg.attention(*[x[None, None]] * 3)[0, 0],
        lambda x: softmax(x @ x.T / 2) @ x,
    ),
    "index": (lambda x: x[::-1, 1:], lambda x: x[::-1, 1:]),
}


@pytest.mark.parametrize("name", BEYOND_OPS)
def test_strides_beyond_two_to_the_31(name: str, wide: Array, level: str) -> None:
    op, reference = BEYOND_OPS[name]
    x = mg.Tensor._wrap(wide)
    assert x._array.strides[0] > 2**33
    want = reference(wide.astype(np.float64))
    np.testing.assert_allclose(op(x).numpy(), want, rtol=2e-6, atol=2e-6)


def test_writing_with_strides_beyond_two_to_the_31(wide: Array, level: str) -> None:
    kept = wide.copy()
    x = mg.Tensor._wrap(wide)
    x[2] = mg.tensor([1.0, 2.0, 3.0, 4.0])
    x[1:, ::2] = 7.0
    assert wide[2].tolist() == [7, 2, 7, 4]
    assert wide[1, 0] == wide[1, 2] == 7
    wide[...] = kept


def test_more_than_two_to_the_31_elements(level: str) -> None:
    """One element repeated by a stride of 0, but the last index counts past 32 bits."""
    n = 2**31 + 8
    x = mg.Tensor._wrap(np.broadcast_to(np.ones((), np.uint8), (n,)))
    assert x.size == n
    assert x[n - 1].item() == 1
    assert x[2**31 :: 4].tolist() == [1, 1]
    big = mg.expand(mg.tensor([[1.0], [2.0]]), (2, 2**31 + 8))
    assert mg.sum(big[:, 2**31 :], 1).tolist() == [8, 16]
    assert big.size == 2**32 + 16


def test_sum_of_more_than_two_to_the_31_elements() -> None:
    x = mg.expand(mg.tensor([1.0]), (2**31 + 256,))
    assert mg.sum(x).item() == 2**31 + 256


# ---- what does not fit is refused before anything runs ----

ONES = mg.ones((2, 3))
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "scatter_add_index": (
        lambda: mg.scatter_add(ONES, [[0, 3], [0, 0]], mg.ones((2, 2)), 1),
        IndexError, "scatter_add: index 3 is out of range for axis 1 of length 3",
    ),
    "take_negative": (
        lambda: mg.take_along_axis(ONES, np.array([[-4]]), 1),
        IndexError, "take_along_axis: index -4 is out of range",
    ),
    "array_index": (lambda: ONES[mg.tensor([0, 2])], IndexError, "index 2 is out of bounds"),
    "bool_index": (lambda: ONES[np.ones(3, bool)], IndexError, "boolean"),
    "float_index": (lambda: ONES[mg.tensor([0.0])], TypeError, "float32 tensor cannot index"),
    "too_many_indices": (lambda: ONES[0, 0, 0], IndexError, "too many indices"),
    "set_index": (lambda: mg.ones((2,)).__setitem__(5, 0.0), IndexError, "index 5"),
    "set_shape": (
        lambda: mg.ones((2,)).__setitem__(slice(None), mg.ones((3,))),
        ValueError, r"a value of shape \(3,\) does not fit \(2,\)",
    ),
    "target_negative": (
        lambda: mg.cross_entropy(ONES, mg.tensor([0, -1])), IndexError, "cross_entropy: target -1"
    ),
    "topk": (lambda: mg.topk(ONES, 4), ValueError, "topk: k=4 is out of range"),
    "matmul_dtypes": (
        lambda: ONES @ mg.ones((3, 2), "bfloat16"), TypeError, "float32 and bfloat16"
    ),
    "linear_dtypes": (
        lambda: mg.linear(ONES, mg.ones((2, 3), "float16")),
        TypeError, r"linear: operands are float32 and float16; convert one with \.to",
    ),
    "linear_bias_dtype": (
        lambda: mg.linear(ONES, ONES, mg.ones((2,), "float64")), TypeError, "linear: operands are"
    ),
    "einsum_dtypes": (
        lambda: mg.einsum("ij,kj", ONES, mg.ones((2, 3), "float64")), TypeError, "einsum: operands"
    ),
    "attention_dtypes": (
        lambda: mg.attention(*[mg.ones((1, 1, 2, 4))] * 2, mg.ones((1, 1, 2, 4), "float64")),
        TypeError, "must share one floating dtype; got float32, float32, float64",
    ),
    "integer_attention": (
        lambda: mg.attention(*[mg.ones((1, 1, 2, 4), "int64")] * 3), TypeError, "floating dtype"
    ),
    "integer_power": (
        lambda: mg.tensor([2]) ** mg.tensor([-1]), ValueError, "integers to negative powers"
    ),
    "integer_by_zero": (
        lambda: mg.tensor([2, 3]) // mg.tensor([1, 0]),
        ZeroDivisionError, "floor_divide: an integer divided by zero; convert one side to float32",
    ),
    "integer_remainder_of_zero": (
        lambda: mg.tensor([2]) % 0, ZeroDivisionError, "remainder: an integer divided by zero"
    ),
    "axis_twice": (lambda: mg.sum(ONES, (0, -2)), ValueError, "names a dimension twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_kernel_runs(name: str) -> None:
    call, kind, message = REFUSED[name]
    ran: list[str] = []

    def watch(kernel: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        ran.append(kernel)
        function(*args)

    with observe(watch), pytest.raises(kind, match=message):
        call()
    # What made the arguments; and what looks at indices and targets, and says if they do not fit.
    looks = {"numpy:positions", "positions_along", "check_range"}
    assert set(ran) <= {"fill", "copy"} | looks


def test_promotion() -> None:
    single, double, brain, half = (mg.ones((1,), d) for d in DTYPES)
    assert (half + brain).dtype == mg.float32
    assert (brain + single).dtype == mg.float32
    assert (single + double).dtype == mg.float64
    assert (half * 2.5).dtype == half.dtype
    for integer in ("int32", "int64", "uint8", "bool"):
        x = mg.ones((1,), integer)
        assert (x + half).dtype == half.dtype
        assert (x + 1.5).dtype == mg.float32
        assert (x / x).dtype == mg.float32
    assert (mg.ones((1,), "uint8") + mg.ones((1,), "int32")).dtype == mg.int32


# ---- gradients where a function has none of its own ----


def test_ties_share_the_gradient(level: str) -> None:
    x = mg.tensor([[2.0, 2.0, 1.0], [0.0, 0.0, 0.0]], requires_grad=True)
    (mg.max(x, 1) + mg.min(x, 1)).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [[0.5, 0.5, 1], [2 / 3] * 3], rtol=1e-6)
    a, b = mg.tensor([1.0, 2.0], requires_grad=True), mg.tensor([1.0, 5.0], requires_grad=True)
    (mg.maximum(a, b) + 2 * mg.minimum(a, b)).sum().backward()
    assert a.grad.tolist() == [1.5, 2]
    assert b.grad.tolist() == [1.5, 1]


def test_gradients_at_zero_are_finite(level: str) -> None:
    for op in (mg.norm, mg.abs, mg.relu, lambda x: x**2, lambda x: x**0, mg.prod):
        x = mg.zeros((3,), requires_grad=True)
        op(x).sum().backward()
        assert x.grad.tolist() == [0, 0, 0]


def test_nan_wins_extremes(level: str) -> None:
    x = mg.tensor([[1.0, np.nan, 3.0] * 20, [np.inf, 2.0, -np.inf] * 20])
    assert np.isnan(mg.max(x, 1).numpy()[0])
    assert np.isnan(mg.min(x, 1).numpy()[0])
    assert mg.argmax(x, 1).tolist() == [1, 0]
    assert mg.argmin(x, 1).tolist() == [1, 2]
    assert np.isnan(mg.maximum(x, 2.0).numpy()[0]).sum() == 20
    assert np.isnan(mg.minimum(2.0, x).numpy()[0]).sum() == 20
    assert np.isnan(mg.clip(x, 0, 1).numpy()[0]).sum() == 20
    assert np.isnan(mg.relu(x).numpy()[0]).sum() == 20


# ---- division without a fraction ----


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floor_division_is_exact_whatever_the_quotient(dtype: str, level: str) -> None:
    rng = np.random.default_rng(3)
    specials = np.array([0.0, -0.0, 1.0, -1.0, 2.5, -3.0, np.inf, -np.inf, np.nan])
    size = (2, 3000)
    drawn = rng.uniform(1, 2, size) * 2.0 ** rng.integers(-30, 30, size) * rng.choice([-1, 1], size)
    a, b = np.stack(
        [
            np.concatenate([drawn[0], np.repeat(specials, 9), [1, -1, 6, -6, 1e10]]),
            np.concatenate([drawn[1], np.tile(specials, 9), [0.1, 0.1, 3, 3, 3]]),
        ]
    ).astype(dtype)
    with np.errstate(all="ignore"):
        rests = np.remainder(a, b)
        # NumPy's own quotients of float32 are wrong by a unit in the last place from 2^23 on.
        quotients = np.floor_divide(a.astype(np.float64), b.astype(np.float64)).astype(dtype)
    for got, want in ((mg.tensor(a) % mg.tensor(b), rests), (mg.tensor(a) // b, quotients)):
        np.testing.assert_array_equal(got.numpy(), want)
        zero = want == 0
        np.testing.assert_array_equal(np.signbit(got.numpy()[zero]), np.signbit(want[zero]))


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
def test_floor_division_of_integers(dtype: str, level: str) -> None:
    if dtype == "bool":
        a, b = np.array([False, True]), np.array([True, True])
    else:
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        row = np.array([least, least + 1, 0, 1, 7, most - 1, most, *([-1, -7] if least else [])])
        a, b = np.repeat(row, row.size).astype(dtype), np.tile(row, row.size).astype(dtype)
        a, b = a[b != 0], b[b != 0]
    with np.errstate(over="ignore"):  # the smallest by -1
        quotients, rests = np.floor_divide(a, b), np.remainder(a, b)
    for got, want in ((mg.tensor(a) // mg.tensor(b), quotients), (mg.tensor(a) % b, rests)):
        assert got.dtype == ("int64" if dtype == "bool" else dtype)
        assert got.tolist() == want.tolist()


def test_floor_division_by_its_operators() -> None:
    x = mg.tensor([-7, 7])
    assert (x // 3).tolist() == [-3, 2]
    assert (x % -3).tolist() == [-1, -2]
    assert (20 // x).tolist() == [-3, 2]
    assert (20 % x).tolist() == [-1, 6]
    assert (x % 2.5).tolist() == [0.5, 2.0]
    assert (x % 2.5).dtype == mg.float32
    view = x[1:]
    view //= 2
    assert x.tolist() == [-7, 3]
    x %= 4
    assert x.tolist() == [1, 3]
    step = mg.capture(lambda x: x // 2 % 3)
    for k in range(4):
        assert step(x + 10 * k).tolist() == [(1 + 10 * k) // 2 % 3, (3 + 10 * k) // 2 % 3]


# ---- shapes of elementwise results ----


@pytest.mark.parametrize("kernels", ["native", "ref"])
@pytest.mark.parametrize(
    "shapes",
    [
        ((), ()),
        ((), (3,)),
        ((2, 3), (3,)),
        ((4,), (2, 1, 1)),
        ((1, 5, 1), (2, 1, 3)),
        ((0, 3), (1, 3)),
        ((1,), (2, 0)),
        ((2, 3), (4,)),
        ((0,), (3,)),
        ((2, 1, 3), (3, 2)),
    ],
    ids=str,
)
def test_shapes_broadcast_as_numpys_do(shapes: Any, kernels: str) -> None:
    a, b = (mg.ones(shape) for shape in shapes)
    with mg.use_kernels(kernels):
        try:
            expected = np.broadcast_shapes(*shapes)
        except ValueError:
            listed = " and ".join(map(str, shapes))
            with pytest.raises(ValueError, match=f"^add: shapes {re.escape(listed)} do not broad"):
                a + b
            return
        out, chosen = a + b, mg.where(a > 0, a, b)
    assert out.shape == chosen.shape == expected
    assert (out.numpy() == 2).all()
    assert (chosen.numpy() == 1).all()
