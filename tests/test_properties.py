"""Properties over random shapes, strides, axes and dtypes, against NumPy in float64.

Every input is a view with a layout of its own: axes in another order in memory, steps, reversed
axes, axes repeated with a stride of 0. Gradients are taken at the memory the view is of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minigrad as mg

Array = np.ndarray

# Error allowed against float64, relative to 1 + |value|, or for sums of products
# relative to the sum of their absolute values (a chain of 256 roundings).
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 2e-2, "float16": 3e-3}
PRODUCT = {"float64": 1e-13, "float32": 4e-6, "bfloat16": 8e-3, "float16": 1e-3}
ATTENTION = {"float32": 1e-5, "bfloat16": 4e-2}
ROWS = {"float32": (4e-6, 1e-5), "bfloat16": (2e-2, 6e-2)}  # forward, gradient


def examples(n: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The same n examples every time, at whatever speed."""
    return settings(
        max_examples=n,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# ---- arrays with a layout ----


@dataclass(frozen=True)
class Layout:
    """How a view of `shape` lies in memory; `of` makes it from an array or tensor of `memory`."""

    memory: tuple[int, ...]
    order: tuple[int, ...]
    index: tuple[slice, ...]
    shape: tuple[int, ...]

    def of(self, x: Any) -> Any:
        if isinstance(x, mg.Tensor):
            return mg.expand(mg.permute(x, self.order)[self.index], self.shape)
        return np.broadcast_to(np.transpose(x, self.order)[self.index], self.shape)

    def gradient(self, g: Array) -> Array:
        """The gradient at the memory, of one at the view."""
        n = math.prod(self.memory)
        positions = self.of(np.arange(n).reshape(self.memory))
        return scattered(positions, g, n).reshape(self.memory)


def scattered(positions: Array, g: Array, size: int) -> Array:
    """Zeros (size,) with g added at the positions."""
    return np.bincount(positions.ravel(), g.ravel(), size)


@st.composite
def layouts(draw: Any, shape: tuple[int, ...]) -> Layout:
    kinds = [
        draw(st.sampled_from(("plain", "plain", "step", "reversed", "repeated"))) for _ in shape
    ]
    place = draw(st.permutations(range(len(shape))))  # axis a of the view is at place[a] in memory
    lengths = [0] * len(shape)
    index = []
    for axis, (n, kind) in enumerate(zip(shape, kinds, strict=True)):
        lengths[place[axis]] = (
            1 if kind == "repeated" and n != 1 else 2 * n if kind == "step" else n
        )
        step = {"step": 2, "reversed": -1}.get(kind)
        index.append(slice(None, None, step))
    return Layout(tuple(lengths), tuple(place), tuple(index), tuple(shape))


@dataclass(frozen=True)
class Operand:
    """A leaf, the view of it that goes into an operation, and the view's values in float64."""

    layout: Layout
    leaf: mg.Tensor
    view: mg.Tensor
    values: Array


def operand(layout: Layout, dtype: str, seed: int, low: float = -2, high: float = 2) -> Operand:
    rng = np.random.default_rng(seed)
    if dtype in ("float64", "float32", "bfloat16", "float16"):
        leaf = mg.tensor(rng.uniform(low, high, layout.memory), dtype, requires_grad=True)
    else:
        leaf = mg.tensor(rng.integers(0, 2 if dtype == "bool" else 9, layout.memory), dtype)
    view = layout.of(leaf)
    return Operand(layout, leaf, view, view.to("float64").numpy().copy())


FLOATS = st.sampled_from(("float32", "float32", "float64", "bfloat16", "float16"))
SEEDS = st.integers(0, 2**32 - 1)
# Around whole vectors (4, 8, 16 lanes) and the tiles of strided loops (512).
SIDES = st.sampled_from((0, 1, 2, 3, 5, 7, 8, 9, 16, 17, 33))


def shapes(min_dims: int = 0, max_dims: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(SIDES, min_size=min_dims, max_size=max_dims).map(tuple).filter(
        lambda s: math.prod(s) <= 20_000
    ) | st.tuples(st.sampled_from((511, 513, 1030)))


def close(got: mg.Tensor, exact: Array, tolerance: float, size: Array | float = 0.0) -> None:
    out = got.to("float64").numpy()
    assert out.shape == np.shape(exact)
    allowed = tolerance * (1 + np.maximum(np.abs(exact), size))
    assert (np.abs(out - exact) <= allowed).all(), np.abs(out - exact).max()


def backward(out: mg.Tensor, seed: int) -> Array:
    """Runs it with random weights, which are returned as the output's gradient."""
    g = mg.tensor(np.random.default_rng(seed).uniform(0.5, 1.5, out.shape), out.dtype)
    out.backward(g)
    return g.to("float64").numpy()


def unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    g = g.sum(tuple(range(g.ndim - len(shape))))
    return g.sum(tuple(d for d, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)


def close_gradient(operand: Operand, g: Array, size: Array, dtype: str, factor: float = 1) -> None:
    """`size`: the sum of the magnitudes that went into g, which bounds what rounding can do."""
    close(
        operand.leaf.grad,
        operand.layout.gradient(g),
        factor * TOLERANCE[dtype],
        operand.layout.gradient(size),
    )


# ---- elementwise ----

BINARY: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any] | None]] = {
    # ours, NumPy's, and the gradients in a and b
    "add": (mg.add, np.add, lambda a, b: (1.0, 1.0)),
    "sub": (mg.sub, np.subtract, lambda a, b: (1.0, -1.0)),
    "mul": (mg.mul, np.multiply, lambda a, b: (b, a)),
    "div": (lambda a, b: a / (b + 4), lambda a, b: a / (b + 4),
            lambda a, b: (1 / (b + 4), -a / (b + 4) ** 2)),
    "maximum": (mg.maximum, np.maximum,
                lambda a, b: ((a > b) + (a == b) / 2, (b > a) + (a == b) / 2)),
    "where": (lambda a, b: mg.where(a > b, a, b * 2), lambda a, b: np.where(a > b, a, b * 2),
              lambda a, b: (a > b, 2.0 * (a <= b))),
    "lt": (mg.lt, np.less, None),
    "ge": (mg.ge, np.greater_equal, None),
    "eq": (mg.eq, np.equal, None),
}  # fmt: skip


@examples(120)
@given(data=st.data())
def test_elementwise_broadcasts(data: st.DataObject, level: str) -> None:
    name, dtype = data.draw(st.sampled_from(sorted(BINARY))), data.draw(FLOATS)
    full = data.draw(shapes())
    pair = [
        tuple(1 if data.draw(st.integers(0, 3)) == 0 else n for n in full[skip:])
        for skip in (data.draw(st.integers(0, len(full))), 0)
    ]
    a, b = (operand(data.draw(layouts(s)), dtype, i) for i, s in enumerate(pair))
    ours, exact, slopes = BINARY[name]
    out, want = ours(a.view, b.view), exact(a.values, b.values)
    close(out, want, TOLERANCE[dtype])
    if slopes is None:
        assert out.dtype == mg.bool_
        return
    g = backward(out, 3)
    for x, slope in zip((a, b), slopes(a.values, b.values), strict=True):
        each = np.broadcast_to(g * slope, want.shape)
        shape = x.values.shape
        close_gradient(x, unbroadcast(each, shape), unbroadcast(np.abs(each), shape), dtype, 2)


@examples(60)
@given(data=st.data())
def test_integers_and_mixed_dtypes(data: st.DataObject, level: str) -> None:
    kinds = ("bool", "uint8", "int32", "int64", "float16", "float32")
    da, db = data.draw(st.sampled_from(kinds)), data.draw(st.sampled_from(kinds))
    shape = data.draw(shapes())
    a, b = (operand(data.draw(layouts(shape)), d, i, 0, 8) for i, d in enumerate((da, db)))
    for ours, exact in ((mg.add, np.add), (mg.mul, np.multiply), (mg.maximum, np.maximum)):
        want = exact(a.values, b.values)
        close(ours(a.view, b.view), want, TOLERANCE["float16"])
    assert (mg.le(a.view, b.view).numpy() == (a.values <= b.values)).all()
    for wanted in ("int64", "float32", "bfloat16", "bool"):
        cast = a.view.to(wanted)
        exact = a.values.astype(bool) if wanted == "bool" else a.values
        close(
            cast,
            np.trunc(exact) if wanted == "int64" else exact,
            TOLERANCE["bfloat16" if wanted == "bfloat16" else "float32"],
        )


# ---- reductions ----

REDUCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any] | None]] = {
    # ours, NumPy's, and the gradient at x given that of the output (g and y with axes kept)
    "sum": (mg.sum, np.sum, lambda x, y, g, n: g + 0 * x),
    "mean": (mg.mean, np.mean, lambda x, y, g, n: g / n + 0 * x),
    "max": (mg.max, np.max, None),
    "min": (mg.min, np.min, None),
    "prod": (mg.prod, np.prod, None),
    "any": (lambda x, *a: mg.any(x > 1, *a), lambda x, **o: np.any(x > 1, **o), None),
    "all": (lambda x, *a: mg.all(x > -1.9, *a), lambda x, **o: np.all(x > -1.9, **o), None),
    "var": (lambda x, axes, keep: mg.var(x, axes, 0, keep), np.var,
            lambda x, y, g, n: None),
    "norm": (mg.norm, lambda x, **o: np.sqrt(np.sum(x * x, **o)),
             lambda x, y, g, n: g * x / np.where(y == 0, 1, y)),
}  # fmt: skip


@examples(120)
@given(data=st.data())
def test_reductions_over_any_axes(data: st.DataObject, level: str) -> None:
    name, dtype = data.draw(st.sampled_from(sorted(REDUCTIONS))), data.draw(FLOATS)
    shape = data.draw(shapes())
    if name in ("max", "min", "mean", "var"):
        shape = tuple(n or 1 for n in shape)
    axes = data.draw(st.none() | st.sets(st.integers(0, max(len(shape) - 1, 0))).map(tuple))
    axes = tuple(a for a in axes if a < len(shape)) if axes is not None else None
    keep = data.draw(st.booleans())
    span = (0.9, 1.1) if name == "prod" else (-2, 2)
    x = operand(data.draw(layouts(shape)), dtype, 1, *span)
    ours, exact, gradient = REDUCTIONS[name]
    out = ours(x.view, axes, keep)
    want = exact(x.values, axis=axes, keepdims=keep)
    terms = np.sum(np.abs(x.values), axis=axes, keepdims=keep) if name == "sum" else 0.0
    close(out, want, 4 * TOLERANCE[dtype], terms)
    if gradient is None:
        return
    kept = exact(x.values, axis=axes, keepdims=True)
    g = backward(out, 3).reshape(kept.shape)
    n = x.values.size // max(kept.size, 1)
    if name == "var":
        each = 2 * g / n * (x.values - np.mean(x.values, axis=axes, keepdims=True))
    else:
        each = gradient(x.values, kept, g, n)
    close_gradient(x, each, np.abs(each), dtype, 4)


@examples(60)
@given(data=st.data())
def test_along_one_axis(data: st.DataObject, level: str) -> None:
    dtype = data.draw(st.sampled_from(("float32", "float64", "bfloat16", "int64")))
    shape = tuple(n or 1 for n in data.draw(shapes(min_dims=1)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = operand(data.draw(layouts(shape)), dtype, 2)
    assert (mg.argmax(x.view, axis).numpy() == x.values.argmax(axis)).all()
    assert (mg.argmin(x.view, axis).numpy() == x.values.argmin(axis)).all()
    assert mg.argmax(x.view).item() == x.values.argmax()
    tolerance = TOLERANCE.get(dtype, 0.0)
    size = np.abs(x.values).cumsum(axis)
    running = mg.cumsum(x.view, axis)
    close(running, x.values.cumsum(axis), tolerance, size)
    if dtype == "int64":
        return
    g = backward(running, 3)
    each = np.flip(np.flip(g, axis).cumsum(axis), axis)
    close_gradient(x, each, np.abs(each), dtype, 2)
    close(mg.logsumexp(x.view, axis), np.log(np.exp(x.values).sum(axis)), 2 * tolerance)
    e = np.exp(x.values)
    close(mg.softmax(x.view, axis), e / e.sum(axis, keepdims=True), 2 * tolerance)


# ---- movement and indexing: what an operation does to positions, it does to values ----


@st.composite
def movements(draw: Any, shape: tuple[int, ...]) -> Callable[[Any, Any], Any]:
    """One step: a function of (mg or np, x)."""
    axis = draw(st.integers(0, max(len(shape) - 1, 0)))
    names = ["reshape", "expand_dims", "stack"]
    if shape:
        names += ["permute", "flip", "roll", "repeat", "pad", "split", "concat", "swapaxes"]
    if len(shape) >= 2:
        names += ["tril", "triu"]
    name = draw(st.sampled_from(names))
    n = shape[axis] if shape else 1
    k = draw(st.integers(0, 3))
    order = draw(st.permutations(range(len(shape))))
    other = draw(st.integers(0, max(len(shape) - 1, 0)))
    divisor = draw(st.sampled_from([d for d in range(1, 34) if math.prod(shape) % d == 0]))
    target = (divisor, math.prod(shape) // divisor)
    widths = tuple((k, 1) if d == axis else (0, 0) for d in range(len(shape)))

    def split(m: Any, x: Any) -> Any:
        return m.split(x, [k], axis)[1]

    if name == "split" and k > n:
        name = "flip"
    table: dict[str, Callable[[Any, Any], Any]] = {
        "reshape": lambda m, x: m.reshape(x, target),
        "expand_dims": lambda m, x: m.expand_dims(x, axis),
        "stack": lambda m, x: m.stack([x, x], axis),
        "permute": lambda m, x: m.permute(x, order) if m is mg else np.transpose(x, order),
        "swapaxes": lambda m, x: m.swapaxes(x, axis, other),
        "flip": lambda m, x: m.flip(x, axis),
        "roll": lambda m, x: m.roll(x, k, axis),
        "repeat": lambda m, x: m.repeat(x, k, axis),
        "pad": lambda m, x: m.pad(x, widths),
        "split": split,
        "concat": lambda m, x: (mg.concat if m is mg else np.concatenate)([x, x], axis),
        "tril": lambda m, x: m.tril(x, k - 1),
        "triu": lambda m, x: m.triu(x, 1 - k),
    }
    return table[name]


@examples(150)
@given(data=st.data())
def test_movement_is_numpys(data: st.DataObject, level: str) -> None:
    dtype = data.draw(st.sampled_from(("float32", "float64", "bfloat16")))
    shape = data.draw(shapes(max_dims=3))
    x = operand(data.draw(layouts(shape)), dtype, 4)
    # Positions from 1, so that the zeros of padding and triangles are told apart.
    memory = np.arange(1, 1 + math.prod(x.layout.memory)).reshape(x.layout.memory)
    out, want, positions = x.view, x.values, x.layout.of(memory)
    for _ in range(data.draw(st.integers(1, 3))):
        if want.size > 20_000 or want.ndim > 5:
            break
        step = data.draw(movements(want.shape))
        out, want, positions = step(mg, out), step(np, want), step(np, positions)
    assert out.shape == want.shape
    assert (out.to("float64").numpy() == want).all()
    g = backward(out, 5)
    exact = scattered(positions, g, memory.size + 1)[1:].reshape(memory.shape)
    close(x.leaf.grad, exact, 2 * TOLERANCE[dtype])


@st.composite
def indices(draw: Any, shape: tuple[int, ...]) -> Any:
    """An index of any kind that NumPy takes."""
    kind = draw(st.sampled_from(("basic", "arrays", "bool", "mixed")))
    if kind == "basic" or not shape or 0 in shape:
        return draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    if kind == "bool":
        return (
            np.random.default_rng(draw(SEEDS)).random(shape[: draw(st.integers(1, len(shape)))])
            < 0.5
        )
    rng = np.random.default_rng(draw(SEEDS))
    size = draw(hnp.array_shapes(max_dims=2, max_side=5))
    parts: list[Any] = []
    for n in shape[: draw(st.integers(1, len(shape)))]:
        which = draw(st.sampled_from(("array", "slice", "integer"))) if kind == "mixed" else "array"
        if which == "array":
            parts.append(rng.integers(-n, n, size))
        elif which == "slice":
            parts.append(draw(st.slices(n)))
        else:
            parts.append(draw(st.integers(-n, n - 1)))
    return tuple(parts)


def as_ours(index: Any) -> Any:
    if isinstance(index, np.ndarray):
        return mg.tensor(index)
    return tuple(as_ours(i) for i in index) if isinstance(index, tuple) else index


@examples(120)
@given(data=st.data())
def test_indexing_is_numpys(data: st.DataObject, level: str) -> None:
    dtype = data.draw(st.sampled_from(("float32", "float64", "bfloat16")))
    shape = data.draw(shapes(max_dims=3))
    x = operand(data.draw(layouts(shape)), dtype, 6)
    index = data.draw(indices(shape))
    out, want = x.view[as_ours(index)], np.asarray(x.values[index])
    assert out.shape == want.shape
    assert (out.to("float64").numpy() == want).all()
    g = backward(out, 7)
    flat = np.arange(x.values.size).reshape(shape)[index]
    each = scattered(np.asarray(flat), g, x.values.size).reshape(shape)
    close_gradient(x, each, np.abs(each), dtype, 2)
    # Writing: a broadcast value into the same places.
    target, copied = mg.tensor(x.values, dtype), x.values.copy()
    target[as_ours(index)] = 3.0
    copied[index] = 3.0
    assert (target.to("float64").numpy() == copied).all()
    value = np.arange(want.size, dtype=np.float64).reshape(want.shape)
    target[as_ours(index)] = mg.tensor(value).to(dtype)
    copied[index] = mg.tensor(value).to(dtype).to("float64").numpy()
    assert (target.to("float64").numpy() == copied).all()


@examples(60)
@given(data=st.data())
def test_take_and_scatter_along_an_axis(data: st.DataObject, level: str) -> None:
    dtype = data.draw(st.sampled_from(("float32", "float64", "bfloat16")))
    shape = tuple(n or 1 for n in data.draw(shapes(min_dims=1, max_dims=3)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = operand(data.draw(layouts(shape)), dtype, 8)
    rng = np.random.default_rng(9)
    many = list(shape)
    many[axis] = data.draw(st.integers(0, 9))
    index = rng.integers(-shape[axis], shape[axis], many)
    out = mg.take_along_axis(x.view, mg.tensor(index), axis)
    close(out, np.take_along_axis(x.values, index, axis), 0.0)
    g = backward(out, 10)
    flat = np.take_along_axis(np.arange(x.values.size).reshape(shape), index, axis)
    each = scattered(flat, g, x.values.size).reshape(shape)
    close_gradient(x, each, np.abs(each), dtype, 2)
    added = mg.tensor(rng.uniform(-1, 1, many), dtype, requires_grad=True)
    total = mg.scatter_add(x.view.detach(), mg.tensor(index), added, axis)
    values = added.to("float64").numpy()
    exact = x.values + scattered(flat, values, x.values.size).reshape(shape)
    size = np.abs(x.values) + scattered(flat, np.abs(values), x.values.size).reshape(shape)
    close(total, exact, TOLERANCE[dtype], size)
    g = backward(total, 11)
    close(added.grad, np.take_along_axis(g, index, axis), TOLERANCE[dtype])


@examples(80)
@given(data=st.data())
def test_order_is_numpys_with_ties_kept_in_place(data: st.DataObject, level: str) -> None:
    dtype = data.draw(
        st.sampled_from(("float32", "float64", "bfloat16", "int64", "uint8", "int32"))
    )
    shape = tuple(n or 1 for n in data.draw(shapes(min_dims=1, max_dims=3)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = operand(data.draw(layouts(shape)), dtype, 12)
    coarse = mg.round(x.view) if dtype in TOLERANCE else x.view  # many ties
    values = coarse.to("float64").numpy()
    rising, falling = (np.argsort(s * values, axis, kind="stable") for s in (1, -1))
    assert (mg.argsort(coarse, axis).numpy() == rising).all()
    assert (mg.argsort(coarse, axis, descending=True).numpy() == falling).all()
    k = data.draw(st.integers(0, shape[axis]))
    first = np.take(falling, range(k), axis)
    top, where = mg.topk(coarse, k, axis)
    assert (where.numpy() == first).all()
    assert (top.to("float64").numpy() == np.take_along_axis(values, first, axis)).all()
    if dtype in TOLERANCE:
        ordered = mg.sort(x.view, axis)
        assert (ordered.to("float64").numpy() == np.sort(x.values, axis)).all()
        g = backward(ordered, 13)
        order = np.argsort(x.values, axis, kind="stable")
        each = np.zeros(shape)
        np.put_along_axis(each, order, g, axis)
        close_gradient(x, each, np.abs(each), dtype, 2)


# ---- products ----

# Around the blocks of csrc/matmul_kernel.h: rows (4, 6, 14), columns (8, 16, 32), few rows (16, 24,
# 56), rows of a task (64, 96, 224) and one block of the inner length (256).
LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 23, 24, 25, 31, 32, 33,
           55, 56, 57, 64, 65, 96, 97, 224, 225, 255, 256, 257)  # fmt: skip
SIZES = st.sampled_from(LENGTHS)


@examples(150)
@given(data=st.data())
def test_products_of_any_size_and_stride(data: st.DataObject, level: str) -> None:
    dtype = data.draw(st.sampled_from(("float32", "float32", "float32", "bfloat16", "float16")))
    m, n, k = (data.draw(SIZES) for _ in range(3))
    batch = data.draw(hnp.mutually_broadcastable_shapes(
        num_shapes=2, max_dims=2, max_side=3 if m * n * k < 40_000 else 1))  # fmt: skip
    a_batch, b_batch = batch.input_shapes
    a = operand(data.draw(layouts((*a_batch, m, k))), dtype, 14)
    b = operand(data.draw(layouts((*b_batch, k, n))), dtype, 15)
    out = a.view @ b.view
    exact = a.values @ b.values
    # Inner products are judged by the size of what they add up, not by what is left of it.
    size = np.abs(a.values) @ np.abs(b.values)
    close(out, exact, PRODUCT[dtype], size)
    g = backward(out, 16)
    for x, left, right in (
        (a, g, np.swapaxes(b.values, -1, -2)),
        (b, np.swapaxes(a.values, -1, -2), g),
    ):
        shape = x.values.shape
        each, size = (
            unbroadcast(left @ right, shape),
            unbroadcast(np.abs(left) @ np.abs(right), shape),
        )
        close(x.leaf.grad, x.layout.gradient(each), 4 * PRODUCT[dtype], x.layout.gradient(size))


# More columns and a longer inner length than are packed at a time; A is read in place, or packed.
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("a_transposed", [False, True])
def test_products_larger_than_what_is_packed_at_a_time(
    a_transposed: bool, dtype: str, level: str
) -> None:
    rng = np.random.default_rng(18)
    a, b = (mg.tensor(rng.standard_normal(s), dtype) for s in ((60, 1100), (1100, 2060)))
    x = mg.swapaxes(mg.swapaxes(a, 0, 1).contiguous(), 0, 1) if a_transposed else a
    exact_a, exact_b = (np.asarray(t.to("float64").numpy()) for t in (a, b))
    size = np.abs(exact_a) @ np.abs(exact_b)
    close(x @ b, exact_a @ exact_b, PRODUCT[dtype], size)


@examples(60)
@given(data=st.data())
def test_vectors_and_linear(data: st.DataObject, level: str) -> None:
    k, n = data.draw(SIZES), data.draw(SIZES)
    vector = operand(data.draw(layouts((k,))), "float32", 17)
    matrix = operand(data.draw(layouts((n, k))), "float32", 18)
    bias = operand(data.draw(layouts((n,))), "float32", 19)
    size = np.abs(matrix.values) @ np.abs(vector.values)
    close(matrix.view @ vector.view, matrix.values @ vector.values, PRODUCT["float32"], size)
    close(
        vector.view @ mg.swapaxes(matrix.view, 0, 1),
        vector.values @ matrix.values.T,
        PRODUCT["float32"],
        size,
    )
    close(
        vector.view @ vector.view,
        vector.values @ vector.values,
        PRODUCT["float32"],
        vector.values @ vector.values,
    )
    out = mg.linear(vector.view, matrix.view, bias.view)
    close(out, matrix.values @ vector.values + bias.values, PRODUCT["float32"], size + 2)
    g = backward(out, 20)
    close(matrix.leaf.grad, matrix.layout.gradient(np.outer(g, vector.values)), 1e-5)
    close(bias.leaf.grad, bias.layout.gradient(g), 1e-5)


@examples(100)
@given(data=st.data())
def test_einsum_is_numpys(data: st.DataObject, level: str) -> None:
    labels = "abcde"
    sizes = {c: data.draw(st.sampled_from((1, 2, 3, 5, 8))) for c in labels}
    terms = [
        "".join(data.draw(st.lists(st.sampled_from(labels), min_size=0, max_size=4)))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    present = sorted(set("".join(terms)))
    output = "".join(data.draw(st.permutations(present))[: data.draw(st.integers(0, 3))])
    dots = data.draw(st.booleans())
    wide = [data.draw(hnp.array_shapes(min_dims=0, max_dims=1, max_side=1)) for _ in terms]
    if dots:
        wide[0] = (2, 3)[: data.draw(st.integers(0, 2))]
    equation = ",".join(("..." if dots else "") + t for t in terms)
    equation += "->" + ("..." if dots else "") + output if data.draw(st.booleans()) else ""
    operands = [
        operand(
            data.draw(layouts((*(w if dots else ()), *(sizes[c] for c in t)))), "float64", 21 + i
        )
        for i, (t, w) in enumerate(zip(terms, wide, strict=True))
    ]
    exact = np.einsum(equation, *[x.values for x in operands])
    out = mg.einsum(equation, *[x.view for x in operands])
    size = np.einsum(equation, *[np.abs(x.values) for x in operands])
    close(out, exact, TOLERANCE["float64"], size)
    backward(out, 25)
    # The product is linear in each operand, so <gradient, operand> is the same for all of them.
    each = [float((x.leaf.grad.numpy() * x.leaf.numpy()).sum()) for x in operands]
    g = np.random.default_rng(25).uniform(0.5, 1.5, out.shape)
    assert each == pytest.approx([float((g * exact).sum())] * len(each), rel=1e-9, abs=1e-9)


# ---- rows and attention: the kernels against the plain definitions, in float64 ----


def run_with(op: Callable[..., Any], arrays: list[Array], dtype: str, g: Array) -> list[Array]:
    """The output and the gradients, in float64."""
    leaves = [mg.tensor(a, dtype, requires_grad=True) for a in arrays]
    out = op(*leaves)
    out.backward(mg.tensor(g, dtype))
    return [t.to("float64").numpy() for t in (out, *(leaf.grad for leaf in leaves))]


def rounded(arrays: list[Array], dtype: str) -> list[Array]:
    return [mg.tensor(a, dtype).to("float64").numpy() for a in arrays]


ROW_OPS: dict[str, Callable[..., Any]] = {
    "softmax": lambda x, w, b: mg.softmax(x[:, 1:]) * w[1:] + b[1:],
    "log_softmax": lambda x, w, b: mg.log_softmax(x[:, 1:]) * w[1:] + b[1:],
    "logsumexp": lambda x, w, b: mg.logsumexp(x[:, 1:], -1, keepdims=True) * w[1:] + b[1:],
    "layer_norm": lambda x, w, b: mg.layer_norm(x[:, 1:], w[1:].contiguous(), b[1:].contiguous()),
    "rms_norm": lambda x, w, b: mg.rms_norm(x[:, 1:], w[1:].contiguous()) + b[1:],
    "gelu_of_a_sum": lambda x, w, b: mg.gelu(x[:, 1:] + b[1:]) * w[1:],
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ROW_OPS)
def test_rows_of_every_width(name: str, dtype: str, level: str) -> None:
    """Widths 1 to 130 and around 512; rows start at odd places of wider ones."""
    rng = np.random.default_rng(22)
    forward, gradient = ROWS[dtype]
    widths = (
        [*range(1, 131), 511, 512, 513] if dtype == "float32" else [1, 7, 8, 9, 15, 16, 17, 130]
    )
    for width in widths:
        arrays = [rng.uniform(-2, 2, s) for s in ((3, width + 1), (width + 1,), (width + 1,))]
        arrays, (g,) = rounded(arrays, dtype), rounded([rng.uniform(0.5, 1.5, (3, width))], dtype)
        got = run_with(ROW_OPS[name], arrays, dtype, g)
        with mg.use_kernels("ref"):
            exact = run_with(ROW_OPS[name], arrays, "float64", g)
        for i, (ours, want) in enumerate(zip(got, exact, strict=True)):
            off = np.abs(ours - want) / (1 + np.abs(want))
            # A norm over two or three columns divides by what may be nearly nothing.
            allowed = (gradient if i else forward) * max(1.0, np.abs(want).max())
            assert off.max() <= allowed, (width, i, off.max())


@examples(100)
@given(data=st.data())
def test_attention_of_any_size(data: st.DataObject, level: str) -> None:
    """Lengths around one and two tiles (csrc/attention.h: 64 by 64), features around vectors."""
    lengths = st.sampled_from((1, 2, 3, 5, 8, 15, 17, 31, 63, 64, 65, 127, 128, 129))
    n_queries, n_keys = data.draw(lengths), data.draw(lengths)
    dim = data.draw(st.sampled_from((1, 3, 4, 7, 8, 9, 15, 16, 17, 33)))
    heads, kv_heads = data.draw(st.sampled_from(((1, 1), (2, 1), (2, 2), (4, 2))))
    batch = data.draw(st.sampled_from((1, 2)))
    dtype = data.draw(st.sampled_from(("float32", "float32", "bfloat16")))
    rng = np.random.default_rng(data.draw(SEEDS))
    options: dict[str, Any] = {
        "causal": data.draw(st.booleans()),
        "window": data.draw(st.none() | st.sampled_from((1, 2, 9, 63, 64, 65))),
    }
    full = (batch, heads, n_queries, n_keys)
    spread = tuple(data.draw(st.sampled_from((1, n))) for n in full)
    if data.draw(st.booleans()):
        options["mask"] = mg.tensor(rng.random(spread) < 0.8)
    if data.draw(st.booleans()):
        options["bias"] = mg.tensor(rng.standard_normal(spread).astype(np.float32))
    # Heads inside of tokens in memory, as a projection leaves them.
    shapes_ = [(batch, n_queries, heads, dim), *[(batch, n_keys, kv_heads, dim)] * 2]
    arrays = rounded([rng.standard_normal(s) for s in shapes_], dtype)
    (g,) = rounded([rng.standard_normal((batch, heads, n_queries, dim))], dtype)

    def op(*leaves: mg.Tensor) -> mg.Tensor:
        return mg.attention(*(mg.permute(x, (0, 2, 1, 3)) for x in leaves), **options)

    got = run_with(op, arrays, dtype, g)
    with mg.use_kernels("ref"):
        exact = run_with(op, arrays, "float64", g)
    for ours, want in zip(got, exact, strict=True):
        np.testing.assert_allclose(ours, want, rtol=ATTENTION[dtype], atol=ATTENTION[dtype])
