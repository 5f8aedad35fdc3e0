"""Layer norm over rows (Ba et al. 2016), with residual add, in Triton.

One program a row. The variance is a second pass over the centred row, and the centre is corrected
by the mean of what centring left: E[x²] - E[x]² would lose all digits where the mean is large. A
row that fits is read once; a wider one is read again for each pass.

Refuses float64 and columns that are not contiguous. Statistics are float32 whatever the dtype.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from minigrad.gpu import TritonLaunch, check_floats, strides

WIDEST_ROW = 8192  # elements a program of 8 warps holds in registers: 32 a thread


@triton.jit
def _sum_row(x_ptr, residual_ptr, summed_ptr, col, inside):
    """x, or x + residual rounded as it is stored in summed; 0 outside."""
    x = tl.load(x_ptr + col, inside, 0.0).to(tl.float32)
    if residual_ptr is not None:
        x += tl.load(residual_ptr + col, inside, 0.0).to(tl.float32)
        rounded = x.to(summed_ptr.dtype.element_ty)
        tl.store(summed_ptr + col, rounded, inside)
        x = rounded.to(tl.float32)
    return x


@triton.jit
def _store_normed(out_ptr, weight_ptr, bias_ptr, normed, col, inside):
    if weight_ptr is not None:
        normed *= tl.load(weight_ptr + col, inside, 0.0).to(tl.float32)
    if bias_ptr is not None:
        normed += tl.load(bias_ptr + col, inside, 0.0).to(tl.float32)
    tl.store(out_ptr + col, normed.to(out_ptr.dtype.element_ty), inside)


@triton.jit
def layer_norm_row_fwd(
    x_ptr,  # (n_rows, n_cols), rows x_stride apart
    residual_ptr,  # the same, rows residual_stride apart; or None
    weight_ptr,  # (n_cols,) or None
    bias_ptr,  # (n_cols,) or None
    out_ptr,  # (n_rows, n_cols), rows out_stride apart
    summed_ptr,  # (n_rows, n_cols), rows summed_stride apart; or None
    mean_ptr,  # (n_rows,) float32
    rstd_ptr,  # (n_rows,) float32
    n_cols,
    x_stride,
    residual_stride,
    out_stride,
    summed_stride,
    eps,
    COLS: tl.constexpr,  # columns a step: a power of two, from n_cols on where WHOLE
    WHOLE: tl.constexpr,  # the row fits into one step
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    out_ptr += row * out_stride
    source_ptr = x_ptr
    if residual_ptr is not None:
        residual_ptr += row * residual_stride
        summed_ptr += row * summed_stride
        source_ptr = summed_ptr
    if WHOLE:
        col = tl.arange(0, COLS)
        inside = col < n_cols
        x = _sum_row(x_ptr, residual_ptr, summed_ptr, col, inside)
        first = tl.sum(x, 0) / n_cols
        x = tl.where(inside, x - first, 0.0)
        left = tl.sum(x, 0) / n_cols
        x = tl.where(inside, x - left, 0.0)
        rstd = 1 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
        _store_normed(out_ptr, weight_ptr, bias_ptr, x * rstd, col, inside)
    else:
        total = tl.zeros((COLS,), tl.float32)
        for start in range(0, n_cols, COLS):
            col = start + tl.arange(0, COLS)
            total += _sum_row(x_ptr, residual_ptr, summed_ptr, col, col < n_cols)
        tl.debug_barrier()  # summed is read again below
        first = tl.sum(total, 0) / n_cols
        centred = tl.zeros((COLS,), tl.float32)
        squares = tl.zeros((COLS,), tl.float32)
        for start in range(0, n_cols, COLS):
            col = start + tl.arange(0, COLS)
            x = tl.load(source_ptr + col, col < n_cols, 0.0).to(tl.float32)
            x = tl.where(col < n_cols, x - first, 0.0)
            centred += x
            squares += x * x
        left = tl.sum(centred, 0) / n_cols
        # The squares were taken about `first`, which is off by `left`, a rounding error.
        rstd = 1 / tl.sqrt(tl.maximum(tl.sum(squares, 0) / n_cols - left * left, 0.0) + eps)
        for start in range(0, n_cols, COLS):
            col = start + tl.arange(0, COLS)
            x = tl.load(source_ptr + col, col < n_cols, 0.0).to(tl.float32)
            normed = (x - first - left) * rstd
            _store_normed(out_ptr, weight_ptr, bias_ptr, normed, col, col < n_cols)
    tl.store(mean_ptr + row, first + left)
    tl.store(rstd_ptr + row, rstd)


def layer_norm_fwd(
    x: np.ndarray,
    residual: np.ndarray | None,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    out: np.ndarray,
    summed: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    eps: float,
) -> TritonLaunch | None:
    """out = (s - mean) · rstd · weight + bias, s = x + residual (kept in summed), over the columns
    of (n_rows, n_cols); mean and rstd (n_rows,) float32."""
    if not x.size:
        return None
    check_floats("layer_norm_fwd", x, residual, weight, bias, out, summed)
    n_rows, n_cols = x.shape
    cols = min(triton.next_power_of_2(n_cols), WIDEST_ROW)
    row_strides = [0 if a is None else strides(a)[0] for a in (x, residual, out, summed)]
    return TritonLaunch(
        layer_norm_row_fwd,
        (n_rows,),
        [x, residual, weight, bias, out, summed, mean, rstd, n_cols, *row_strides, float(eps)],
        {"COLS": cols, "WHOLE": n_cols <= cols},
        num_warps=8 if cols > 2048 else 4,
    )
