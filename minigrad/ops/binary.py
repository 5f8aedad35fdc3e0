"""Arithmetic of two operands."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minigrad import dispatch, dtypes, recording
from minigrad.autograd import Function, Node, is_anomaly_enabled
from minigrad.dispatch import launch_made
from minigrad.ops.creation import cast, zeros
from minigrad.ops.operands import alike, arithmetic, binary_reference, elementwise_cost, unbroadcast
from minigrad.ops.select import eq, where
from minigrad.ops.unary import log, sqrt
from minigrad.tensor import Tensor, TensorLike

__all__ = ["add", "div", "floor_divide", "mul", "pow", "remainder", "sub"]


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


class FloorDivide(Binary):
    kernel = "floor_divide"

    @staticmethod
    def forward(ctx: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.shapes = a.shape, b.shape
        return launch_made("floor_divide", a, b, None)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        need_a, need_b = ctx.needs_input_grad
        a, b = ctx.shapes
        return zeros(a, g.dtype) if need_a else None, zeros(b, g.dtype) if need_b else None


class Remainder(Binary):
    kernel = "remainder"

    @staticmethod
    def forward(ctx: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.save_inputs(0, 1)
        return launch_made("remainder", a, b, None)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        need_a, need_b = ctx.needs_input_grad
        a, b = ctx.saved
        return (
            unbroadcast(g, a.shape) if need_a else None,
            unbroadcast(-(g * floor_divide(a, b)), b.shape) if need_b else None,
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


def add(a: TensorLike, b: TensorLike) -> Tensor:
    """a + b, broadcast."""
    if not alike(a, b):
        a, b = arithmetic("add", a, b)
    return Add.apply(a, b)


def sub(a: TensorLike, b: TensorLike) -> Tensor:
    """a - b, broadcast."""
    if not alike(a, b):
        a, b = arithmetic("sub", a, b)
    return Sub.apply(a, b)


def mul(a: TensorLike, b: TensorLike) -> Tensor:
    """a · b elementwise, broadcast."""
    if not alike(a, b):
        a, b = arithmetic("mul", a, b)
    return Mul.apply(a, b)


def div(a: TensorLike, b: TensorLike) -> Tensor:
    """a / b, broadcast; integers give float32."""
    a, b = arithmetic("div", a, b)
    if not dtypes.is_floating(a.dtype):
        a, b = cast(a, dtypes.float32), cast(b, dtypes.float32)
    return Div.apply(a, b)


def _divisible(op: str, a: TensorLike, b: TensorLike) -> tuple[Tensor, Tensor]:
    """Operands of a division without a fraction: no integer by zero."""
    is_number = b.__class__ is int  # which no replay changes
    a, b = arithmetic(op, a, b)
    if not dtypes.is_floating(b.dtype):
        if not is_number:
            recording.refuse(f"{op} of integers", "convert them to float32, or divide by a number")
        if not np.all(b._array):
            raise ZeroDivisionError(
                f"{op}: an integer divided by zero; convert one side to float32, where it gives "
                "infinity or NaN"
            )
    return a, b


def floor_divide(a: TensorLike, b: TensorLike) -> Tensor:
    """a // b, the greatest integer not above a / b, broadcast; of numbers with a fraction, too.
    Its gradients are 0."""
    return FloorDivide.apply(*_divisible("floor_divide", a, b))


def remainder(a: TensorLike, b: TensorLike) -> Tensor:
    """a % b = a - (a // b) · b, broadcast, with the sign of b. The gradient in b is -(a // b)."""
    return Remainder.apply(*_divisible("remainder", a, b))


def pow(a: TensorLike, b: TensorLike) -> Tensor:
    """a to the power b, broadcast. Whole exponents 2 and 3, and 0.5, run as products and roots."""
    if a.__class__ is Tensor and b.__class__ in (int, float) and dtypes.is_floating(a.dtype):
        if b == 2:
            return mul(a, a)
        if b == 3:
            return mul(mul(a, a), a)
        if b == 0.5:
            return sqrt(a)
    a, b = arithmetic("pow", a, b)
    if not dtypes.is_floating(b.dtype) and b.size:
        recording.refuse("pow of integers", "convert them to float32, or multiply")
        if int(np.min(b._array)) < 0:
            raise ValueError("pow: integers to negative powers; convert one side to float32")
    return Pow.apply(a, b)


# ---- references and costs ----

REFERENCE: dict[str, Callable[..., None]] = {
    "add": binary_reference(np.add),
    "sub": binary_reference(np.subtract),
    "mul": binary_reference(np.multiply),
    "div": binary_reference(np.true_divide),
    "floor_divide": binary_reference(np.floor_divide),
    "remainder": binary_reference(np.remainder),
    "pow": binary_reference(np.power),
}
COST = dict.fromkeys(REFERENCE, elementwise_cost)
