"""The tape: retained graphs, hooks, versions, anomalies, threads, depth; and every clear error."""

from __future__ import annotations

import gc
import math
import sys
import threading
import weakref
from functools import partial

import numpy as np
import pytest
from child import run_python

import minigrad as mg


def leaf(*shape: int) -> mg.Tensor:
    return mg.tensor(
        np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape), requires_grad=True
    )


def test_gradients_add_up_over_backwards_and_uses() -> None:
    x = leaf(3)
    (x * x + x).sum().backward()
    (x * 2).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * x.numpy() + 3)


def test_second_backward_needs_retain_graph() -> None:
    x = leaf(2)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()


def test_backward_refuses_what_has_no_meaning() -> None:
    x = leaf(2)
    with pytest.raises(RuntimeError, match="scalars only"):
        (x * 2).backward()
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        mg.tensor(1.0).backward()
    with pytest.raises(TypeError, match="only floating tensors have gradients"):
        mg.tensor([1, 2], requires_grad=True)
    with pytest.raises(ValueError, match="the gradient given has shape"):
        (x * 2).backward(mg.ones((3,)))


def test_saved_tensor_changed_in_place() -> None:
    x = leaf(3)
    y = x * 2
    z = (y * y).sum()
    with mg.no_grad():
        y += 1
    with pytest.raises(RuntimeError, match=r"Mul: a tensor .* changed in place"):
        z.backward()


INTEGERS_THAT_BACKWARD_READS = [
    lambda x, i: mg.embedding(x, i),
    lambda x, i: mg.embedding(x, mg.stack([i, i])[0]),
    lambda x, i: mg.cross_entropy(x[:2], i),
]


@pytest.mark.parametrize("case", range(len(INTEGERS_THAT_BACKWARD_READS)))
def test_saved_integers_changed_in_place(case: int) -> None:
    x, i = leaf(3, 3), mg.tensor([0, 1])
    y = INTEGERS_THAT_BACKWARD_READS[case](x, i.reshape(1, 2)[0])
    i[0] = 2
    if case == 1:  # read from a copy
        y.sum().backward()
        assert x.grad.tolist() == [[1] * 3, [1] * 3, [0] * 3]
        return
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


INDICES_THAT_ARE_READ_AT_ONCE = [
    lambda x, i: x[i],
    lambda x, i: x[i[0] :],
    lambda x, i: x[i[0]],
    lambda x, i: mg.take_along_axis(x, mg.expand_dims(i, 1), 0),
    lambda x, i: mg.scatter_add(x[:, :1] * 0, mg.expand_dims(i, 1), x[:2, :1], 0),
]


@pytest.mark.parametrize("case", range(len(INDICES_THAT_ARE_READ_AT_ONCE)))
def test_an_index_may_change_after_it_was_used(case: int) -> None:
    gradients = []
    for change in (False, True):
        x, i = leaf(3, 3), mg.tensor([0, 1])
        y = INDICES_THAT_ARE_READ_AT_ONCE[case](x, i)
        if change:
            i[0] = 2
        (y * y).sum().backward()
        gradients.append(x.grad.numpy())
    np.testing.assert_array_equal(*gradients)


def test_profile_shows_what_numpy_does() -> None:
    x, a = mg.randn((4, 5)), mg.ones((4, 4), "float64")
    with mg.profile() as p:
        a @ a
        mg.linear(a, a, a[0])
        mg.topk(x, 2)
        x[np.array([0, 1])] = x[np.array([2, 3])]
    shown = {name: row.calls for name, row in p.rows.items() if name.startswith("numpy:")}
    assert shown == {
        "numpy:matmul": 2,
        "numpy:topk": 1,
        "numpy:positions": 1,
        "numpy:set_item": 1,
    }
    assert p.rows["numpy:matmul"].operations == 2 * 2 * 4**3
    assert p.rows["numpy:topk"].bytes == 20 * 4 + 8 * 8
    before = mg.memory_statistics()
    assert "numpy:matmul" in p.table()
    assert mg.memory_statistics() == before  # the limits were measured in other memory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "uint8", "bool"])
def test_descending_order_is_stable_with_nan_last(dtype: str) -> None:
    if dtype in ("float32", "bfloat16"):
        x = mg.tensor([1.0, float("nan"), 3.0, -0.0, 3.0, 0.0, float("-inf")], dtype)
        assert mg.argsort(x, descending=True).tolist() == [2, 4, 0, 3, 5, 6, 1]
        assert mg.topk(x, 3)[1].tolist() == [2, 4, 0]
    else:
        x = mg.tensor([0, 1, 0, 1], dtype)
        assert mg.argsort(x, descending=True).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int32", "int64"])
def test_order_of_the_ends_of_a_type(dtype: str) -> None:
    """Whether the values of a type, or their range, fit into what is sorted or not."""
    if dtype.startswith("int"):
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        middle, last = [0, 0], [high] * 2
    else:
        low, high = -math.inf, math.inf
        middle, last = [0.0, -0.0], [math.nan] * 2
    x = mg.tensor([*last, high, *middle, low, high, low], dtype)
    falling = [0, 1, 2, 6, 3, 4, 5, 7] if dtype.startswith("int") else [2, 6, 3, 4, 5, 7, 0, 1]
    rising = [5, 7, 3, 4, 0, 1, 2, 6] if dtype.startswith("int") else [5, 7, 3, 4, 2, 6, 0, 1]
    assert mg.argsort(x).tolist() == rising
    assert mg.argsort(x, descending=True).tolist() == falling
    assert mg.topk(x, 3)[1].tolist() == falling[:3]
    values = x.to("float64").numpy()
    np.testing.assert_array_equal(mg.sort(x).to("float64").numpy(), values[rising])


def test_view_shares_its_version() -> None:
    x = mg.ones((4,))
    x[1:][0] = 5.0
    assert x.version == 1
    assert x.tolist() == [1, 5, 1, 1]


def test_in_place_on_a_leaf_that_needs_a_gradient() -> None:
    x = leaf(3)
    with pytest.raises(RuntimeError, match="no_grad"):
        x[0] = 1.0
    with mg.no_grad():
        x -= 1
    assert x.tolist() == [0, 1, 2]
    assert x.requires_grad


def test_numpy_view_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        leaf(2).numpy()[0] = 1


def test_hooks_and_retained_gradients() -> None:
    x = leaf(2)
    y = x * 3
    y.retain_grad()
    remove = y.register_hook(lambda g: g * 10)
    y.sum().backward()
    assert y.grad.tolist() == [1, 1]
    assert x.grad.tolist() == [30, 30]
    remove()
    x.grad = None
    x.register_hook(lambda g: g + 1)
    (x * 3).sum().backward()
    assert x.grad.tolist() == [4, 4]


def shares_nothing(*tensors: mg.Tensor) -> bool:
    arrays = [t._array for t in tensors]
    return all(a.flags.c_contiguous and a.flags.writeable for a in arrays) and not any(
        np.may_share_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i]
    )


class Kept(mg.Function):
    """y = x · 3, whose backward returns what forward saved."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_inputs(1)
        return x * factor

    @staticmethod
    def backward(ctx, g):
        return ctx.saved[0], None


def gradients_of_a_sum(x: mg.Tensor, w: mg.Tensor) -> list[mg.Tensor]:
    y = x + w
    (y * y).sum().backward()
    return [x.grad, w.grad]


def gradients_through_views(x: mg.Tensor, w: mg.Tensor) -> list[mg.Tensor]:
    y = x.reshape(3, 2) + w.reshape(3, 2)
    (y * y).sum().backward()
    return [x.grad, w.grad]


def gradients_that_are_parts(x: mg.Tensor, w: mg.Tensor) -> list[mg.Tensor]:
    y = mg.concat([x, w])
    (y * y).sum().backward()
    return [x.grad, w.grad]


def gradients_and_their_seed(x: mg.Tensor, w: mg.Tensor) -> list[mg.Tensor]:
    seed = mg.ones((2, 3))
    (x + w).backward(seed)
    return [x.grad, w.grad, seed]


def gradients_that_are_broadcast(x: mg.Tensor, w: mg.Tensor) -> list[mg.Tensor]:
    (x.sum() + w.permute(1, 0).sum()).backward()
    return [x.grad, w.grad]


def gradients_retained(x: mg.Tensor, w: mg.Tensor) -> list[mg.Tensor]:
    y = x + 0
    y.retain_grad()
    z = y + w
    z.retain_grad()
    (z * z).sum().backward()
    return [x.grad, w.grad, y.grad, z.grad]


def gradients_that_a_hook_keeps(x: mg.Tensor, w: mg.Tensor) -> list[mg.Tensor]:
    kept = []
    x.register_hook(kept.append)
    y = x + w
    y.register_hook(kept.append)
    (y * y).sum().backward()
    return [x.grad, w.grad, kept[0]]


def gradients_that_were_saved(x: mg.Tensor, w: mg.Tensor) -> list[mg.Tensor]:
    factor = mg.full((2, 3), 3.0)
    Kept.apply(x, factor).sum().backward()
    return [x.grad, factor]


def gradients_asked_for(x: mg.Tensor, w: mg.Tensor) -> list[mg.Tensor]:
    y = x + w
    return mg.grad((y * y).sum(), [x, w, y])


ALIASED = [value for name, value in list(globals().items()) if name.startswith("gradients_")]


@pytest.mark.parametrize("make", ALIASED, ids=lambda make: make.__name__)
def test_gradients_own_their_memory(make) -> None:
    assert shares_nothing(*make(leaf(2, 3), leaf(2, 3)))


def test_gradients_of_a_graph_own_their_memory_and_can_be_differentiated() -> None:
    x, w = leaf(3), leaf(3)
    y = x + w
    (y * y * y).sum().backward(create_graph=True)
    assert shares_nothing(x.grad, w.grad)
    (second,) = mg.grad(w.grad.sum(), x)
    assert second.tolist() == [12, 24, 36]


def test_a_fresh_gradient_is_not_copied() -> None:
    x, w, b = mg.randn((4, 3)), mg.randn((2, 3)).requires_grad_(), mg.zeros((2,)).requires_grad_()
    with mg.profile() as p:
        mg.linear(x, w, b).backward(mg.ones((4, 2)))
    assert "copy" not in p.rows
    assert shares_nothing(w.grad, b.grad)


def test_grad_touches_no_fields_and_walks_only_what_is_needed() -> None:
    x, w = leaf(2), leaf(2)
    y = x * w
    (gy,) = mg.grad((y * y).sum(), y)
    assert gy.tolist() == [2, 8]
    y.retain_grad()
    mg.grad((y * y).sum(), x)
    assert x.grad is None
    assert w.grad is None
    assert y.grad is None
    with pytest.raises(RuntimeError, match="do not depend on input 0"):
        mg.grad((x * 2).sum(), w)
    assert mg.grad((x * 2).sum(), w, allow_unused=True) == [None]


def test_third_derivative() -> None:
    x = mg.tensor(2.0, requires_grad=True)
    y = x**4
    for expected in (32.0, 48.0, 48.0):
        (y,) = mg.grad(y, x, create_graph=True)
        assert y.item() == expected


def test_anomaly_names_the_op_that_first_went_nan() -> None:
    x = mg.tensor([-1.0], requires_grad=True)
    with (
        mg.detect_anomaly(),
        pytest.raises(
            FloatingPointError, match=r"output of log .*nothing that log was given had any"
        ),
    ):
        mg.exp(mg.log(x))
    y = mg.tensor([0.0], requires_grad=True)
    with mg.detect_anomaly(), pytest.raises(FloatingPointError, match=r"backward"):
        (mg.sqrt(y) * 0.0).sum().backward()


def test_anomaly_that_came_in_with_an_input() -> None:
    x = mg.tensor([1.0, float("nan")], requires_grad=True)
    with mg.detect_anomaly():
        with pytest.raises(FloatingPointError, match=r"output of exp .*it came in with what exp"):
            mg.exp(x)
        with pytest.raises(FloatingPointError, match=r"output of max .*it came in"):
            mg.max(x)
    y = mg.exp(x)
    with mg.detect_anomaly(), pytest.raises(FloatingPointError, match=r"exp.backward .*came in"):
        y.backward(mg.ones((2,)))


def test_a_tensor_says_which_op_made_it() -> None:
    x = leaf(2)
    for op in (mg.log, mg.exp):
        assert repr(op(x)).endswith(f"made by {op.__name__})")
    for op in (mg.max, mg.min):
        assert repr(op(x, 0, keepdims=True)).endswith(f"made by {op.__name__})")
    assert repr(mg.maximum(x, 0.0)).endswith("made by maximum)")


class Wrong(mg.Function):
    """The identity, with whatever backward it is told."""

    @staticmethod
    def forward(ctx, x, result):
        ctx.result = result
        return x.copy()

    @staticmethod
    def backward(ctx, g):
        return ctx.result


@pytest.mark.parametrize(
    ("result", "kind", "message"),
    [
        (lambda: mg.ones((3,)), RuntimeError, r"shape \(3,\) .* of shape \(2,\)"),
        (lambda: mg.ones((2,), "float64"), RuntimeError, "dtype float64 for .* dtype float32"),
        (lambda: np.ones(2, np.float32), TypeError, "a ndarray as a gradient"),
        (lambda: (mg.ones((2,)), None), RuntimeError, "2 gradients for 1 inputs"),
    ],
)
@pytest.mark.parametrize("before", [lambda x: x, lambda x: x * 2])
def test_a_wrong_gradient_names_the_function(before, result, kind, message) -> None:
    x = leaf(2)
    y = Wrong.apply(before(x), result=result())
    with pytest.raises(kind, match=f"Wrong.*{message}"):
        y.sum().backward()
    assert x.grad is None


def test_a_hook_that_returns_a_wrong_gradient_is_named() -> None:
    def widen(g: mg.Tensor) -> mg.Tensor:
        return mg.ones((3,))

    for hooked in (lambda x: x, lambda x: x * 2):
        x = leaf(2)
        y = hooked(x)
        y.register_hook(widen)
        with pytest.raises(RuntimeError, match=r"hook .*widen returned \(3,\) .*\(2,\)"):
            (y * y).sum().backward()
        assert x.grad is None


def test_grad_of_a_freed_graph_says_so() -> None:
    x = leaf(2)
    y = x * x
    z = y.sum()
    z.backward()
    with pytest.raises(RuntimeError, match="freed"):
        mg.grad(z, x)
    with pytest.raises(RuntimeError, match="freed"):  # only a part of it
        mg.grad((y * x).sum(), x)
    assert mg.grad((y * 3).sum(), y)[0].tolist() == [3, 3]
    (got,) = mg.grad((y.detach() * x).sum(), x)
    assert got.tolist() == [1, 4]


def test_backward_takes_what_is_like_a_tensor() -> None:
    x = leaf(2)
    (x * 2).backward([1, 10])
    assert x.grad.tolist() == [2, 20]


def test_threads_draw_different_streams() -> None:
    generator, drawn = mg.Generator(1), []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def draw() -> None:
        drawn.extend([int(generator.next_cell()[1]) for _ in range(3000)])

    try:
        threads = [threading.Thread(target=draw) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(interval)
    assert sorted(drawn) == list(range(12_000))


def test_exception_inside_backward_leaves_no_partial_gradient() -> None:
    class Broken(mg.Function):
        @staticmethod
        def forward(ctx, x):
            return x.copy()

        @staticmethod
        def backward(ctx, g):
            raise ZeroDivisionError("on purpose")

    x, w = leaf(2), leaf(2)
    with pytest.raises(ZeroDivisionError):
        (Broken.apply(x).sum() + (w * 2).sum()).backward()
    assert x.grad is None
    assert w.grad is None
    (w * 2).sum().backward()
    assert w.grad.tolist() == [2, 2]


def test_deep_graph_needs_no_recursion() -> None:
    x = leaf(1)
    y = x
    for _ in range(200_000):
        y = y + 1
    y.sum().backward()
    assert x.grad.item() == 1
    del y
    z = leaf(1)
    for _ in range(200_000):
        z = z + 1
    del z  # a graph that is dropped without a walk


def test_threads_accumulate_exactly() -> None:
    x = leaf(1000)

    def work() -> None:
        for _ in range(20):
            (x * 1.0).sum().backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert x.grad.tolist() == [80.0] * 1000


def test_graph_is_freed_without_the_collector() -> None:
    """A node that saves its own output does not own itself."""
    x = mg.ones((3,), requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        y = mg.tanh(mg.exp(x) * 2)
        node = weakref.ref(y._node)
        del y
        assert node() is None
    finally:
        gc.enable()


def test_max_shares_ties_and_norm_at_zero() -> None:
    x = mg.tensor([1.0, 3.0, 3.0], requires_grad=True)
    mg.max(x).backward()
    assert x.grad.tolist() == [0, 0.5, 0.5]
    z = mg.zeros((3,), requires_grad=True)
    mg.norm(z).backward()
    assert z.grad.tolist() == [0, 0, 0]


ONES = mg.ones((2, 3))
BAD_INPUT = [
    (lambda: mg.clip(mg.ones((2,)), "a"), TypeError, "clip: low must be a number, got 'a'"),
    (lambda: mg.optim.SGD(3, 0.1), TypeError, "SGD: expected a list of parameters, got 3"),
    (lambda: mg.optim.SGD([3], 0.1), TypeError, "SGD: parameters must be tensors, got 3"),
    (
        lambda: mg.optim.AdamW([mg.ones((2,), requires_grad=True)], lr="a"),
        TypeError,
        "AdamW: lr must be a number, got 'a'",
    ),
    (lambda: mg.grad(mg.ones(()), 3), TypeError, "grad: input 0 must be a tensor, got 3"),
    (lambda: mg.grad(3, mg.ones(())), TypeError, "grad: output 0 must be a tensor, got 3"),
    (
        lambda: mg.ones((2, 3)) @ mg.ones((2, 3)),
        ValueError,
        "matmul: shapes .* inner lengths 3 and 2",
    ),
    (lambda: mg.ones((2, 3)) + mg.ones((4,)), ValueError, "add: shapes .* do not broadcast"),
    (
        lambda: mg.ones((2, 2)) @ mg.ones((2, 2), "float64"),
        TypeError,
        "matmul: operands are float32 and",
    ),
    (
        lambda: mg.embedding(mg.ones((4, 2)), mg.tensor([0, 4])),
        IndexError,
        r"embedding: index 4 .*\[0, 4\)",
    ),
    (lambda: mg.embedding(mg.ones((4, 2)), mg.tensor([-1])), IndexError, "embedding: index -1"),
    (
        lambda: mg.cross_entropy(mg.ones((2, 3)), mg.tensor([0, 3])),
        IndexError,
        "cross_entropy: target 3",
    ),
    (lambda: mg.cross_entropy(mg.ones((2, 3)), mg.tensor([0])), ValueError, "do not fit logits"),
    (
        lambda: mg.take_along_axis(mg.ones((2, 3)), np.array([[5]]), 1),
        IndexError,
        "index 5 is out of range",
    ),
    (
        lambda: mg.scatter_add(mg.ones((3, 3)), np.array([[0], [1]]), mg.ones((2, 1)), 0),
        ValueError,
        r"indices \(2, 1\) and x \(3, 3\) differ outside axis 0",
    ),
    (lambda: mg.ones((3,))[4], IndexError, "out of bounds"),
    (lambda: mg.max(mg.ones((0, 3)), 0), ValueError, "max: nothing to take"),
    (lambda: mg.ones((2, 3)).reshape(4), ValueError, "reshape: 6 elements"),
    (lambda: mg.sum(mg.ones((2,)), 1), IndexError, "axis 1 is out of range"),
    (lambda: mg.sort(mg.ones((2,)), 1), IndexError, "sort: axis 1 is out of range for 1"),
    (lambda: mg.sort(mg.tensor(1.0)), IndexError, "sort: axis -1 is out of range for 0"),
    (lambda: mg.topk(mg.ones((2,)), 1, 1), IndexError, "topk: axis 1 is out of range for 1"),
    (lambda: mg.argsort(mg.ones((2,)), 3), IndexError, "argsort: axis 3 is out of range"),
    (lambda: mg.zeros((1.5,)), TypeError, r"zeros: a shape must be .* of integers, got \(1.5,\)"),
    (lambda: mg.zeros((-1,)), ValueError, "zeros: negative dimension"),
    (lambda: mg.ones((2,)).reshape((1.5, 2)), TypeError, r"^reshape: a shape .*got \(1.5, 2\)"),
    (lambda: mg.full((2,), 300, "uint8"), OverflowError, "full: the number 300 .* uint8"),
    (lambda: mg.full_like(mg.tensor([1]), float("nan")), OverflowError, "number nan .* int64"),
    (lambda: list(mg.tensor(5.0)), TypeError, "iteration over a 0-d tensor"),
    (
        lambda: mg.attention(*[mg.ones((1, 2, 3, 4))] * 3, mask=mg.ones((2, 3), "bool")),
        ValueError,
        r"attention: mask of shape \(2, 3\) does not broadcast to \(B, Hq, Tq, Tk\)",
    ),
    (lambda: mg.attention(*[mg.ones((1, 2, 3, 0))] * 3), ValueError, "attention: head_dim"),
    (lambda: mg.attention_packed(mg.ones((1, 2, 3, 0)), 1), ValueError, "head_dim"),
    (lambda: mg.logsumexp(mg.ones((2, 0))), ValueError, "logsumexp: nothing to sum"),
    (lambda: mg.zeros((2**40, 2**30)), MemoryError, "more than can exist"),
    (
        lambda: mg.zeros((2**44,)),
        MemoryError,
        r"no memory for an array of shape \(17592186044416,\)",
    ),
    (lambda: mg.zeros((2**35,)), MemoryError, r"dtype float32: minigrad holds \d+ bytes"),
    (lambda: mg.tensor([1.0], "complex64"), TypeError, "not supported"),
    (lambda: mg.tensor(np.ones(2, np.int16)), TypeError, "pass dtype="),
    (lambda: mg.tensor([[1, 2], [3]]), TypeError, r"tensor: \[\[1, 2\], \[3\]\] is not a regular"),
    (lambda: mg.tensor([1.0], device="cuda"), ValueError, "'cuda'"),
    (
        lambda: mg.ones((2,)) + 10**30 * mg.ones((1,), "int64"),
        OverflowError,
        "does not fit into int64",
    ),
    (
        lambda: mg.attention(*[mg.ones((1, 2, 3, 4))] * 2, mg.ones((1, 2, 5, 4))),
        ValueError,
        "attention: expected",
    ),
    (
        lambda: mg.attention(*[mg.ones((1, 2, 3, 4))] * 3, mask=mg.ones((3, 3))),
        TypeError,
        "mask must be bool",
    ),
    (
        lambda: mg.attention(*[mg.ones((1, 2, 3, 4))] * 3, dropout=1.0),
        ValueError,
        "dropout must be in",
    ),
    (lambda: mg.dropout(mg.ones((2,)), -0.1), ValueError, "dropout: p must be"),
    (
        lambda: mg.layer_norm(mg.ones((2, 3)), mg.ones((4,))),
        ValueError,
        "layer_norm: weight has shape",
    ),
    (lambda: mg.linear(mg.ones((2, 3)), mg.ones((4, 5))), ValueError, "linear: x of shape"),
    (lambda: mg.einsum("ij,jk", mg.ones((2, 3))), ValueError, "einsum: 'ij,jk' names 2 operands"),
    (lambda: mg.where(mg.ones((2,)), 1.0, 2.0), TypeError, "condition must be bool"),
    (lambda: bool(mg.ones((2,))), ValueError, "ambiguous"),
    (lambda: mg.ones((2,)).item(), ValueError, "one element"),
    (lambda: mg.optim.SGD([], 0.1), ValueError, "no parameters"),
    (lambda: mg.arange(0, 5, 0), ValueError, "^arange: step must not be 0"),
    (lambda: mg.arange("5"), TypeError, "^arange: stop must be a number, got '5'"),
    (lambda: mg.arange(math.inf), ValueError, "^arange: stop must be finite, got inf"),
    (lambda: mg.arange(2**70), OverflowError, "^arange: 0 to 1180591620717411303424 .* int64"),
    (lambda: mg.arange(2**44), MemoryError, "^arange: "),
    (lambda: mg.linspace(0, math.nan, 3), ValueError, "^linspace: stop must be finite, got nan"),
    (lambda: mg.linspace(0, 1, -1), ValueError, "^linspace: num must be at least 0, got -1"),
    (lambda: mg.eye(-1), ValueError, "^eye: n must be at least 0, got -1"),
    (lambda: mg.eye(2, 1.5), TypeError, r"^eye: m must be an integer, got 1\.5"),
    (lambda: mg.eye(2**40), MemoryError, "^eye: shape .* more than can exist"),
    (lambda: mg.full((2,), "a"), TypeError, "^full: value must be a number, got 'a'"),
    (lambda: mg.full((2,), [1, 2]), TypeError, r"^full: value must be a number, got \[1, 2\]"),
    (lambda: mg.full((2,), 10**400), OverflowError, "^full: the number 1000.* float32"),
    (lambda: mg.zeros(None), TypeError, "^zeros: a shape must be .*, got None"),
    (lambda: mg.rand(-1), ValueError, "^rand: negative dimension"),
    (lambda: mg.randn((2,), generator=0), TypeError, r"^randn: generator .*, got 0; mg\.Generator"),
    (lambda: mg.randint(0, 1.5, (2,)), TypeError, r"^randint: high must be an integer, got 1\.5"),
    (lambda: mg.randint(2**64, 2**64 + 1, 2), OverflowError, "^randint: .* into int64"),
    (lambda: mg.randperm(-1), ValueError, "^randperm: n must be at least 0, got -1"),
    (lambda: mg.Generator(1.5), TypeError, r"^Generator: seed must be an integer, got 1\.5"),
    (lambda: mg.tensor("abc", "float32"), TypeError, "^tensor: 'abc' is not a regular array"),
    (lambda: mg.tensor([1j], "float32"), TypeError, r"^tensor: \[1j\] is not a regular array"),
    (lambda: mg.tensor([2**70]), TypeError, "at most 64 bits"),
    (lambda: mg.permute(ONES, 1), ValueError, r"^permute: \(1,\) is no order of 2 axes"),
    (lambda: mg.transpose(ONES, "ab"), TypeError, "^transpose: the axes' order .*, got 'ab'"),
    (lambda: mg.expand(ONES, None), TypeError, "^expand: a shape must be .*, got None"),
    (lambda: mg.broadcast_to(ONES, (2,)), ValueError, "^broadcast_to: shape .* does not broadcast"),
    (lambda: mg.flip(ONES, (0, 0)), ValueError, "^flip: axis .* names a dimension twice"),
    (lambda: mg.concat(5), TypeError, "^concat: expected a sequence of tensors, got 5"),
    (lambda: mg.stack(mg.tensor(1.0)), TypeError, "^stack: expected a sequence of tensors"),
    (lambda: mg.split(ONES, 1.5), TypeError, r"^split: sections must be .*, got 1\.5"),
    (lambda: mg.split(ONES, [0.5], 1), TypeError, "^split: sections must be .* integers"),
    (lambda: mg.pad(ONES, 0.5), TypeError, r"^pad: widths must be integers, .* got 0\.5"),
    (lambda: mg.pad(ONES, [1, 2, 3]), TypeError, r"^pad: widths .* got \[1, 2, 3\]"),
    (lambda: mg.pad(ONES, 2**61), MemoryError, "^pad: shape .* more than can exist"),
    (lambda: mg.pad(mg.tensor([1]), 1, math.nan), OverflowError, "^pad: the number nan"),
    (lambda: mg.roll(ONES, 0.5, 0), TypeError, r"^roll: shift must be an integer, got 0\.5"),
    (lambda: mg.repeat(ONES, 1.5, 0), TypeError, r"^repeat: repeats must be an integer, got 1\.5"),
    (lambda: mg.repeat(ONES, 2**70, 0), MemoryError, "^repeat: shape .* more than can exist"),
    (lambda: mg.tril(ONES, None), TypeError, "^tril: k must be an integer, got None"),
    (lambda: mg.topk(ONES, 1.0), TypeError, r"^topk: k must be an integer, got 1\.0"),
    (lambda: mg.cumsum(ONES), TypeError, r"^cumsum: .* axis=-1\); .* mg\.cumsum\(mg\.reshape\("),
    (lambda: mg.std(ONES, correction="1"), TypeError, "^std: correction must be a number, got '1'"),
    (lambda: mg.sum(ONES, True), TypeError, "^sum: axis must be an integer, .*, got True"),
    (lambda: ONES["a"], IndexError, "^index: only integers, slices"),
    (lambda: ONES[::0], ValueError, "^index: slice step cannot be zero"),
    (lambda: mg.ones(2).__setitem__([5], 1), IndexError, r"^index: index 5 .*\(shape \(2,\)\)"),
    (lambda: mg.zeros(2, 3), TypeError, r"^zeros: 3 is no dtype; .* one tuple, \(2, 3\)"),
    (lambda: mg.randn(2, 3), TypeError, r"^randn: 3 is no dtype; .* one tuple, \(2, 3\)"),
    (lambda: ONES.to(None), TypeError, "^dtype None is not supported"),
    (lambda: ONES.flatten(5), IndexError, "^flatten: axis 5 is out of range for 2"),
    (lambda: ONES.register_hook(3), TypeError, "^register_hook: expected a function, got 3"),
    (lambda: mg.Tensor([1]), TypeError, "^make tensors with mg.tensor"),
    (lambda: mg.set_num_threads(1.5), TypeError, "^set_num_threads: n must be an integer"),
    (lambda: mg.set_num_threads(0), ValueError, "^set_num_threads: expected 1 to 4096, got 0"),
    (lambda: mg.checkpoint_activations(3, ONES), TypeError, "^checkpoint_activations: .* got 3"),
    (lambda: mg.capture(3), TypeError, "^capture: expected a function, got 3"),
    (lambda: ONES[0.5:], TypeError, r"^index: a bound of a slice must be an integer, got 0\.5"),
    (lambda: ONES[[[0, 1], [0]]], IndexError, "^index: .* is not a regular array of integers"),
    (lambda: mg.set_item([1], 0, 2), TypeError, r"^set_item: expected a tensor .*, got \[1\]"),
    (lambda: mg.ones(2).copy_(mg.ones(3)), ValueError, r"^copy_: a value of shape \(3,\)"),
    (lambda: mg.dropout(ONES, "a"), TypeError, "^dropout: p must be a number, got 'a'"),
    (
        lambda: mg.layer_norm(ONES, eps=-1),
        ValueError,
        "^layer_norm: eps must be at least 0, got -1",
    ),
    (lambda: mg.rms_norm(ONES, eps=None), TypeError, "^rms_norm: eps must be a number, got None"),
    (lambda: mg.linear(ONES, 2.0), ValueError, r"^linear: x of shape .* of \(\)"),
    (lambda: mg.einsum(None, ONES), TypeError, "^einsum: expected an equation .*, got None"),
    (
        lambda: mg.cross_entropy(ONES, [0, 1], ignore_index=0.5),
        TypeError,
        r"^cross_entropy: ignore_index must be an integer, got 0\.5",
    ),
    (
        lambda: mg.cross_entropy(ONES, [0, 1], ignore_index=2**63),
        OverflowError,
        "^cross_entropy: ignore_index .* int64",
    ),
    (
        lambda: mg.attention(*[mg.ones((1, 2, 3, 4))] * 3, window=1.5),
        TypeError,
        r"^attention: window must be an integer, got 1\.5",
    ),
    (
        lambda: mg.attention(*[mg.ones((1, 2, 3, 4))] * 3, scale="a"),
        TypeError,
        "^attention: scale must be a number, got 'a'",
    ),
    (lambda: mg.rotary_embedding(mg.ones((2, 4)), 0.5), TypeError, "^rotary_embedding: offset"),
    (lambda: mg.rotary_embedding(mg.ones((2, 4)), base=0), ValueError, "^rotary_embedding: base"),
    *[
        (partial(getattr(mg, op), *arguments, axis=axis), TypeError, f"^{op}: axis must be an int")
        for axis in ("0", 0.0, [[0]])
        for op, *arguments in (
            *[(op, ONES) for op in ("all", "any", "max", "mean", "min", "norm", "prod", "std")],
            *[(op, ONES) for op in ("argmax", "argmin", "argsort", "cumsum", "sort", "sum", "var")],
            *[(op, ONES) for op in ("expand_dims", "flip", "log_softmax", "logsumexp", "softmax")],
            *[("squeeze", ONES), ("split", ONES, 2), ("repeat", ONES, 2), ("roll", ONES, 1)],
            *[("concat", [ONES]), ("stack", [ONES]), ("topk", ONES, 1)],
            *[("take_along_axis", ONES, [[0]]), ("scatter_add", ONES, [[0]], ONES)],
        )
    ],
]


@pytest.mark.parametrize("case", range(len(BAD_INPUT)))
def test_bad_input_is_named_and_loses_nothing(case: int) -> None:
    call, kind, message = BAD_INPUT[case]
    with pytest.raises(kind, match=message):
        call()
    assert (mg.ones((2,)) + 1).tolist() == [2, 2]


def test_what_is_like_a_tensor_may_be_one() -> None:
    q = np.random.default_rng(0).standard_normal((1, 2, 3, 4)).astype(np.float32)
    expected = mg.attention(*[mg.tensor(q)] * 3).tolist()
    assert mg.attention(q, q, q).tolist() == expected
    assert mg.linear([[1.0, 2.0]], [[3.0, 4.0]], [5.0]).tolist() == [[16]]
    assert mg.embedding([[1.0], [2.0]], [1, 0]).tolist() == [[2], [1]]
    assert mg.zeros_like([1, 2]).tolist() == mg.full_like([1, 2], 0).tolist() == [0, 0]
    assert mg.tensor([1.0, 2.0])[[]].shape == (0,)
    assert mg.pad(3, 1).item() == 3
    assert [float(x) for x in mg.tensor([1.0, 2.0])] == [1, 2]
    assert mg.full((1,), 2**60 + 1, "int64").item() == 2**60 + 1


def test_every_public_name_is_documented() -> None:
    public = [(n, getattr(mg, n)) for n in mg.__all__]
    public += [(f"Tensor.{n}", v) for n, v in vars(mg.Tensor).items() if not n.startswith("_")]
    slots = set(mg.Tensor.__slots__)
    bare = [
        name
        for name, value in public
        if (callable(value) or isinstance(value, property))
        and name.removeprefix("Tensor.") not in slots
        and not value.__doc__
    ]
    assert bare == []


def test_missing_kernel_says_where_one_is() -> None:
    x = mg.ones((2,))
    with mg.use_kernels("cu"), pytest.raises(mg.KernelNotFound, match=r"exp: .*native and ref"):
        mg.exp(x)
    with mg.use_kernels("tl"), pytest.raises(mg.KernelNotFound, match="add"):
        x + x


def test_float64_second_derivative_of_fused_attention_is_refused() -> None:
    q = mg.randn((1, 1, 3, 4)).requires_grad_()
    out = mg.attention(q, q, q).sum()
    with pytest.raises(NotImplementedError, match="composed"):
        mg.grad(out, q, create_graph=True)


def test_fork_after_threads_ran() -> None:
    code = """
import os, minigrad as mg
x = mg.randn((512, 512))
before = (x @ x).numpy().copy()
pid = os.fork()
if pid == 0:
    ok = ((x @ x).numpy() == before).all()
    os._exit(0 if ok else 1)
print(os.waitpid(pid, 0)[1])
"""
    assert run_python(code, MINIGRAD_NUM_THREADS="2") == "0"


def test_import_brings_in_nothing_heavy() -> None:
    heavy = ("torch", "cupy", "triton", "matplotlib")
    code = f"import sys, minigrad; print([m for m in {heavy} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_without_native_kernels_the_references_run() -> None:
    """No compiler and no wheel: importing works, says so once, and a GPT trains."""
    code = (
        "import sys, warnings\n"
        "sys.modules['minigrad._core'] = None\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    import minigrad as mg\n"
        "from minigrad.models import GPT, GPTConfig\n"
        "model = GPT(GPTConfig(vocab_size=5, seq_len=4, n_layers=1, n_heads=1, dim=4))\n"
        "optimizer = mg.optim.AdamW(model.parameters())\n"
        "with mg.profile() as p:\n"
        "    model.loss(mg.tensor([[1, 2]]), mg.tensor([[2, 3]])).backward()\n"
        "    optimizer.step()\n"
        "assert 'attention_bwd' in p.table()\n"
        "print(mg.levels(), len([w for w in said if 'C++ compiler' in str(w.message)]))\n"
    )
    assert run_python(code) == "[] 1"


def test_forced_level_that_cannot_run() -> None:
    code = """
try:
    import minigrad
except ValueError as error:
    print(error)
"""
    assert "MINIGRAD_ISA=zx81 cannot run here" in run_python(code, MINIGRAD_ISA="zx81")
