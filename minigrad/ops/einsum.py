"""Sums of products by Einstein's convention, composed of reductions, permutations and products."""

from __future__ import annotations

import math

import numpy as np

from minigrad.arguments import shown
from minigrad.ops.creation import as_tensor
from minigrad.ops.matmul import matmul, same_dtype
from minigrad.ops.movement import permute, reshape
from minigrad.ops.reduce import sum as sum_
from minigrad.tensor import Tensor, TensorLike

__all__ = ["einsum"]


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
    if not isinstance(equation, str):
        raise TypeError(f"einsum: expected an equation such as 'ij,jk->ik', got {shown(equation)}")
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
