"""Elementwise operations: arithmetic, comparisons, functions and activations.

The native loops come from one table, `csrc/elementwise.h`. A new function of one variable is a line
there, a line in `_UNARY` here with its public function, and a case in `tests/cases.py`. Gradients
run as one kernel (`tanh_bwd`); where a second derivative is asked for, they are composed from
`derivative`.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad import dispatch, dtypes, recording
from minigrad.autograd import Function, Node, is_anomaly_enabled, is_grad_enabled
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch, launch_made
from minigrad.ops.creation import as_tensor, cast, constant, zeros_like
from minigrad.shapes import broadcast_shape
from minigrad.storage import device_away
from minigrad.tensor import Tensor, TensorLike

__all__ = [
    "abs",
    "add",
    "ceil",
    "clip",
    "cos",
    "div",
    "elu",
    "eq",
    "erf",
    "exp",
    "expm1",
    "floor",
    "ge",
    "gelu",
    "gt",
    "isfinite",
    "le",
    "leaky_relu",
    "log",
    "log1p",
    "logical_and",
    "logical_not",
    "logical_or",
    "lt",
    "maximum",
    "minimum",
    "mul",
    "ne",
    "neg",
    "pow",
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
    "sub",
    "tanh",
    "where",
]

# ---- functions of one variable ----


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


# ---- functions of two variables ----


def unbroadcast(g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The gradient of broadcasting `shape` to g's shape: the sum over the axes that were
    repeated."""
    if g._array.shape == shape:
        return g
    extra = g.ndim - len(shape)
    axes = tuple(
        d for d in range(g.ndim) if d < extra or (shape[d - extra] == 1 and g.shape[d] != 1)
    )
    return movement.reshape(reduce.sum(g, axes, keepdims=True), shape)


_BINARY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "pow": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
_COMPARISON: dict[str, Callable[..., Any]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
}


class Binary(Function):
    """A kernel of two operands and nothing else."""

    kernel: str

    @classmethod
    def apply(cls, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        """As every function's; where no gradient can be asked for, the kernel is all there is."""
        if a.requires_grad or b.requires_grad or dispatch.elsewhere or is_anomaly_enabled():
            return super().apply(a, b)
        return Tensor._wrap(launch_made(cls.kernel, a._array, b._array, None))


class Add(Binary):
    kernel = "add"

    @staticmethod
    def forward(ctx: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.shapes = None if a.shape == b.shape else (a.shape, b.shape)
        return launch_made("add", a, b, None)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        need_a, need_b = ctx.needs_input_grad
        if ctx.shapes is None:
            return g if need_a else None, g if need_b else None
        a, b = ctx.shapes
        return unbroadcast(g, a) if need_a else None, unbroadcast(g, b) if need_b else None


class Sub(Binary):
    kernel = "sub"

    @staticmethod
    def forward(ctx: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.shapes = None if a.shape == b.shape else (a.shape, b.shape)
        return launch_made("sub", a, b, None)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        need_a, need_b = ctx.needs_input_grad
        if ctx.shapes is None:
            return g if need_a else None, -g if need_b else None
        a, b = ctx.shapes
        return unbroadcast(g, a) if need_a else None, unbroadcast(-g, b) if need_b else None


class Mul(Binary):
    kernel = "mul"

    @staticmethod
    def forward(ctx: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.save_inputs(0, 1)
        return launch_made("mul", a, b, None)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        need_a, need_b = ctx.needs_input_grad
        a, b = ctx.saved
        return (
            unbroadcast(g * b, a.shape) if need_a else None,
            unbroadcast(g * a, b.shape) if need_b else None,
        )


class Div(Binary):
    kernel = "div"

    @staticmethod
    def forward(ctx: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.save_inputs(0, 1)
        return launch_made("div", a, b, None)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        need_a, need_b = ctx.needs_input_grad
        a, b = ctx.saved
        return (
            unbroadcast(g / b, a.shape) if need_a else None,
            unbroadcast(-(g * a) / (b * b), b.shape) if need_b else None,
        )


class Pow(Function):
    """a^b; the gradient in b counts only where a > 0."""

    @staticmethod
    def forward(ctx: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.save_inputs(0, 1)
        ctx.save_outputs(0)
        return launch_made("pow", a, b, None)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        need_a, need_b = ctx.needs_input_grad
        a, b, y = ctx.saved
        grad_a = grad_b = None
        if need_a:
            # b = 0 gives 0, also at a = 0 where the power alone would be infinite.
            slope = where(eq(b, 0), 0.0, b * pow(a, b - 1))
            grad_a = unbroadcast(g * slope, a.shape)
        if need_b:
            logarithm = log(where(a > 0, a, 1.0))
            grad_b = unbroadcast(g * y * logarithm, b.shape)
        return grad_a, grad_b


class Extreme(Function):
    """maximum and minimum; equal elements share the gradient."""

    @staticmethod
    def forward(ctx: Node, a: np.ndarray, b: np.ndarray, kernel: str) -> np.ndarray:
        ctx.kernel = kernel
        ctx.save_inputs(0, 1)
        return launch_made(kernel, a, b, None)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        need_a, need_b = ctx.needs_input_grad
        a, b = ctx.saved
        wins = gt(a, b) if ctx.kernel == "maximum" else lt(a, b)
        share = cast(wins, g.dtype) + cast(eq(a, b), g.dtype) * 0.5
        return (
            unbroadcast(g * share, a.shape) if need_a else None,
            unbroadcast(g * (1 - share), b.shape) if need_b else None,
        )


def _alike(a: TensorLike, b: TensorLike) -> bool:
    """Whether both are tensors of one dtype, not bool: most operands of arithmetic are."""
    if a.__class__ is not Tensor or b.__class__ is not Tensor:
        return False
    dtype = a._array.dtype
    return dtype is b._array.dtype and dtype is not dtypes.bool_


def _operands(op: str, a: TensorLike, b: TensorLike) -> tuple[Tensor, Tensor]:
    """Both as tensors of the dtype they combine in; a Python number takes the other's."""
    if a.__class__ is Tensor and b.__class__ is Tensor:
        if a.dtype == b.dtype and a.dtype != dtypes.bool_:
            return a, b
    elif a.__class__ is Tensor and b.__class__ in (int, float, bool):
        dtype = dtypes.promote_scalar(a.dtype, b)
        return cast(a, dtype), _constant(b, dtype)
    elif b.__class__ is Tensor and a.__class__ in (int, float, bool):
        dtype = dtypes.promote_scalar(b.dtype, a)
        return _constant(a, dtype), cast(b, dtype)
    a, b = as_tensor(a), as_tensor(b)
    dtype = dtypes.promote(a.dtype, b.dtype)
    return cast(a, dtype), cast(b, dtype)


def _constant(value: bool | int | float, dtype: np.dtype) -> Tensor:
    if not dtypes.is_floating(dtype) and dtype != dtypes.bool_:
        limits = np.iinfo(dtype)
        if not limits.min <= value <= limits.max:
            raise OverflowError(f"the number {value} does not fit into {dtype.name}")
    return Tensor._wrap(np.array(value, dtype))


def _arithmetic(op: str, a: TensorLike, b: TensorLike) -> tuple[Tensor, Tensor]:
    """Operands of arithmetic: truth values count as integers."""
    a, b = _operands(op, a, b)
    if a.dtype == dtypes.bool_:
        return cast(a, dtypes.int64), cast(b, dtypes.int64)
    return a, b


def add(a: TensorLike, b: TensorLike) -> Tensor:
    """a + b, broadcast."""
    if not _alike(a, b):
        a, b = _arithmetic("add", a, b)
    return Add.apply(a, b)


def sub(a: TensorLike, b: TensorLike) -> Tensor:
    """a - b, broadcast."""
    if not _alike(a, b):
        a, b = _arithmetic("sub", a, b)
    return Sub.apply(a, b)


def mul(a: TensorLike, b: TensorLike) -> Tensor:
    """a · b elementwise, broadcast."""
    if not _alike(a, b):
        a, b = _arithmetic("mul", a, b)
    return Mul.apply(a, b)


def div(a: TensorLike, b: TensorLike) -> Tensor:
    """a / b, broadcast; integers give float32."""
    a, b = _arithmetic("div", a, b)
    if not dtypes.is_floating(a.dtype):
        a, b = cast(a, dtypes.float32), cast(b, dtypes.float32)
    return Div.apply(a, b)


def pow(a: TensorLike, b: TensorLike) -> Tensor:
    """a to the power b, broadcast. Whole exponents 2 and 3, and 0.5, run as products and roots."""
    if a.__class__ is Tensor and b.__class__ in (int, float) and dtypes.is_floating(a.dtype):
        if b == 2:
            return mul(a, a)
        if b == 3:
            return mul(mul(a, a), a)
        if b == 0.5:
            return sqrt(a)
    a, b = _arithmetic("pow", a, b)
    if not dtypes.is_floating(b.dtype) and b.size:
        recording.refuse("pow of integers", "convert them to float32, or multiply")
        if int(np.min(b._array)) < 0:
            raise ValueError("pow: integers to negative powers; convert one side to float32")
    return Pow.apply(a, b)


def maximum(a: TensorLike, b: TensorLike) -> Tensor:
    """The larger of a and b elementwise; NaN wins."""
    return Extreme.apply(*_arithmetic("maximum", a, b), kernel="maximum")


def minimum(a: TensorLike, b: TensorLike) -> Tensor:
    """The smaller of a and b elementwise; NaN wins."""
    return Extreme.apply(*_arithmetic("minimum", a, b), kernel="minimum")


def _compare(kernel: str, a: TensorLike, b: TensorLike) -> Tensor:
    left, right = _operands(kernel, a, b)
    device = device_away(kernel, left, right)
    if device is not None:
        with dispatch.device(device):
            return _compare(kernel, left, right)
    out = empty(broadcast_shape(kernel, left.shape, right.shape), dtypes.bool_)
    launch(kernel, left._array, right._array, out)
    return Tensor._wrap(out)


def eq(a: TensorLike, b: TensorLike) -> Tensor:
    """a == b (bool)."""
    return _compare("eq", a, b)


def ne(a: TensorLike, b: TensorLike) -> Tensor:
    """a != b (bool)."""
    return _compare("ne", a, b)


def lt(a: TensorLike, b: TensorLike) -> Tensor:
    """a < b (bool)."""
    return _compare("lt", a, b)


def le(a: TensorLike, b: TensorLike) -> Tensor:
    """a <= b (bool)."""
    return _compare("le", a, b)


def gt(a: TensorLike, b: TensorLike) -> Tensor:
    """a > b (bool)."""
    return _compare("gt", a, b)


def ge(a: TensorLike, b: TensorLike) -> Tensor:
    """a >= b (bool)."""
    return _compare("ge", a, b)


def logical_and(a: TensorLike, b: TensorLike) -> Tensor:
    """Both true (bool); a number is true unless 0."""
    return _compare("logical_and", a, b)


def logical_or(a: TensorLike, b: TensorLike) -> Tensor:
    """At least one true (bool); a number is true unless 0."""
    return _compare("logical_or", a, b)


def logical_not(x: TensorLike) -> Tensor:
    """Not true (bool)."""
    return _compare("eq", x, 0 if as_tensor(x).dtype != dtypes.bool_ else False)


# ---- selection ----


class Where(Function):
    @staticmethod
    def forward(ctx: Node, condition: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.save_inputs(0)
        ctx.shapes = a.shape, b.shape
        return launch_made("where", condition, a, b, None)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        (condition,) = ctx.saved
        _, need_a, need_b = ctx.needs_input_grad
        a, b = ctx.shapes
        return (
            None,
            unbroadcast(where(condition, g, 0.0), a) if need_a else None,
            unbroadcast(where(condition, 0.0, g), b) if need_b else None,
        )


def where(condition: TensorLike, a: TensorLike, b: TensorLike) -> Tensor:
    """a where the condition (bool) holds, b elsewhere; all broadcast."""
    condition = as_tensor(condition)
    if condition.dtype != dtypes.bool_:
        raise TypeError(
            f"where: the condition must be bool, got {condition.dtype.name}; compare it"
        )
    return Where.apply(condition, *_operands("where", a, b))


class Clip(Function):
    @staticmethod
    def forward(ctx: Node, x: np.ndarray, low: float, high: float) -> np.ndarray:
        ctx.bounds = low, high
        ctx.save_inputs(0)
        return launch_made("clip", x, None, low, high)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        (x,) = ctx.saved
        low, high = ctx.bounds
        return where(logical_and(ge(x, low), le(x, high)), g, 0.0)


def clip(x: TensorLike, low: float | None = None, high: float | None = None) -> Tensor:
    """x limited to [low, high]; a bound of None is open. The gradient passes inside, bounds
    included."""
    lowest = -math.inf if low is None else float(low)
    highest = math.inf if high is None else float(high)
    if lowest > highest:
        raise ValueError(f"clip: low {low} is above high {high}")
    return Clip.apply(as_tensor(x), low=lowest, high=highest)


# ---- references and costs, for every name of the tables ----


def _wide(x: np.ndarray) -> np.ndarray:
    """Half types as float32, which NumPy can compute in."""
    return x.astype(np.float32) if x.dtype in (dtypes.float16, dtypes.bfloat16) else x


def _unary_ref(entry: _Unary) -> Callable[..., None]:
    def run(x: np.ndarray, out: np.ndarray, p: float) -> None:
        with np.errstate(all="ignore"):
            out[...] = entry.value(_wide(x), p).astype(out.dtype)

    return run


def _unary_bwd_ref(entry: _Unary) -> Callable[..., None]:
    def run(g: np.ndarray, x: np.ndarray, y: np.ndarray, out: np.ndarray, p: float) -> None:
        if entry.derivative is None:
            out[...] = 0
            return
        with np.errstate(all="ignore"):
            slope = entry.derivative(constant(x), constant(y), p)
            out[...] = (_wide(g) * _wide(slope._array)).astype(out.dtype)

    return run


def _binary_ref(function: Callable[..., Any]) -> Callable[..., None]:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            out[...] = function(_wide(a), _wide(b)).astype(out.dtype)

    return run


def _where_ref(condition: np.ndarray, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    out[...] = np.where(condition, a, b)


def _clip_ref(x: np.ndarray, out: np.ndarray, low: float, high: float) -> None:
    out[...] = np.minimum(np.maximum(_wide(x), low), high).astype(out.dtype)


REFERENCE: dict[str, Callable[..., None]] = {
    **{name: _unary_ref(entry) for name, entry in _UNARY.items()},
    **{f"{name}_bwd": _unary_bwd_ref(entry) for name, entry in _UNARY.items()},
    **{name: _binary_ref(f) for name, f in (_BINARY | _COMPARISON).items()},
    "where": _where_ref,
    "clip": _clip_ref,
}


def _cost(*args: Any) -> Cost:
    arrays = [a for a in args if isinstance(a, np.ndarray)]
    return Cost(nbytes(*arrays), builtins.max((a.size for a in arrays), default=0))


COST = dict.fromkeys(REFERENCE, _cost)

from minigrad.ops import movement, reduce  # noqa: E402  (they build on this file)
