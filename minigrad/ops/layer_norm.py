"""Layer normalisation (Ba et al. 2016) and RMS normalisation (Zhang and Sennrich 2019) over the
last axis, optionally of a sum with a residual, which is also returned."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad import dtypes
from minigrad.arguments import number
from minigrad.autograd import Function, Node, is_grad_enabled
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import active_device, empty, launch
from minigrad.ops.binary import add, mul, sub
from minigrad.ops.creation import as_tensor, cast, contiguous, unit_columns
from minigrad.ops.movement import as_rows, reshape
from minigrad.ops.reduce import mean
from minigrad.ops.reduce import sum as sum_
from minigrad.ops.unary import rsqrt
from minigrad.tensor import Tensor, TensorLike

__all__ = ["layer_norm", "rms_norm"]

Optional = np.ndarray | None


# ---- reference: x (n_rows, n_cols) ----


def _summed_ref(x: np.ndarray, residual: Optional, summed: Optional) -> np.ndarray:
    if residual is None or summed is None:
        return x.astype(np.float64)
    summed[...] = (x.astype(np.float64) + residual.astype(np.float64)).astype(summed.dtype)
    return summed.astype(np.float64)


def _scaled(normed: np.ndarray, weight: Optional, bias: Optional) -> np.ndarray:
    if weight is not None:
        normed = normed * weight.astype(np.float64)
    return normed if bias is None else normed + bias.astype(np.float64)


def _layer_norm_fwd_ref(
    x: np.ndarray,
    residual: Optional,
    weight: Optional,
    bias: Optional,
    out: np.ndarray,
    summed: Optional,
    mean: np.ndarray,
    rstd: np.ndarray,
    eps: float,
) -> None:
    wide = _summed_ref(x, residual, summed)
    if wide.size == 0:
        return
    centre = wide.mean(-1, keepdims=True)
    scale = 1 / np.sqrt(((wide - centre) ** 2).mean(-1, keepdims=True) + eps)
    mean[...], rstd[...] = centre[:, 0], scale[:, 0]
    out[...] = _scaled((wide - centre) * scale, weight, bias).astype(out.dtype)


def _norm_bwd_ref(
    g: np.ndarray,
    g_summed: Optional,
    normed: np.ndarray,
    scale: np.ndarray,
    weight: Optional,
    centred: bool,
    dx: Optional,
    dx_update: Optional,
    dweight: Optional,
    dbias: Optional,
) -> None:
    gw = g.astype(np.float64)
    if dweight is not None:
        dweight[...] = (gw * normed).sum(0).astype(dweight.dtype)
    if dbias is not None:
        dbias[...] = gw.sum(0).astype(dbias.dtype)
    wanted = [a for a in (dx, dx_update) if a is not None]
    if not wanted or gw.size == 0:
        return
    scaled = gw if weight is None else gw * weight.astype(np.float64)
    inner = scaled - normed * (scaled * normed).mean(-1, keepdims=True)
    if centred:
        inner = inner - scaled.mean(-1, keepdims=True)
    total = inner * scale
    if g_summed is not None:
        total = total + g_summed.astype(np.float64)
    for a in wanted:
        a[...] = total.astype(a.dtype)


def _layer_norm_bwd_ref(
    g: np.ndarray,
    g_summed: Optional,
    x: np.ndarray,
    weight: Optional,
    mean: np.ndarray,
    rstd: np.ndarray,
    dx: Optional,
    dx_update: Optional,
    dweight: Optional,
    dbias: Optional,
) -> None:
    scale = rstd.astype(np.float64)[:, None]
    normed = (x.astype(np.float64) - mean.astype(np.float64)[:, None]) * scale
    _norm_bwd_ref(g, g_summed, normed, scale, weight, True, dx, dx_update, dweight, dbias)


def _rms_norm_fwd_ref(
    x: np.ndarray,
    residual: Optional,
    weight: Optional,
    out: np.ndarray,
    summed: Optional,
    rstd: np.ndarray,
    eps: float,
) -> None:
    wide = _summed_ref(x, residual, summed)
    if wide.size == 0:
        return
    scale = 1 / np.sqrt((wide**2).mean(-1, keepdims=True) + eps)
    rstd[...] = scale[:, 0]
    out[...] = _scaled(wide * scale, weight, None).astype(out.dtype)


def _rms_norm_bwd_ref(
    g: np.ndarray,
    g_summed: Optional,
    x: np.ndarray,
    weight: Optional,
    rstd: np.ndarray,
    dx: Optional,
    dx_update: Optional,
    dweight: Optional,
) -> None:
    scale = rstd.astype(np.float64)[:, None]
    normed = x.astype(np.float64) * scale
    _norm_bwd_ref(g, g_summed, normed, scale, weight, False, dx, dx_update, dweight, None)


REFERENCE = {
    "layer_norm_fwd": _layer_norm_fwd_ref,
    "layer_norm_bwd": _layer_norm_bwd_ref,
    "rms_norm_fwd": _rms_norm_fwd_ref,
    "rms_norm_bwd": _rms_norm_bwd_ref,
}


def _cost(*args: Any) -> Cost:
    largest = max((a.size for a in args if isinstance(a, np.ndarray)), default=0)
    return Cost(nbytes(*args), 8 * largest)


COST = dict.fromkeys(REFERENCE, _cost)


# ---- differentiable: x (n_rows, n_cols) ----


def _statistics_dtype(x: np.ndarray) -> np.dtype:
    return dtypes.float64 if x.dtype == dtypes.float64 else dtypes.float32


class LayerNorm(Function):
    """→ normed in `dtype`, or (normed, x + residual) where a residual is given."""

    @staticmethod
    def forward(
        ctx: Node,
        x: np.ndarray,
        residual: Optional,
        weight: Optional,
        bias: Optional,
        eps: float,
        dtype: np.dtype,
    ) -> Any:
        ctx.eps, ctx.x_dtype = eps, x.dtype
        ctx.mean = empty(x.shape[:1], _statistics_dtype(x))
        ctx.rstd = empty(x.shape[:1], _statistics_dtype(x))
        ctx.save_inputs(*((2,) if residual is not None else (2, 0)))
        ctx.save_outputs(*((1,) if residual is not None else ()))
        out = empty(x.shape, dtype)
        summed = None if residual is None else empty(x.shape, residual.dtype)
        launch("layer_norm_fwd", x, residual, weight, bias, out, summed, ctx.mean, ctx.rstd, eps)
        return out if summed is None else (out, summed)

    @staticmethod
    def backward(ctx: Node, g: Tensor | None, g_summed: Tensor | None = None) -> Any:
        weight, x = ctx.saved
        if is_grad_enabled():
            return _composed_backward(ctx, g, g_summed, x, weight, centred=True)
        need_x, need_residual, need_weight, need_bias = ctx.needs_input_grad
        if g is None:
            return _update_gradient(ctx, g_summed), g_summed, None, None
        dx, update = _gradients(ctx, x)
        dweight = empty(x.shape[1:], x.dtype) if need_weight else None
        dbias = empty(x.shape[1:], x.dtype) if need_bias else None
        launch(
            "layer_norm_bwd",
            unit_columns(g._array),
            None if g_summed is None else unit_columns(g_summed._array),
            x._array,
            None if weight is None else weight._array,
            ctx.mean,
            ctx.rstd,
            dx,
            update,
            dweight,
            dbias,
        )
        dx_tensor = _wrapped(dx)
        return (
            (dx_tensor if update is None else _wrapped(update)) if need_x else None,
            dx_tensor if need_residual else None,
            _wrapped(dweight),
            _wrapped(dbias),
        )


class RMSNorm(Function):
    """→ normed in `dtype`, or (normed, x + residual) where a residual is given."""

    @staticmethod
    def forward(
        ctx: Node,
        x: np.ndarray,
        residual: Optional,
        weight: Optional,
        eps: float,
        dtype: np.dtype,
    ) -> Any:
        ctx.eps, ctx.x_dtype = eps, x.dtype
        ctx.rstd = empty(x.shape[:1], _statistics_dtype(x))
        ctx.save_inputs(*((2,) if residual is not None else (2, 0)))
        ctx.save_outputs(*((1,) if residual is not None else ()))
        out = empty(x.shape, dtype)
        summed = None if residual is None else empty(x.shape, residual.dtype)
        launch("rms_norm_fwd", x, residual, weight, out, summed, ctx.rstd, eps)
        return out if summed is None else (out, summed)

    @staticmethod
    def backward(ctx: Node, g: Tensor | None, g_summed: Tensor | None = None) -> Any:
        weight, x = ctx.saved
        if is_grad_enabled():
            return _composed_backward(ctx, g, g_summed, x, weight, centred=False)[:3]
        need_x, need_residual, need_weight = ctx.needs_input_grad
        if g is None:
            return _update_gradient(ctx, g_summed), g_summed, None
        dx, update = _gradients(ctx, x)
        dweight = empty(x.shape[1:], x.dtype) if need_weight else None
        launch(
            "rms_norm_bwd",
            unit_columns(g._array),
            None if g_summed is None else unit_columns(g_summed._array),
            x._array,
            None if weight is None else weight._array,
            ctx.rstd,
            dx,
            update,
            dweight,
        )
        dx_tensor = _wrapped(dx)
        return (
            (dx_tensor if update is None else _wrapped(update)) if need_x else None,
            dx_tensor if need_residual else None,
            _wrapped(dweight),
        )


def _gradients(ctx: Node, x: np.ndarray) -> tuple[Optional, Optional]:
    """Arrays for those of x and residual, which are one and the same; and where x was narrower than
    the residual, for that of x."""
    need_x, need_residual, *_ = ctx.needs_input_grad
    if ctx.x_dtype == x.dtype:
        return (empty(x.shape, x.dtype) if need_x or need_residual else None), None
    return (
        empty(x.shape, x.dtype) if need_residual else None,
        empty(x.shape, ctx.x_dtype) if need_x else None,
    )


def _update_gradient(ctx: Node, g_summed: Tensor | None) -> Tensor | None:
    return None if g_summed is None else cast(g_summed, ctx.x_dtype)


def _wrapped(array: Optional) -> Tensor | None:
    return None if array is None else Tensor._wrap(array)


def _composed_backward(
    ctx: Node,
    g: Tensor | None,
    g_summed: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    centred: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients in differentiable operations; (x, residual, weight, bias)."""
    if g is None:
        return _update_gradient(ctx, g_summed), g_summed, None, None
    g = cast(g, x.dtype)
    shifted = sub(x, mean(x, -1, keepdims=True)) if centred else x
    scale = rsqrt(add(mean(mul(shifted, shifted), -1, keepdims=True), ctx.eps))
    normed = mul(shifted, scale)
    scaled = g if weight is None else mul(g, weight)
    inner = sub(scaled, mul(normed, mean(mul(scaled, normed), -1, keepdims=True)))
    if centred:
        inner = sub(inner, mean(scaled, -1, keepdims=True))
    dx = mul(inner, scale)
    if g_summed is not None:
        dx = add(dx, g_summed)
    return cast(dx, ctx.x_dtype), dx, sum_(mul(g, normed), 0), sum_(g, 0)


# ---- public ----

_MIXED = dtypes.bfloat16, dtypes.float32  # an update or a result, and what is normalised


def _mixed(narrow: np.dtype, whole: np.dtype) -> bool:
    """Whether the kernels take these together; those for a GPU take one dtype."""
    return (narrow, whole) == _MIXED and active_device() == "cpu"


def check_eps(op: str, eps: float) -> float:
    """eps as a number of at least 0."""
    value = number(op, "eps", eps)
    if not value >= 0:
        raise ValueError(f"{op}: eps must be at least 0, got {value}")
    return value


def _prepare(
    op: str,
    x: TensorLike,
    residual: TensorLike,
    dtype: Any,
    eps: float,
    **vectors: TensorLike,
) -> Any:
    """The shape of the result, its dtype, the one that the kernel gives it in; x and residual as
    rows, and the vectors."""
    x = as_tensor(x)
    if not dtypes.is_floating(x.dtype):
        raise TypeError(f"{op}: expected a floating dtype, got {x.dtype.name}")
    if x.ndim == 0:
        raise ValueError(f"{op}: expected at least one dimension")
    check_eps(op, eps)
    if residual is not None:
        residual = as_tensor(residual)
        if residual.shape != x.shape or not dtypes.is_floating(residual.dtype):
            raise ValueError(
                f"{op}: residual of shape {residual.shape} and dtype {residual.dtype.name} does "
                f"not match x, {x.shape} and {x.dtype.name}"
            )
        # As in x + residual: a bfloat16 update meets a float32 stream in float32.
        whole = dtypes.promote(x.dtype, residual.dtype)
        if not _mixed(x.dtype, whole):
            x = cast(x, whole)
        residual = cast(residual, whole)
    else:
        whole = x.dtype
    wanted = whole if dtype is None else dtypes.as_dtype(dtype)
    if wanted != whole and (wanted, whole) != _MIXED:
        raise TypeError(
            f"{op}: dtype {wanted.name} for a norm of {whole.name}; expected {whole.name}, or "
            "bfloat16 for one of float32: convert the result with .to(dtype)"
        )
    ready = [None if v is None else contiguous(v) for v in vectors.values()]
    for name, vector in zip(vectors, ready, strict=True):
        if vector is not None and (vector.shape != x.shape[-1:] or vector.dtype != whole):
            raise ValueError(
                f"{op}: {name} has shape {vector.shape} and dtype {vector.dtype.name}; expected "
                f"{x.shape[-1:]} and {whole.name}"
            )
    made = wanted if _mixed(wanted, whole) else whole
    rows = as_rows(x), None if residual is None else as_rows(residual)
    return x.shape, wanted, made, *rows, *ready


def _restore(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    if isinstance(out, tuple):
        return cast(reshape(out[0], shape), dtype), reshape(out[1], shape)
    return cast(reshape(out, shape), dtype)


def layer_norm(
    x: TensorLike,
    weight: TensorLike = None,
    bias: TensorLike = None,
    eps: float = 1e-5,
    residual: TensorLike = None,
    dtype: Any = None,
) -> Any:
    """(x - mean) / sqrt(var + eps) · weight + bias over the last axis (Ba et al. 2016).

    weight and bias have the last axis's shape. With `residual` (x's shape) the sum x + residual is
    normalised, and (normed, sum) is returned. Statistics in float32 (float64 for float64), in two
    passes. `dtype` is that of normed: bfloat16 where a norm of float32 feeds products of bfloat16.
    """
    shape, wanted, made, flat, flat_residual, weight, bias = _prepare(
        "layer_norm", x, residual, dtype, eps, weight=weight, bias=bias
    )
    out = LayerNorm.apply(flat, flat_residual, weight, bias, eps=float(eps), dtype=made)
    return _restore(out, shape, wanted)


def rms_norm(
    x: TensorLike,
    weight: TensorLike = None,
    eps: float = 1e-6,
    residual: TensorLike = None,
    dtype: Any = None,
) -> Any:
    """x / sqrt(mean(x²) + eps) · weight over the last axis (Zhang and Sennrich 2019).

    With `residual` (x's shape) the sum x + residual is normalised, and (normed, sum) is returned.
    `dtype` as in `layer_norm`.
    """
    shape, wanted, made, flat, flat_residual, weight = _prepare(
        "rms_norm", x, residual, dtype, eps, weight=weight
    )
    out = RMSNorm.apply(flat, flat_residual, weight, eps=float(eps), dtype=made)
    return _restore(out, shape, wanted)
