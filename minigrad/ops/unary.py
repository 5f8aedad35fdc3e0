"""Elementwise functions of one variable, activations among them.

The native loops come from one table, `csrc/elementwise.h`. A new function of one variable is a line
there, a line in `_UNARY` here with its public function, and a case in `tests/cases.py`. Gradients
run as one kernel (`tanh_bwd`); where a second derivative is asked for, they are composed from
`derivative`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minigrad import dtypes
from minigrad.autograd import Function, Node, is_grad_enabled
from minigrad.dispatch import launch_made
from minigrad.ops.creation import as_tensor, cast, constant, zeros_like
from minigrad.ops.operands import elementwise_cost, wide
from minigrad.ops.select import eq, lt, minimum, where
from minigrad.tensor import Tensor, TensorLike

__all__ = [
    "abs",
    "ceil",
    "cos",
    "elu",
    "erf",
    "exp",
    "expm1",
    "floor",
    "gelu",
    "isfinite",
    "leaky_relu",
    "log",
    "log1p",
    "neg",
    "relu",
    "round",
    "rsqrt",
    "selu",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softplus",
    "sqrt",
    "tanh",
]


def _sigmoid_ref(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, 1, np.exp(np.minimum(x, 0))) / (1 + np.exp(-np.abs(x)))


_erf_ref = np.vectorize(math.erf, otypes=[np.float64])
_erfc_ref = np.vectorize(math.erfc, otypes=[np.float64])
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_GELU_TANH = math.sqrt(2 / math.pi)


def _gelu_tanh_ref(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(_GELU_TANH * (x + 0.044715 * x**3)))


def _gelu_derivative(x: Tensor, y: Tensor, p: float) -> Tensor:
    density = exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return (erf(x * math.sqrt(0.5)) + 1) * 0.5 + x * density


def _gelu_tanh_derivative(x: Tensor, y: Tensor, p: float) -> Tensor:
    t = tanh((x + x * x * x * 0.044715) * _GELU_TANH)
    inner = (x * x * (3 * 0.044715) + 1) * _GELU_TANH
    return (t + 1) * 0.5 + x * (1 - t * t) * inner * 0.5


def _step(x: Tensor, above: TensorLike, below: TensorLike) -> Tensor:
    return where(x > 0, above, below)


@dataclass(frozen=True)
class _Unary:
    """value(x, p): the definition, in NumPy. derivative(x, y, p): dy/dx in tensors, y the
    result."""

    value: Callable[[np.ndarray, float], np.ndarray]
    derivative: Callable[[Tensor, Tensor, float], Tensor] | None = None  # None: zero everywhere
    integers: bool = False


_UNARY: dict[str, _Unary] = {
    "neg": _Unary(lambda x, p: -x, lambda x, y, p: zeros_like(x) - 1, integers=True),
    "abs": _Unary(lambda x, p: np.abs(x), lambda x, y, p: sign(x), integers=True),
    "sign": _Unary(lambda x, p: np.sign(x), integers=True),
    "exp": _Unary(lambda x, p: np.exp(x), lambda x, y, p: y),
    "expm1": _Unary(lambda x, p: np.expm1(x), lambda x, y, p: y + 1),
    "log": _Unary(lambda x, p: np.log(x), lambda x, y, p: 1 / x),
    "log1p": _Unary(lambda x, p: np.log1p(x), lambda x, y, p: 1 / (x + 1)),
    "sqrt": _Unary(lambda x, p: np.sqrt(x), lambda x, y, p: 0.5 / y),
    "rsqrt": _Unary(lambda x, p: 1 / np.sqrt(x), lambda x, y, p: y * y * y * -0.5),
    "sin": _Unary(lambda x, p: np.sin(x), lambda x, y, p: cos(x)),
    "cos": _Unary(lambda x, p: np.cos(x), lambda x, y, p: -sin(x)),
    "erf": _Unary(
        lambda x, p: _erf_ref(x), lambda x, y, p: exp(-(x * x)) * (2 / math.sqrt(math.pi))
    ),
    "floor": _Unary(lambda x, p: np.floor(x)),
    "ceil": _Unary(lambda x, p: np.ceil(x)),
    "round": _Unary(lambda x, p: np.round(x)),
    "tanh": _Unary(lambda x, p: np.tanh(x), lambda x, y, p: 1 - y * y),
    "sigmoid": _Unary(lambda x, p: _sigmoid_ref(x), lambda x, y, p: y * (1 - y)),
    "softplus": _Unary(
        lambda x, p: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
        lambda x, y, p: sigmoid(x),
    ),
    "silu": _Unary(
        lambda x, p: x * _sigmoid_ref(x),
        lambda x, y, p: sigmoid(x) * (1 + x * (1 - sigmoid(x))),
    ),
    "relu": _Unary(lambda x, p: np.maximum(x, 0), lambda x, y, p: _step(x, 1.0, 0.0)),
    "leaky_relu": _Unary(lambda x, p: np.where(x > 0, x, p * x), lambda x, y, p: _step(x, 1.0, p)),
    "elu": _Unary(
        lambda x, p: np.where(x > 0, x, p * np.expm1(np.minimum(x, 0))),
        lambda x, y, p: _step(x, 1.0, exp(minimum(x, 0.0)) * p),
    ),
    "selu": _Unary(
        lambda x, p: _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * np.expm1(np.minimum(x, 0))),
        lambda x, y, p: _step(x, _SELU_SCALE, exp(minimum(x, 0.0)) * (_SELU_SCALE * _SELU_ALPHA)),
    ),
    "gelu": _Unary(lambda x, p: 0.5 * x * _erfc_ref(-x * math.sqrt(0.5)), _gelu_derivative),
    "gelu_tanh": _Unary(lambda x, p: _gelu_tanh_ref(x), _gelu_tanh_derivative),
}


class Unary(Function):
    @staticmethod
    def forward(ctx: Node, x: np.ndarray, kernel: str, p: float = 0.0) -> np.ndarray:
        ctx.kernel, ctx.p = kernel, p
        ctx.save_inputs(0)
        ctx.save_outputs(0)
        return launch_made(kernel, x, None, p)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        x, y = ctx.saved
        derivative = _UNARY[ctx.kernel].derivative
        if derivative is None:
            return zeros_like(x)
        if is_grad_enabled():
            return g * derivative(x, y, ctx.p)
        return Tensor._wrap(
            launch_made(f"{ctx.kernel}_bwd", g._array, x._array, y._array, None, ctx.p)
        )


def derivative_of(kernel: str, x: Tensor) -> Tensor:
    """d kernel(x) / dx, composed of differentiable operations."""
    derivative = _UNARY[kernel].derivative
    assert derivative is not None
    return derivative(x, x, 0.0)


def _unary(kernel: str, x: TensorLike, p: float = 0.0) -> Tensor:
    x = as_tensor(x)
    if not dtypes.is_floating(x.dtype) and not _UNARY[kernel].integers:
        x = cast(x, dtypes.float32)
    return Unary.apply(x, kernel=kernel, p=p)


def neg(x: TensorLike) -> Tensor:
    """-x."""
    return _unary("neg", x)


def abs(x: TensorLike) -> Tensor:
    """|x|; its gradient at 0 is 0."""
    return _unary("abs", x)


def sign(x: TensorLike) -> Tensor:
    """-1, 0 or 1."""
    return _unary("sign", x)


def exp(x: TensorLike) -> Tensor:
    """e^x."""
    return _unary("exp", x)


def expm1(x: TensorLike) -> Tensor:
    """e^x - 1, accurate near 0."""
    return _unary("expm1", x)


def log(x: TensorLike) -> Tensor:
    """The natural logarithm."""
    return _unary("log", x)


def log1p(x: TensorLike) -> Tensor:
    """log(1 + x), accurate near 0."""
    return _unary("log1p", x)


def sqrt(x: TensorLike) -> Tensor:
    """The square root."""
    return _unary("sqrt", x)


def rsqrt(x: TensorLike) -> Tensor:
    """1 / sqrt(x)."""
    return _unary("rsqrt", x)


def sin(x: TensorLike) -> Tensor:
    """The sine of x in radians."""
    return _unary("sin", x)


def cos(x: TensorLike) -> Tensor:
    """The cosine of x in radians."""
    return _unary("cos", x)


def erf(x: TensorLike) -> Tensor:
    """The error function."""
    return _unary("erf", x)


def floor(x: TensorLike) -> Tensor:
    """The greatest integer not above x."""
    return _unary("floor", x)


def ceil(x: TensorLike) -> Tensor:
    """The least integer not below x."""
    return _unary("ceil", x)


def round(x: TensorLike) -> Tensor:
    """The nearest integer, halves to even."""
    return _unary("round", x)


def tanh(x: TensorLike) -> Tensor:
    """The hyperbolic tangent."""
    return _unary("tanh", x)


def sigmoid(x: TensorLike) -> Tensor:
    """1 / (1 + e^-x)."""
    return _unary("sigmoid", x)


def softplus(x: TensorLike) -> Tensor:
    """log(1 + e^x)."""
    return _unary("softplus", x)


def silu(x: TensorLike) -> Tensor:
    """x · sigmoid(x) (Elfwing et al. 2017)."""
    return _unary("silu", x)


def relu(x: TensorLike) -> Tensor:
    """max(x, 0)."""
    return _unary("relu", x)


def leaky_relu(x: TensorLike, negative_slope: float = 0.01) -> Tensor:
    """x where positive, negative_slope · x elsewhere (Maas et al. 2013)."""
    return _unary("leaky_relu", x, negative_slope)


def elu(x: TensorLike, alpha: float = 1.0) -> Tensor:
    """x where positive, alpha · (e^x - 1) elsewhere (Clevert et al. 2015)."""
    return _unary("elu", x, alpha)


def selu(x: TensorLike) -> Tensor:
    """The self-normalising scaled ELU (Klambauer et al. 2017)."""
    return _unary("selu", x)


def gelu(x: TensorLike, approximate: str = "none") -> Tensor:
    """x · Φ(x) (Hendrycks and Gimpel 2016); `approximate="tanh"` for the form that GPT-2 uses."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return _unary("gelu_tanh" if approximate == "tanh" else "gelu", x)


def isfinite(x: TensorLike) -> Tensor:
    """Neither infinite nor NaN (bool)."""
    x = as_tensor(x)
    if not dtypes.is_floating(x.dtype):
        return eq(x, x)
    return lt(abs(x.detach()), math.inf)


# ---- references and costs ----


def _unary_ref(entry: _Unary) -> Callable[..., None]:
    def run(x: np.ndarray, out: np.ndarray, p: float) -> None:
        with np.errstate(all="ignore"):
            out[...] = entry.value(wide(x), p).astype(out.dtype)

    return run


def _unary_bwd_ref(entry: _Unary) -> Callable[..., None]:
    def run(g: np.ndarray, x: np.ndarray, y: np.ndarray, out: np.ndarray, p: float) -> None:
        if entry.derivative is None:
            out[...] = 0
            return
        with np.errstate(all="ignore"):
            slope = entry.derivative(constant(x), constant(y), p)
            out[...] = (wide(g) * wide(slope._array)).astype(out.dtype)

    return run


REFERENCE: dict[str, Callable[..., None]] = {
    **{name: _unary_ref(entry) for name, entry in _UNARY.items()},
    **{f"{name}_bwd": _unary_bwd_ref(entry) for name, entry in _UNARY.items()},
}
COST = dict.fromkeys(REFERENCE, elementwise_cost)
