"""Matrix products: matmul, linear and einsum.

float32, bfloat16 and float16 products run in our kernel (`csrc/matmul.cpp`), with float32
accumulation in one order whatever the batch. float64 and integer products, which only checks need,
are NumPy's.
"""

from __future__ import annotations

import math

import numpy as np

from minigrad import dtypes
from minigrad.autograd import Function, Node
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch, launch_numpy
from minigrad.ops.bias_gelu import bias_gelu
from minigrad.ops.creation import as_tensor, cast
from minigrad.ops.elementwise import relu, unbroadcast
from minigrad.ops.linear_bf16 import LinearBf16
from minigrad.ops.movement import permute, reshape, swapaxes
from minigrad.ops.reduce import sum as sum_
from minigrad.precision import active_precision
from minigrad.shapes import broadcast_shape
from minigrad.tensor import Tensor, TensorLike

__all__ = ["einsum", "linear", "matmul"]


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


def same_dtype(op: str, *tensors: Tensor | None) -> None:
    dtypes_ = [t.dtype for t in tensors if t is not None]
    if any(d != dtypes_[0] for d in dtypes_):
        names = {d.name for d in dtypes_}
        raise TypeError(
            f"{op}: operands are {' and '.join(sorted(names))}; convert one with .to(dtype)"
        )


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
        need_x, need_weight, need_bias = ctx.needs_input_grad
        x, weight = ctx.saved
        return (
            matmul(g, weight) if need_x else None,
            matmul(swapaxes(g, 0, 1), x) if need_weight else None,
            sum_(g, 0) if need_bias else None,
        )


def check_linear(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Refuses operands of x weightᵀ + bias that do not fit each other."""
    same_dtype(op, x, weight, bias)
    _check_linear_shapes(op, x, weight, bias)


def _check_linear_shapes(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{op}: x of shape {x.shape} does not fit a weight (out, in) of {weight.shape}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: bias of shape {bias.shape}; expected {weight.shape[:1]}")


def _check_bf16(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Refuses what mixed precision does not multiply."""
    for name, operand in (("x", x), ("weight", weight), ("bias", bias)):
        allowed = (dtypes.float32,) if name == "bias" else (dtypes.float32, dtypes.bfloat16)
        if operand is not None and operand.dtype not in allowed:
            raise TypeError(
                f'linear: {name} is {operand.dtype.name}; mg.precision("bf16") takes '
                f"{' or '.join(d.name for d in allowed)}: convert it with .to(dtype), or use "
                'mg.precision("fp32") here'
            )
    _check_linear_shapes("linear", x, weight, bias)


def linear(
    x: TensorLike,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """activation(x weightᵀ + bias): x (…, in), weight (out, in), bias (out,) → (…, out).

    `activation` is None, "relu", "gelu" or "gelu_tanh"; the last two share one pass with the bias.
    Raises on mixed dtypes, except under `mg.precision("bf16")`, where x and weight are rounded to
    bfloat16, in which the result comes; gradients have the dtypes of x, weight and bias.
    """
    x = as_tensor(x)
    in_bf16 = active_precision() == "bf16"
    if in_bf16:
        _check_bf16(x, weight, bias)
    else:
        check_linear("linear", x, weight, bias)
    if activation not in (None, "relu", "gelu", "gelu_tanh"):
        raise ValueError(f"linear: unknown activation {activation!r}")
    rows = reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    form = "tanh" if activation == "gelu_tanh" else "none"
    fused = activation in ("gelu", "gelu_tanh")
    if in_bf16:
        # Rounded once here rather than in each product: backward keeps half the bytes.
        halves = cast(rows, dtypes.bfloat16)
        out = LinearBf16.apply(halves, weight, bias, dtype=dtypes.bfloat16, kept=weight)
        out = bias_gelu(out, None, form) if fused else out
    else:
        out = Linear.apply(rows, weight, None if fused else bias)
        out = bias_gelu(out, bias, form) if fused else out
    if activation == "relu":
        out = relu(out)
    return reshape(out, (*x.shape[:-1], weight.shape[0]))


# ---- einsum ----


def _parse(equation: str, operands: list[Tensor]) -> tuple[list[list[str]], list[str]]:
    """Labels of every operand and of the output, an ellipsis spelled out as labels of its own."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"einsum: {equation!r} names {len(terms)} operands, got {len(operands)}")
    inputs: list[list[str]] = []
    widest = 0
    for term, operand in zip(terms, operands, strict=True):
        letters = term.replace("...", "")
        if not all(c.isalpha() for c in letters):
            raise ValueError(f"einsum: bad term {term!r} in {equation!r}")
        extra = operand.ndim - len(letters)
        if extra < 0 or (extra > 0 and "..." not in term):
            raise ValueError(f"einsum: term {term!r} does not fit a shape of {operand.shape}")
        widest = max(widest, extra)
        head, dots, tail = term.partition("...")
        inputs.append([*head, *[f"~{i}" for i in range(extra, 0, -1) if dots], *tail])
    wide = [f"~{i}" for i in range(widest, 0, -1)]
    if arrow:
        head, found, tail = right.partition("...")
        output = [*head, *(wide if found else []), *tail]
    else:
        flat = [label for labels in inputs for label in labels]
        output = wide + sorted({c for c in flat if flat.count(c) == 1 and c[0] != "~"})
    for label in output:
        if not any(label in labels for labels in inputs) or output.count(label) > 1:
            raise ValueError(f"einsum: output label {label!r} of {equation!r} is unknown or twice")
    return inputs, output


def _diagonal(x: Tensor, labels: list[str]) -> tuple[Tensor, list[str]]:
    """Labels that appear twice in one operand become one."""
    for label in sorted(set(labels)):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            order = [d for d in range(x.ndim) if d not in (first, second)] + [first, second]
            x = permute(x, order)
            labels = [lab for d, lab in enumerate(labels) if d not in (first, second)] + [label]
            n = x.shape[-1]
            if x.shape[-2] != n:
                raise ValueError(f"einsum: label {label!r} has lengths {x.shape[-2]} and {n}")
            each = np.arange(n)
            x = x[(Ellipsis, each, each)]
    return x, labels


def _keep(x: Tensor, labels: list[str], wanted: set[str]) -> tuple[Tensor, list[str]]:
    """Sums away the labels that nothing else needs."""
    gone = tuple(d for d, label in enumerate(labels) if label not in wanted)
    if not gone:
        return x, labels
    return sum_(x, gone), [label for label in labels if label in wanted]


def _pair(
    a: Tensor, la: list[str], b: Tensor, lb: list[str], wanted: set[str]
) -> tuple[Tensor, list[str]]:
    """One batched product of two operands, keeping the labels in `wanted`."""
    a, la = _keep(a, la, wanted | set(lb))
    b, lb = _keep(b, lb, wanted | set(la))
    size = dict(zip(la, a.shape, strict=True))
    for label, n in zip(lb, b.shape, strict=True):
        if size.setdefault(label, n) != n and 1 not in (size[label], n):
            raise ValueError(f"einsum: label {label!r} has lengths {size[label]} and {n}")
        size[label] = max(size[label], n)
    batch = [c for c in la if c in lb and c in wanted]
    inner = [c for c in la if c in lb and c not in wanted]
    rows, columns = [c for c in la if c not in lb], [c for c in lb if c not in la]

    def arranged(x: Tensor, labels: list[str], order: list[list[str]]) -> Tensor:
        flat = [c for group in order for c in group]
        x = permute(x, [labels.index(c) for c in flat])
        x = x.expand(tuple(size[c] for c in flat))
        return reshape(x, [math.prod(size[c] for c in group) for group in order])

    out = matmul(arranged(a, la, [batch, rows, inner]), arranged(b, lb, [batch, inner, columns]))
    labels = batch + rows + columns
    return reshape(out, [size[c] for c in labels]), labels


def einsum(equation: str, *operands: TensorLike) -> Tensor:
    """Sums of products by Einstein's convention, e.g. `einsum("bhid,bhjd->bhij", q, k)`.

    NumPy's notation: repeated labels are summed unless in the output, "..." broadcasts, and without
    "->" the output is the labels that appear once, sorted. Operands meet from left to right.

    >>> einsum("ij,j", [[1.0, 2.0], [3.0, 4.0]], [1.0, 10.0]).numpy()
    array([21., 43.], dtype=float32)
    """
    tensors = [as_tensor(t) for t in operands]
    same_dtype("einsum", *tensors)
    inputs, output = _parse(equation, tensors)
    pairs = [_diagonal(t, labels) for t, labels in zip(tensors, inputs, strict=True)]
    x, labels = pairs[0]
    for i, (y, more) in enumerate(pairs[1:], start=1):
        later = {c for _, rest in pairs[i + 1 :] for c in rest}
        x, labels = _pair(x, labels, y, more, later | set(output))
    x, labels = _keep(x, labels, set(output))
    return permute(x, [labels.index(c) for c in output])
