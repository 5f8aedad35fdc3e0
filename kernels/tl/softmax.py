"""softmax over rows, in Triton.

A row that fits is read once and kept in registers: maximum, exponentials, sum, quotient. Narrow
rows go several to a program. A wider row is read twice: a running maximum and sum (Milakov and
Gimelshein 2018), then the quotients.

Refuses float64 and columns that are not contiguous. Sums are float32 whatever the dtype.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from minigrad.gpu import TritonLaunch, check_floats, strides

WIDEST_ROW = 8192  # elements a program of 8 warps holds in registers: 32 a thread
PROGRAM = 1024  # elements that a program of narrow rows holds: 8 a thread


@triton.jit
def softmax_row_fwd(
    x_ptr,  # (n_rows, n_cols), rows x_stride apart
    out_ptr,  # (n_rows, n_cols), rows out_stride apart
    n_rows,
    n_cols,
    x_stride,
    out_stride,
    ROWS: tl.constexpr,  # rows a program
    COLS: tl.constexpr,  # a power of two from n_cols on
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, COLS)[None, :]
    inside = (row < n_rows) & (col < n_cols)
    x = tl.load(x_ptr + row * x_stride + col, inside, float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, 1)[:, None])
    y = e / tl.sum(e, 1)[:, None]
    tl.store(out_ptr + row * out_stride + col, y.to(out_ptr.dtype.element_ty), inside)


@triton.jit
def softmax_wide_fwd(
    x_ptr,  # (n_rows, n_cols), rows x_stride apart
    out_ptr,  # (n_rows, n_cols), rows out_stride apart
    n_cols,
    x_stride,
    out_stride,
    COLS: tl.constexpr,  # columns a step
):
    x_ptr += tl.program_id(0).to(tl.int64) * x_stride
    out_ptr += tl.program_id(0).to(tl.int64) * out_stride
    # Each lane keeps a maximum and a sum of its own; they meet after the loop.
    top = tl.full((COLS,), float("-inf"), tl.float32)
    total = tl.zeros((COLS,), tl.float32)
    for start in range(0, n_cols, COLS):
        col = start + tl.arange(0, COLS)
        x = tl.load(x_ptr + col, col < n_cols, float("-inf")).to(tl.float32)
        higher = tl.maximum(top, x)
        # Before a lane has met anything finite, both are -inf, and their difference would be NaN.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - base) + tl.exp(x - base)
        top = higher
    row_top = tl.max(top, 0)
    # A row of nothing but -inf has no softmax: its total is 0, and 0 / 0 is the NaN wanted.
    base = tl.where(row_top == float("-inf"), 0.0, row_top)
    scale = 1.0 / tl.sum(total * tl.exp(top - base), 0)
    for start in range(0, n_cols, COLS):
        col = start + tl.arange(0, COLS)
        x = tl.load(x_ptr + col, col < n_cols, float("-inf")).to(tl.float32)
        y = tl.exp(x - base) * scale
        tl.store(out_ptr + col, y.to(out_ptr.dtype.element_ty), col < n_cols)


def softmax_fwd(x: np.ndarray, out: np.ndarray) -> TritonLaunch | None:
    """out = softmax(x) over the columns of (n_rows, n_cols)."""
    if not x.size:
        return None
    check_floats("softmax_fwd", x, out)
    n_rows, n_cols = x.shape
    x_stride, out_stride = strides(x)[0], strides(out)[0]
    if n_cols <= WIDEST_ROW:
        cols = triton.next_power_of_2(n_cols)
        rows = max(1, PROGRAM // cols)
        return TritonLaunch(
            softmax_row_fwd,
            (triton.cdiv(n_rows, rows),),
            [x, out, n_rows, n_cols, x_stride, out_stride],
            {"ROWS": rows, "COLS": cols},
            num_warps=8 if cols > 2048 else 4,
        )
    return TritonLaunch(
        softmax_wide_fwd,
        (n_rows,),
        [x, out, n_cols, x_stride, out_stride],
        {"COLS": 4096},
        num_warps=8,
    )
