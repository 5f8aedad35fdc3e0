"""How far results may lie from the exact ones: every bound that is promised, on every level.

References are float64, and written so that nothing cancels in them. Inputs are float32 (or half)
values, exactly as the kernel sees them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from cases import ELEMENTWISE, Case, attention, normed, sigmoid, softmax

import minigrad as mg

Array = np.ndarray

# What is promised, in units in the last place (ULP) of the exact result unless said otherwise.
# Results that are denormal are flushed to zero, on the way, too: 2^-126 is allowed on top of all.
LEAST = 2.0**-126
ELEMENTWISE_ULPS = 4.0
EXACT = ("neg", "abs", "sign", "floor", "ceil", "round", "relu", "maximum", "minimum")
GELU_TAIL_ULPS = 8.0  # below -1
GELU_TANH_TAIL = 3.0  # below -1, by tanh: so many more for each unit of its argument
BFLOAT16_ULPS = 0.53  # of bfloat16, down to 2^-122
GELU_SLOPE = 2.0**-14  # beyond the rounding to bfloat16, absolute
LOG_SOFTMAX_ULPS = 2.0  # of the greatest of |result|, |maximum| and 1
LAYER_NORM = 2e-6  # absolute
LAYER_NORM_GRADIENT = 5e-6
ATTENTION = {"forward": 2e-6, "gradient": 5e-6}  # float32, absolute
ATTENTION_HALF = 1.35  # times the error of rounding the exact output
ATTENTION_HALF_GRADIENT = 1.7  # the same for the gradients; weights rounded as well cost most of it
SAME_PRECISION = (2.0, 4.0)  # times the error of the composed form in that dtype, plus ulps

LARGEST = float(np.finfo(np.float32).max)
SPACING = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


def ulp(value: Array, dtype: str = "float32") -> Array:
    """The unit in the last place of `value` in a dtype (of the least normal float32 below that)."""
    return 2.0 ** np.floor(np.log2(np.maximum(np.abs(value), LEAST))) * SPACING[dtype]


def errors(got: Any, exact: Array) -> Array:
    """|got - exact| where they are finite; infinite where one is NaN or infinite and the other not.

    What lies beyond float32 may be the largest number or infinity.
    """
    out = got.numpy().astype(np.float64)
    with np.errstate(invalid="ignore"):
        beyond = np.abs(exact) > LARGEST
        fits = np.isnan(exact) & np.isnan(out)
        fits |= beyond & (np.abs(out) >= LARGEST) & (np.sign(out) == np.sign(exact))
        off = np.where(fits, 0.0, np.abs(out - exact))
    return np.where(np.isnan(off) | (beyond & ~fits), np.inf, off)


def assert_ulps(got: Any, exact: Array, bound: Array | float, inputs: Array) -> None:
    with np.errstate(invalid="ignore"):
        excess = errors(got, exact) - bound * ulp(np.where(np.isfinite(exact), exact, 0.0)) - LEAST
    worst = int(np.argmax(excess))
    assert excess.flat[worst] <= 0, (
        f"at {inputs.reshape(-1, exact.size)[:, worst]}: got {got.numpy().flat[worst]!r}, "
        f"exactly {exact.flat[worst]!r}"
    )


@cache
def every_binade(seed: int = 0, n: int = 48) -> Array:
    """float32 of both signs: n random significands for every exponent, its ends included."""
    rng = np.random.default_rng(seed)
    significand = rng.integers(0, 1 << 23, (254, n), dtype=np.uint32)
    significand[:, 0], significand[:, 1] = 0, (1 << 23) - 1
    bits = np.arange(1, 255, dtype=np.uint32)[:, None] << np.uint32(23) | significand
    return np.concatenate([bits.ravel(), bits.ravel() | np.uint32(1 << 31)]).view(np.float32)


@cache
def samples() -> Array:
    """Every binade, denser where functions bend, whole and half numbers, and special values."""
    rng = np.random.default_rng(1)
    whole = np.concatenate([np.arange(-70, 70), 2.0 ** np.arange(6, 25)[:, None].ravel()])
    near_whole = np.concatenate([whole + step for step in (-1, -0.5, 0, 0.5, 1)])
    zeros = np.float32(np.arange(1, 170) * (np.pi / 2))  # of sine and cosine, nearly
    return np.concatenate(
        [
            every_binade(),
            rng.uniform(-110, 110, 40000),
            rng.uniform(-4, 4, 40000),
            rng.uniform(-(2.0**23), 2.0**23, 4000).round(1),
            near_whole,
            *(zeros + np.float32(step) * np.spacing(zeros) for step in range(-2, 3)),
            [0.0, -0.0, np.inf, -np.inf, np.nan],
        ],
    ).astype(np.float32)


_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def gelu_tanh_argument(x: Array) -> Array:
    return 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)


def at_minus_infinity(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """x times something that vanishes faster than x grows: 0, where the formula says -inf · 0."""
    return lambda x: np.where(x == -np.inf, 0.0, function(x))


# Where the formula in the table of cases loses digits (or overflows) far from 0.
REFERENCE = {
    "gelu": at_minus_infinity(lambda x: 0.5 * x * _erfc(-x * math.sqrt(0.5))),
    "gelu_tanh": at_minus_infinity(lambda x: x * sigmoid(gelu_tanh_argument(x))),
    "silu": at_minus_infinity(lambda x: x * sigmoid(x)),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
}
UNARY = [c for c in ELEMENTWISE if c.shapes == ((3, 37),)]
BINARY = [c for c in ELEMENTWISE if c.shapes == ((4, 1, 5), (3, 5))]


def ids(case: Case) -> str:
    return case.name


@cache
def every_bfloat16() -> Array:
    """All of them but the denormal ones, as float32."""
    x = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    return np.append(x[(np.abs(x) >= LEAST) | (x == 0)], np.float32(np.nan))


@cache
def exact_unary(name: str, inputs: Callable[[], Array] = samples) -> Array:
    case = next(c for c in UNARY if c.name == name)
    with np.errstate(all="ignore"):
        return REFERENCE.get(name, case.reference)(inputs().astype(np.float64))


def promised_ulps(name: str, x: Array) -> Array | float:
    if name in EXACT:
        return 0.0
    if name not in ("gelu", "gelu_tanh"):
        return ELEMENTWISE_ULPS
    with np.errstate(all="ignore"):
        wide = np.clip(np.nan_to_num(x.astype(np.float64)), -40, 40)
        tail = GELU_TAIL_ULPS + (
            GELU_TANH_TAIL * np.abs(gelu_tanh_argument(wide)) if name == "gelu_tanh" else 0.0
        )
    return np.where(x < -1, tail, ELEMENTWISE_ULPS)


def test_all_functions_of_one_and_two_variables_are_here() -> None:
    assert len(UNARY) == 25
    assert len(BINARY) == 9


@pytest.mark.parametrize("case", UNARY, ids=ids)
def test_function_within_its_ulps_over_all_binades(case: Case, level: str) -> None:
    x = samples()
    assert_ulps(case.op(mg.tensor(x)), exact_unary(case.name), promised_ulps(case.name, x), x)


@pytest.mark.parametrize("case", BINARY, ids=ids)
def test_arithmetic_within_its_ulps_over_all_binades(case: Case, level: str) -> None:
    rng = np.random.default_rng(2)
    specials = np.array([0.0, 1.0, -1.0, 2.5, np.inf, -np.inf, np.nan], np.float32)
    a = np.concatenate([rng.permutation(every_binade()), np.repeat(specials, 7)])
    b = np.concatenate([rng.permutation(every_binade()), np.tile(specials, 7)])
    if case.name == "pow":  # most powers of those are 0 or infinite
        b[: a.size // 2] = rng.uniform(-30, 30, a.size // 2)
        a[: a.size // 2] = np.exp(rng.uniform(-3, 3, a.size // 2))
    with np.errstate(all="ignore"):
        exact = case.reference(a.astype(np.float64), b.astype(np.float64))
    bound = 0.0 if case.name in EXACT else 1.0 if case.name == "pow" else 0.5
    assert_ulps(case.op(mg.tensor(a), mg.tensor(b)), exact, bound, np.stack([a, b]))


@pytest.mark.parametrize("case", UNARY, ids=ids)
def test_function_of_every_bfloat16_within_its_rounding(case: Case, level: str) -> None:
    x, exact = every_bfloat16(), exact_unary(case.name, every_bfloat16)
    got = case.op(mg.tensor(x).to("bfloat16")).to("float32")
    size = ulp(np.where(np.isfinite(exact), exact, 0.0), "bfloat16")
    off = errors(got, exact) - 2.0**-122
    assert (off <= BFLOAT16_ULPS * size).all(), f"at {x[np.argmax(off / size)]}"


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_slope_of_gelu_at_every_bfloat16(name: str, level: str) -> None:
    x = every_bfloat16()
    given = mg.tensor(x).to("bfloat16")
    given.requires_grad = True
    y = next(c for c in UNARY if c.name == name).op(given)
    (slope,) = mg.grad(y, given, mg.ones(x.shape).to("bfloat16"))
    near = np.clip(x.astype(np.float64), -16, 16)
    if name == "gelu":
        density = np.exp(-(near**2) / 2) / math.sqrt(2 * math.pi)
        exact = 0.5 * _erfc(-near * math.sqrt(0.5)) + near * density
    else:
        v = gelu_tanh_argument(near)
        inner = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * near**2)
        exact = sigmoid(v) * (1 + near * sigmoid(-v) * inner)
    bound = 0.5 * ulp(np.nan_to_num(exact), "bfloat16") + GELU_SLOPE
    assert (errors(slope.to("float32"), exact) <= bound).all()


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_tail_keeps_its_digits_down_to_the_least_normal(name: str, level: str) -> None:
    """Relative errors alone, with nothing allowed for flushing."""
    x = np.linspace(-95, -1, 400_001 if name == "silu" else 40_001).astype(np.float32)
    if name != "silu":
        x = x[x > -14.5]
    wide = x.astype(np.float64)
    exact = REFERENCE[name](wide)
    x, exact = x[np.abs(exact) > 2 * LEAST], exact[np.abs(exact) > 2 * LEAST]
    got = next(c for c in UNARY if c.name == name).op(mg.tensor(x)).numpy()
    off = np.abs(got - exact) / ulp(exact)
    assert (off <= promised_ulps(name, x)).all(), f"{off.max()} at {x[off.argmax()]}"


# ---- rows ----


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1e3, 1e4])
@pytest.mark.parametrize("width", [7, 1024])
def test_softmax_error_grows_with_the_distance_from_the_maximum_only(
    width: int, scale: float, level: str
) -> None:
    x = (np.random.default_rng(3).standard_normal((64, width)) * scale).astype(np.float32)
    wide = x.astype(np.float64)
    exact = softmax(wide)
    got = mg.softmax(mg.tensor(x)).numpy()
    distance = wide.max(-1, keepdims=True) - wide
    bound = exact * (8 + 2 * distance) * 2.0**-24 + LEAST
    assert (np.abs(got - exact) <= bound).all()


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e4])
@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_logarithms_of_softmax_within_two_ulps(scale: float, shift: float, level: str) -> None:
    rng = np.random.default_rng(4)
    for width in (1, 5, 1024, 50_257):
        x = (rng.standard_normal((8, width)) * scale + shift).astype(np.float32)
        wide = x.astype(np.float64)
        top = wide.max(-1, keepdims=True)
        total = np.log(np.exp(wide - top).sum(-1, keepdims=True)) + top
        for got, exact in (
            (mg.log_softmax(mg.tensor(x)), wide - total),
            (mg.logsumexp(mg.tensor(x), -1, keepdims=True), total),
        ):
            size = np.maximum(np.maximum(np.abs(exact), np.abs(top)), 1)
            assert (np.abs(got.numpy() - exact) <= LOG_SOFTMAX_ULPS * ulp(size)).all()


@pytest.mark.parametrize("ratio", [0.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("width", [33, 768, 4096])
def test_layer_norm_keeps_its_accuracy_far_from_zero(width: int, ratio: float, level: str) -> None:
    rng = np.random.default_rng(5)
    data = (rng.standard_normal((16, width)) + ratio).astype(np.float32)
    grad = rng.standard_normal(data.shape).astype(np.float32)
    x = mg.tensor(data, requires_grad=True)
    y = mg.layer_norm(x)
    y.backward(mg.tensor(grad))
    wide = data.astype(np.float64)
    exact = normed(wide, 1e-5)
    assert np.abs(y.numpy() - exact).max() <= LAYER_NORM
    scale = 1 / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    inner = grad - grad.mean(-1, keepdims=True) - exact * (grad * exact).mean(-1, keepdims=True)
    assert np.abs(x.grad.numpy() - scale * inner).max() <= LAYER_NORM_GRADIENT


# ---- attention: causal, 64 features, 512 tokens, N(0, 1) ----


@cache
def attention_inputs(dtype: str) -> list[Array]:
    """q, k, v and the output's gradient (1, 2, 512, 64), rounded to dtype, in float64."""
    rng = np.random.default_rng(6)
    given = [rng.standard_normal((1, 2, 512, 64)).astype(np.float32) for _ in range(4)]
    return [mg.tensor(x).to(dtype).to("float64").numpy() for x in given]


@cache
def exact_attention(dtype: str) -> list[Array]:
    """The output and the gradients in q, k and v."""
    q, k, v, g = attention_inputs(dtype)
    out = attention(q, k, v, causal=True)
    scores = q @ np.swapaxes(k, -1, -2) / 8
    hidden = np.triu(np.ones((512, 512), bool), 1)
    p = softmax(np.where(hidden, -np.inf, scores))
    d_scores = p * (g @ np.swapaxes(v, -1, -2) - (g * out).sum(-1, keepdims=True)) / 8
    turned = np.swapaxes(d_scores, -1, -2)
    return [out, d_scores @ k, turned @ q, np.swapaxes(p, -1, -2) @ g]


def run_attention(dtype: str, impl: str = "fused") -> list[Array]:
    q, k, v, g = (mg.tensor(x, dtype) for x in attention_inputs(dtype))
    for leaf in (q, k, v):
        leaf.requires_grad_()
    out = mg.attention(q, k, v, causal=True, impl=impl)
    out.backward(g)
    return [t.to("float64").numpy() for t in (out, q.grad, k.grad, v.grad)]


def test_attention_in_float32(level: str) -> None:
    out, *grads = (
        np.abs(got - exact).max()
        for got, exact in zip(run_attention("float32"), exact_attention("float32"), strict=True)
    )
    assert out <= ATTENTION["forward"]
    assert max(grads) <= ATTENTION["gradient"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_in_half_precision_is_close_to_ideal_rounding(dtype: str, level: str) -> None:
    exact = exact_attention(dtype)[0]
    ideal = mg.tensor(exact).to(dtype).to("float64").numpy()
    got = run_attention(dtype)[0]
    off, least = (np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (got, ideal))
    assert off <= ATTENTION_HALF * least


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_attention_in_half_precision(dtype: str, level: str) -> None:
    for got, exact in zip(run_attention(dtype)[1:], exact_attention(dtype)[1:], strict=True):
        ideal = mg.tensor(exact).to(dtype).to("float64").numpy()
        off, least = (np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (got, ideal))
        assert off <= ATTENTION_HALF_GRADIENT * least


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_in_half_precision_beats_the_composed_form(dtype: str, level: str) -> None:
    factor, ulps = SAME_PRECISION
    results = zip(
        run_attention(dtype), run_attention(dtype, "composed"), exact_attention(dtype), strict=True
    )
    for got, composed, exact in results:
        floor = ulps * ulp(np.abs(exact).max(), dtype)
        assert np.abs(got - exact).max() <= factor * np.abs(composed - exact).max() + floor


# ---- sums in half precision ----

HALF_SUMS: dict[str, tuple[Callable[[Any], Any], float]] = {
    # of 1000 ones (a sequential bfloat16 sum stops at 256, one of float16 at 2048)
    "sum": (lambda x: mg.sum(x), 1000),
    "sum_columns": (lambda x: mg.sum(x.reshape(500, 2), 0)[0], 500),
    "mean": (lambda x: mg.mean(x), 1),
    "norm": (lambda x: mg.norm(x), math.sqrt(1000)),
    "cumsum": (lambda x: mg.cumsum(x, 0)[-1], 1000),
    "matmul": (lambda x: x @ x, 1000),
    "linear": (lambda x: mg.linear(x.reshape(1, -1), x.reshape(1, -1))[0, 0], 1000),
    "einsum": (lambda x: mg.einsum("i,i", x, x), 1000),
    "softmax": (lambda x: mg.softmax(x)[-1], 1e-3),
    "logsumexp": (lambda x: mg.logsumexp(x), 1 + math.log(1000)),
    "scatter_add": (
        lambda x: mg.scatter_add(mg.zeros((1,), x.dtype), np.zeros(1000, int), x, 0)[0],
        1000,
    ),
    "layer_norm": (lambda x: mg.layer_norm(mg.concat([x, x * 3]))[0], -1),
    "rms_norm": (lambda x: mg.rms_norm(x)[0], 1),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", HALF_SUMS)
def test_half_precision_sums_run_in_float32(name: str, dtype: str, level: str) -> None:
    function, exact = HALF_SUMS[name]
    got = function(mg.ones((1000,), dtype))
    assert got.dtype.name == dtype
    assert abs(float(got.item()) - exact) <= 0.51 * ulp(np.float64(exact), dtype) + 1e-5


def test_half_precision_sums_of_gradients_run_in_float32(level: str) -> None:
    for dtype in ("bfloat16", "float16"):
        ones = mg.ones((1000, 3), dtype)
        bias, table, scale = (mg.ones(s, dtype, requires_grad=True) for s in ((3,), (2, 3), (3,)))
        (ones + bias).backward(ones)
        mg.embedding(table, mg.tensor(np.zeros(1000, np.int64))).backward(ones)
        x = mg.tensor(np.tile([-1.0, 0.0, 1.0], (1000, 1)), dtype)
        mg.layer_norm(x, scale, bias).backward(ones)
        step = ulp(np.float64(1000), dtype) / 2
        assert np.abs(table.grad.to("float64").numpy() - [[1000] * 3, [0] * 3]).max() <= step
        assert np.abs(bias.grad.to("float64").numpy() - 2000).max() <= 2 * ulp(
            np.float64(2000), dtype
        )
        edge = 1000 * math.sqrt(1.5)
        assert np.abs(scale.grad.to("float64").numpy() - [-edge, 0, edge]).max() <= 2.1 * step


def test_half_precision_means_and_norms_do_not_overflow_on_the_way(level: str) -> None:
    x = mg.full((1000,), 300.0, "float16")
    x[0] = -300.0
    exact = x.to("float64")
    for function in (mg.mean, mg.var, mg.std, mg.norm):
        got, want = float(function(x).item()), float(function(exact).item())
        if want < 65504:
            assert got == pytest.approx(want, rel=1e-3), function.__name__
