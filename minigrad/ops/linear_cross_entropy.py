"""Cross-entropy of a linear layer's outputs, chunk of rows by chunk of rows, so that the logits
never exist as a whole (after Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language
Models", and the Liger kernels, Hsu et al. 2024).

Composed of the kernels `matmul` (in mixed precision `matmul_packed`), `cross_entropy_fwd` and
`cross_entropy_bwd` on one chunk's logits; a profile shows them under those names. The gradients of
a mean or a sum are made in forward, while the chunk's logits are there, and only multiplied by the
incoming gradient in backward (`scale`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minigrad import dtypes
from minigrad.autograd import Function, Node, is_grad_enabled
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch
from minigrad.ops.creation import as_tensor, cast, contiguous, copied
from minigrad.ops.cross_entropy import checked_targets, row_share
from minigrad.ops.linear_bf16 import pack, packed_weight
from minigrad.ops.matmul import check_linear, product_into
from minigrad.ops.movement import reshape, swapaxes
from minigrad.tensor import Tensor, TensorLike

__all__ = ["linear_cross_entropy"]

# Rows of a chunk: a multiple of every level's K block (kKC in csrc/matmul_kernel.h), so that the
# weight's gradient is added up in the same order as that of a product over all rows.
CHUNK_ROWS = 512

Optional = np.ndarray | None


def _scale_ref(arrays: list[np.ndarray], factor: np.ndarray) -> None:
    for a in arrays:
        a[...] = (a.astype(np.float64) * float(factor.reshape(()))).astype(a.dtype)


REFERENCE = {"scale": _scale_ref}
COST = {"scale": lambda arrays, factor: Cost(2 * nbytes(*arrays), sum(a.size for a in arrays))}


class _Inputs(NamedTuple):
    x: np.ndarray  # (N, D)
    weight: np.ndarray  # (V, D)
    bias: Optional  # (V,)
    targets: np.ndarray  # (N,)
    kept: Tensor | None  # the weight once more where bfloat16 is multiplied, as in `LinearBf16`


class _Plain:
    """The three products, in the dtype of x."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight = weight

    def logits(self, x: np.ndarray, bias: Optional, out: np.ndarray) -> None:
        product_into(x, self.weight.T, bias, out)

    def dx(self, g: np.ndarray, out: np.ndarray) -> None:
        product_into(g, self.weight, None, out)

    def dweight(self, g: np.ndarray, x: np.ndarray, out: np.ndarray, accumulate: bool) -> None:
        product_into(g.T, x, None, out, accumulate)


class _OfBf16:
    """The same of operands rounded to bfloat16, with the weight's packed copies."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def logits(self, x: np.ndarray, bias: Optional, out: np.ndarray) -> None:
        launch("matmul_packed", x, packed_weight(self.weight), bias, out, False)

    def dx(self, g: np.ndarray, out: np.ndarray) -> None:
        across = swapaxes(self.weight, 0, 1)
        launch("matmul_packed", g, packed_weight(across), None, out, False)

    def dweight(self, g: np.ndarray, x: np.ndarray, out: np.ndarray, accumulate: bool) -> None:
        launch("matmul_packed", g.T, pack(x), None, out, accumulate)


def _wide(dtype: np.dtype) -> np.dtype:
    """What logits, losses and sums over chunks are held in."""
    return dtypes.float64 if dtype == dtypes.float64 else dtypes.float32


def _sweep(
    given: _Inputs,
    options: tuple[int, float],
    losses: np.ndarray,
    g: Optional = None,
    needs: tuple[bool, ...] = (False, False, False),
) -> list[Optional]:
    """Fills the losses (N,); for gradients g of theirs (N,), returns those of x, weight and bias
    that `needs` asks for."""
    x, weight, bias, targets, kept = given
    products = _Plain(weight) if kept is None else _OfBf16(kept)
    n, wide = x.shape[0], losses.dtype
    dx = empty(x.shape, x.dtype) if needs[0] else None
    sums = [
        empty(a.shape, wide) if need and a is not None else None
        for a, need in zip((weight, bias), needs[1:], strict=True)
    ]
    buffer = empty((min(n, CHUNK_ROWS), weight.shape[0]), wide)
    lse, ones = empty(buffer.shape[:1], wide), empty((1, buffer.shape[0]), wide)
    launch("fill", ones, 1.0)
    for total in sums:
        if total is not None and n == 0:
            launch("fill", total, 0.0)
    for begin in range(0, n, CHUNK_ROWS):
        rows = slice(begin, min(n, begin + CHUNK_ROWS))
        logits, own = buffer[: rows.stop - begin], lse[: rows.stop - begin]
        products.logits(x[rows], bias, logits)
        launch("cross_entropy_fwd", logits, targets[rows], losses[rows], own, *options)
        if g is None:
            continue
        launch("cross_entropy_bwd", g[rows], logits, targets[rows], own, logits, *options)
        if dx is not None:
            products.dx(logits, dx[rows])
        if sums[0] is not None:
            products.dweight(logits, x[rows], sums[0], begin > 0)
        if sums[1] is not None:
            column = ones[:, : rows.stop - begin]
            product_into(column, logits, None, sums[1].reshape(1, -1), begin > 0)
    dtype = weight.dtype  # and the bias's
    return [dx, *[a if a is None or a.dtype == dtype else copied(a, dtype) for a in sums]]


class LinearCrossEntropy(Function):
    """x (N, D), weight (V, D), bias (V,), targets (N,) → losses (N,), or with `share` (), what a
    row counts, their weighted sum."""

    @staticmethod
    def forward(
        ctx: Node,
        x: np.ndarray,
        weight: np.ndarray,
        bias: Optional,
        targets: np.ndarray,
        ignore_index: int,
        label_smoothing: float,
        share: Optional,
        kept: Tensor | None = None,
    ) -> np.ndarray:
        ctx.options, ctx.share = (ignore_index, label_smoothing), share
        ctx.in_bf16 = kept is not None
        ctx.save_inputs(0, 1, 2, 3)
        losses = empty(targets.shape, _wide(x.dtype))
        given, needs = _Inputs(x, weight, bias, targets, kept), ctx.needs_input_grad[:3]
        ctx.gradients = None
        if share is None or True not in needs:
            _sweep(given, ctx.options, losses)
        else:
            ctx.gradients = _sweep(given, ctx.options, losses, _shares(losses, share), needs)
        if share is None:
            return losses
        total = empty((1,), losses.dtype)
        launch("sum", losses, total)
        launch("scale", [total], share)
        return total.reshape(())

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        if is_grad_enabled():
            raise NotImplementedError(
                "linear_cross_entropy: the fused form has no second derivative; use "
                "cross_entropy(linear(x, weight, bias), targets)"
            )
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place, so there once only
        if gradients is None:
            saved = ctx.saved
            arrays: list[Any] = [None if t is None else t._array for t in saved]
            x, weight, bias, targets = arrays
            given = _Inputs(x, weight, bias, targets, saved[1] if ctx.in_bf16 else None)
            losses = empty(given.targets.shape, _wide(given.x.dtype))
            own = contiguous(g)._array if ctx.share is None else _shares(losses, ctx.share)
            gradients = _sweep(given, ctx.options, losses, own, ctx.needs_input_grad[:3])
        if ctx.share is not None:
            launch("scale", [a for a in gradients if a is not None], g._array)
        return *[None if a is None else Tensor._wrap(a) for a in gradients], None


def _shares(losses: np.ndarray, share: np.ndarray) -> np.ndarray:
    out = empty(losses.shape, losses.dtype)
    launch("copy", share, out)
    return out


def linear_cross_entropy(
    x: TensorLike,
    weight: TensorLike,
    targets: TensorLike,
    bias: TensorLike = None,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Any:
    """cross_entropy(linear(x, weight, bias), targets) in chunks: the logits never exist as a whole.

    x (…, D), weight (V, D), bias (V,), integer targets (…); options and result as in
    `cross_entropy`. Holds the logits of 512 rows at a time, in float32 (float64 for float64)
    whatever the dtype of x, and sums the weight's gradient over chunks in that type; so too under
    `mg.precision("bf16")`, where products are of bfloat16 as in `linear`. With "mean" and "sum" the
    gradients are made in forward; with "none", and for a second backward, the logits are made
    again.

    Has no second derivative: asked for one, it raises and names the composed form. Raises as
    `linear` and `cross_entropy` do on what does not fit.

    >>> import minigrad as mg
    >>> linear_cross_entropy([[1.0, 2.0]], mg.zeros((4, 2)), [3]).item()
    1.3862943649291992
    """
    op = "linear_cross_entropy"
    x, weight = as_tensor(x), as_tensor(weight)
    bias = None if bias is None else as_tensor(bias)
    in_bf16 = check_linear(op, x, weight, bias)
    if in_bf16:
        x = cast(x, dtypes.bfloat16)
    shape = (*x.shape[:-1], weight.shape[0])
    wanted = checked_targets(op, targets, shape, x.dtype, label_smoothing, ignore_index, reduction)
    n_rows = math.prod(wanted.shape)
    share = None
    if reduction == "mean":
        share = row_share(wanted._array, ignore_index, _wide(x.dtype))._array
    elif reduction == "sum":
        share = empty((), _wide(x.dtype))
        launch("fill", share, 1.0)
    weight = contiguous(weight)
    out = LinearCrossEntropy.apply(
        contiguous(reshape(x, (n_rows, x.shape[-1]))),
        weight,
        None if bias is None else contiguous(bias),
        contiguous(reshape(wanted, (n_rows,))),
        ignore_index=ignore_index,
        label_smoothing=float(label_smoothing),
        share=share,
        kept=weight if in_bf16 else None,
    )
    return reshape(out, wanted.shape) if reduction == "none" else out
