"""Matrix products: matmul and linear.

float32, bfloat16 and float16 products run in our kernel (`csrc/matmul.cpp`), with float32
accumulation in one order whatever the batch. float64 and integer products, which only checks need,
are NumPy's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad import dtypes
from minigrad.autograd import Function, Node, is_grad_enabled
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch, launch_numpy
from minigrad.ops.bias_gelu import bias_gelu, bias_gelu_gradients
from minigrad.ops.binary import mul
from minigrad.ops.creation import as_tensor, cast, contiguous
from minigrad.ops.linear_bf16 import LinearBf16, bf16_gradients, packed_product, packed_weight
from minigrad.ops.movement import reshape, swapaxes
from minigrad.ops.operands import unbroadcast
from minigrad.ops.reduce import Sum
from minigrad.ops.reduce import sum as sum_
from minigrad.ops.unary import derivative_of, relu
from minigrad.precision import active_precision
from minigrad.shapes import broadcast_shape
from minigrad.tensor import Tensor, TensorLike

__all__ = ["linear", "matmul"]


def _matmul_ref(
    a: np.ndarray, b: np.ndarray, bias: np.ndarray | None, out: np.ndarray, accumulate: bool
) -> None:
    total = np.matmul(a.astype(np.float64), b.astype(np.float64))
    if bias is not None:
        total = total + bias
    out[...] = (total + out if accumulate else total).astype(out.dtype)


def _matmul_cost(
    a: np.ndarray,
    b: np.ndarray,
    bias: np.ndarray | None,
    out: np.ndarray,
    accumulate: bool,
) -> Cost:
    return Cost(nbytes(a, b, bias, out), 2 * out.size * a.shape[-1])


REFERENCE = {"matmul": _matmul_ref}
COST = {"matmul": _matmul_cost, "numpy:matmul": _matmul_cost}

_OWN = (dtypes.float32, dtypes.bfloat16, dtypes.float16)


def _numpy_matmul(
    a: np.ndarray, b: np.ndarray, bias: np.ndarray | None, out: np.ndarray, accumulate: bool
) -> None:
    with np.errstate(all="ignore"):
        if accumulate:
            np.add(out, np.matmul(a, b), out=out)
        else:
            np.matmul(a, b, out=out)
        if bias is not None:
            np.add(out, bias, out=out)


def product_into(
    a: np.ndarray,
    b: np.ndarray,
    bias: np.ndarray | None,
    out: np.ndarray,
    accumulate: bool = False,
) -> None:
    """out = a @ b [+ bias] [+ out], on arrays; of float32 and half types in any mixture."""
    if out.dtype in _OWN:
        launch("matmul", a, b, bias, out, accumulate)
    else:
        launch_numpy("matmul", _numpy_matmul, a, b, bias, out, accumulate)


def _product(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """(…, M, K) @ (…, K, N) [+ (N,)], batch dimensions broadcast."""
    batch = broadcast_shape("matmul", a.shape[:-2], b.shape[:-2])
    out = empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    if a.dtype in _OWN and len(batch) > 0:
        a = np.broadcast_to(a, batch + a.shape[-2:])
        b = np.broadcast_to(b, batch + b.shape[-2:])
    product_into(a, b, bias, out)
    return out


class MatMul(Function):
    @staticmethod
    def forward(ctx: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.save_inputs(0, 1)
        return _product(a, b)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        need_a, need_b = ctx.needs_input_grad
        a, b = ctx.saved
        return (
            unbroadcast(matmul(g, swapaxes(b, -1, -2)), a.shape) if need_a else None,
            unbroadcast(matmul(swapaxes(a, -1, -2), g), b.shape) if need_b else None,
        )


ACTIVATIONS = ("relu", "gelu", "gelu_tanh")


def check_activation(op: str, activation: str | None) -> None:
    if activation not in (None, *ACTIVATIONS):
        expected = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"{op}: unknown activation {activation!r}; expected None, {expected}")


def same_dtype(op: str, *tensors: Tensor | None) -> None:
    dtypes_ = [t.dtype for t in tensors if t is not None]
    if any(d != dtypes_[0] for d in dtypes_):
        names = dict.fromkeys(d.name for d in dtypes_)
        raise TypeError(f"{op}: operands are {' and '.join(names)}; convert one with .to(dtype)")


def matmul(a: TensorLike, b: TensorLike) -> Tensor:
    """The matrix product, as NumPy's matmul: (…, M, K) @ (…, K, N) → (…, M, N), batch broadcast.

    A vector on the left counts as a row, on the right as a column. Raises on mixed dtypes.
    """
    a, b = as_tensor(a), as_tensor(b)
    same_dtype("matmul", a, b)
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError("matmul: scalars have no matrix product; use *")
    inner = b.shape[-2] if b.ndim > 1 else b.shape[0]
    if a.shape[-1] != inner:
        raise ValueError(
            f"matmul: shapes {a.shape} and {b.shape}: "
            f"inner lengths {a.shape[-1]} and {inner} differ"
        )
    if a.ndim == 1:
        row = matmul(reshape(a, (1, -1)), b)
        return reshape(row, row.shape[:-1] if b.ndim == 1 else (*row.shape[:-2], row.shape[-1]))
    if b.ndim == 1:
        column = matmul(a, reshape(b, (-1, 1)))
        return reshape(column, column.shape[:-1])
    if a.ndim > 2 and b.ndim == 2:
        # One tall product instead of a batch of them; the weight's gradient needs no sum over it.
        flat = matmul(reshape(a, (math.prod(a.shape[:-1]), a.shape[-1])), b)
        return reshape(flat, (*a.shape[:-1], b.shape[-1]))
    return MatMul.apply(a, b)


class Linear(Function):
    """x (M, in), weight (out, in), bias (out,) → x weightᵀ + bias."""

    @staticmethod
    def forward(
        ctx: Node, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None
    ) -> np.ndarray:
        ctx.save_inputs(0, 1)
        return _product(x, weight.T, bias)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved
        dx, dweight = _gradients(ctx.needs_input_grad, g, x, weight)
        return dx, dweight, sum_(g, 0) if ctx.needs_input_grad[2] else None


def _gradients(
    needs: tuple[bool, ...], g: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Those of x and weight, where needed, from that of x weightᵀ."""
    return (
        matmul(g, weight) if needs[0] else None,
        matmul(swapaxes(g, 0, 1), x) if needs[1] else None,
    )


class LinearGelu(Function):
    """x (M, in), weight (out, in), bias (out,) → gelu(x weightᵀ + bias); and gelu' there where a
    gradient is needed.

    `kept` is the weight once more where bfloat16 is multiplied, as in `LinearBf16`.
    """

    @staticmethod
    def forward(
        ctx: Node,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        tanh_form: bool,
        kept: Tensor | None = None,
    ) -> Any:
        ctx.tanh_form, ctx.in_bf16 = tanh_form, kept is not None
        ctx.save_inputs(0, 1, 2)
        ctx.save_outputs(1)
        if kept is None:
            z = _product(x, weight.T)
        else:
            z = packed_product(x, packed_weight(kept), bias, weight.shape[0], dtypes.bfloat16)
            bias = None
        out, slope = bias_gelu(z, bias, tanh_form, keep_slope=True in ctx.needs_input_grad)
        return out if slope is None else (out, slope)

    @staticmethod
    def backward(ctx: Node, g: Tensor, _: None) -> tuple[Tensor | None, ...]:
        x, weight, bias, slope = ctx.saved
        needs = ctx.needs_input_grad
        if is_grad_enabled():
            if ctx.in_bf16:
                z = LinearBf16.apply(x, weight, bias, dtype=dtypes.bfloat16, kept=weight)
            else:
                z = Linear.apply(x, weight, bias)
            dz = mul(g, derivative_of("gelu_tanh" if ctx.tanh_form else "gelu", z))
            dbias = None
            if needs[2]:
                dbias = Sum.apply(dz, axes=(0,), keepdims=False, dtype=bias.dtype)
        else:
            dtype = bias.dtype if needs[2] else None
            array, sums = bias_gelu_gradients(g._array, slope._array, dtype)
            dz = Tensor._wrap(array)
            dbias = None if sums is None else Tensor._wrap(sums)
        return *(bf16_gradients if ctx.in_bf16 else _gradients)(needs, dz, x, weight), dbias


def check_linear(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Refuses operands of x weightᵀ + bias that do not fit each other. Whether bfloat16 is to be
    multiplied."""
    in_bf16 = active_precision() == "bf16"
    if in_bf16:
        _check_bf16(op, x, weight, bias)
    else:
        same_dtype(op, x, weight, bias)
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{op}: x of shape {x.shape} does not fit a weight (out, in) of {weight.shape}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: bias of shape {bias.shape}; expected {weight.shape[:1]}")
    return in_bf16


def _check_bf16(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Refuses what mixed precision does not multiply."""
    for name, operand in (("x", x), ("weight", weight), ("bias", bias)):
        allowed = (dtypes.float32,) if name == "bias" else (dtypes.float32, dtypes.bfloat16)
        if operand is not None and operand.dtype not in allowed:
            raise TypeError(
                f'{op}: {name} is {operand.dtype.name}; mg.precision("bf16") takes '
                f"{' or '.join(d.name for d in allowed)}: convert it with .to(dtype), or use "
                'mg.precision("fp32") here'
            )


def linear(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike = None,
    activation: str | None = None,
) -> Tensor:
    """activation(x weightᵀ + bias): x (…, in), weight (out, in), bias (out,) → (…, out).

    `activation` is None, "relu", "gelu" or "gelu_tanh"; the last two share one pass with the bias.
    Raises on mixed dtypes, except under `mg.precision("bf16")`, where x and weight are rounded to
    bfloat16, in which the result comes; gradients have the dtypes of x, weight and bias.
    """
    x, weight = as_tensor(x), as_tensor(weight)
    bias = None if bias is None else as_tensor(bias)
    in_bf16 = check_linear("linear", x, weight, bias)
    check_activation("linear", activation)
    rows = reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    if in_bf16:
        # Rounded once here rather than in each product: backward keeps half the bytes.
        rows = cast(rows, dtypes.bfloat16)
    gelu = activation in ("gelu", "gelu_tanh")
    if bias is not None and (gelu or in_bf16):
        bias = contiguous(bias)
    if gelu:
        kept = weight if in_bf16 else None
        out = LinearGelu.apply(rows, weight, bias, tanh_form=activation == "gelu_tanh", kept=kept)
        out = out[0] if isinstance(out, tuple) else out
    elif in_bf16:
        out = LinearBf16.apply(rows, weight, bias, dtype=dtypes.bfloat16, kept=weight)
    else:
        out = Linear.apply(rows, weight, bias)
    if activation == "relu":
        out = relu(out)
    return reshape(out, (*x.shape[:-1], weight.shape[0]))
