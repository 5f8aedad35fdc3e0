"""GELU of a sum with a bias, in one pass: the activation of a Transformer's feed-forward layer."""

from __future__ import annotations

import numpy as np

from minigrad.autograd import Function, Node, is_grad_enabled
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch
from minigrad.ops.creation import contiguous, unit_columns
from minigrad.ops.elementwise import REFERENCE as ELEMENTWISE
from minigrad.ops.elementwise import derivative_of, mul, unbroadcast
from minigrad.tensor import Tensor

__all__ = ["bias_gelu"]


def _sum(x: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    wide = x.astype(np.float64)
    return wide if bias is None else wide + bias.astype(np.float64)


def _fwd_ref(x: np.ndarray, bias: np.ndarray | None, out: np.ndarray, tanh_form: bool) -> None:
    ELEMENTWISE["gelu_tanh" if tanh_form else "gelu"](_sum(x, bias), out, 0.0)


def _bwd_ref(
    g: np.ndarray,
    x: np.ndarray,
    bias: np.ndarray | None,
    dx: np.ndarray,
    dbias: np.ndarray | None,
    tanh_form: bool,
) -> None:
    z = _sum(x, bias)
    wide = np.empty_like(z)
    ELEMENTWISE["gelu_tanh_bwd" if tanh_form else "gelu_bwd"](g.astype(np.float64), z, z, wide, 0.0)
    dx[...] = wide.astype(dx.dtype)
    if dbias is not None:
        dbias[...] = wide.sum(0).astype(dbias.dtype)


REFERENCE = {"bias_gelu_fwd": _fwd_ref, "bias_gelu_bwd": _bwd_ref}
COST = {
    "bias_gelu_fwd": lambda x, bias, out, form: Cost(nbytes(x, bias, out), 20 * x.size),
    "bias_gelu_bwd": lambda g, x, bias, dx, dbias, form: Cost(
        nbytes(g, x, bias, dx, dbias), 30 * x.size
    ),
}


class BiasGelu(Function):
    """x (M, N), bias (N,) or None."""

    @staticmethod
    def forward(ctx: Node, x: np.ndarray, bias: np.ndarray | None, tanh_form: bool) -> np.ndarray:
        ctx.tanh_form = tanh_form
        ctx.save_inputs(0, 1)
        out = empty(x.shape, x.dtype)
        launch("bias_gelu_fwd", x, bias, out, tanh_form)
        return out

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved
        need_bias = ctx.needs_input_grad[1]
        if is_grad_enabled():
            dx = mul(g, _slope(x if bias is None else x + bias, ctx.tanh_form))
            return dx, unbroadcast(dx, bias.shape) if need_bias else None
        dx_array = empty(x.shape, x.dtype)
        dbias = empty(bias.shape, bias.dtype) if need_bias else None
        launch(
            "bias_gelu_bwd",
            unit_columns(g._array),
            x._array,
            None if bias is None else bias._array,
            dx_array,
            dbias,
            ctx.tanh_form,
        )
        return Tensor._wrap(dx_array), None if dbias is None else Tensor._wrap(dbias)


def _slope(z: Tensor, tanh_form: bool) -> Tensor:
    return derivative_of("gelu_tanh" if tanh_form else "gelu", z)


def bias_gelu(x: Tensor, bias: Tensor | None, approximate: str = "none") -> Tensor:
    """gelu(x + bias): x (M, N), bias (N,) or None; `approximate` as in `gelu`."""
    if x.ndim != 2 or (bias is not None and bias.shape != x.shape[1:]):
        shape = None if bias is None else bias.shape
        raise ValueError(f"bias_gelu: expected x (M, N) and bias (N,), got {x.shape} and {shape}")
    ready = None if bias is None else contiguous(bias)
    return BiasGelu.apply(contiguous(x), ready, tanh_form=approximate == "tanh")
