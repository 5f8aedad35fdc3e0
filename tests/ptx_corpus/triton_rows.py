"""Triton kernels over rows: what reads a row, reduces it and writes one."""

import triton
import triton.language as tl


@triton.jit
def vector_add(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, inside)
    y = tl.load(y_ptr + at, inside)
    tl.store(out_ptr + at, x + y, inside)


@triton.jit
def softmax_rows(x_ptr, out_ptr, n_rows, n_cols, x_stride, out_stride, COLS: tl.constexpr):
    """Persistent: a program takes every num_programs-th row."""
    for row in tl.range(tl.program_id(0), n_rows, tl.num_programs(0), num_stages=3):
        col = tl.arange(0, COLS)
        inside = col < n_cols
        x = tl.load(x_ptr + row * x_stride + col, inside, float("-inf")).to(tl.float32)
        e = tl.exp(x - tl.max(x, 0))
        out = e / tl.sum(e, 0)
        tl.store(out_ptr + row * out_stride + col, out.to(out_ptr.dtype.element_ty), inside)


@triton.jit
def layer_norm_fwd(
    x_ptr, w_ptr, b_ptr, out_ptr, mean_ptr, rstd_ptr, stride, n_cols, eps, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    x_ptr += row * stride
    out_ptr += row * stride
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + col, col < n_cols, 0.0).to(tl.float32)
    mean = tl.sum(total, 0) / n_cols
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + col, col < n_cols, 0.0).to(tl.float32)
        x = tl.where(col < n_cols, x - mean, 0.0)
        squares += x * x
    rstd = 1 / tl.sqrt(tl.sum(squares, 0) / n_cols + eps)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = col < n_cols
        w = tl.load(w_ptr + col, inside)
        b = tl.load(b_ptr + col, inside)
        x = tl.load(x_ptr + col, inside, 0.0).to(tl.float32)
        out = (x - mean) * rstd * w + b
        tl.store(out_ptr + col, out.to(out_ptr.dtype.element_ty), inside)


@triton.jit
def layer_norm_bwd_dx(
    dx_ptr, dy_ptr, dw_ptr, db_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, lock_ptr,
    stride, n_cols, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx, and sums of dw and db over the rows of a group, each guarded by a lock: lock_ptr holds
    GROUPS locks and then GROUPS counts, which say whether a group's sums hold anything yet."""
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    inside = col < n_cols
    x = tl.load(x_ptr + row * stride + col, inside, 0).to(tl.float32)
    dy = tl.load(dy_ptr + row * stride + col, inside, 0).to(tl.float32)
    w = tl.load(w_ptr + col, inside, 0).to(tl.float32)
    mean = tl.load(mean_ptr + row)
    rstd = tl.load(rstd_ptr + row)
    normed = tl.where(inside, (x - mean) * rstd, 0.0)
    wdy = tl.where(inside, w * dy, 0.0)
    along = tl.sum(normed * wdy, 0) / n_cols
    level = tl.sum(wdy, 0) / n_cols
    dx = (wdy - (normed * along + level)) * rstd
    tl.store(dx_ptr + row * stride + col, dx.to(dx_ptr.dtype.element_ty), inside)
    dw = dy * normed
    db = dy
    group = row % GROUPS
    lock_ptr += group
    count_ptr = lock_ptr + GROUPS
    dw_ptr += group * n_cols + col
    db_ptr += group * n_cols + col
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    count = tl.load(count_ptr)
    if count == 0:
        tl.atomic_xchg(count_ptr, 1)
    else:
        dw += tl.load(dw_ptr, inside)
        db += tl.load(db_ptr, inside)
    tl.store(dw_ptr, dw, inside)
    tl.store(db_ptr, db, inside)
    tl.debug_barrier()  # all of the sums before the lock is free
    tl.atomic_xchg(lock_ptr, 0)


@triton.jit
def column_sums(
    dw_ptr, db_ptr, dw_out_ptr, db_out_ptr, n_rows, n_cols,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    dw = tl.zeros((ROWS, COLS), tl.float32)
    db = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, n_rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row[:, None] < n_rows) & (col[None, :] < n_cols)
        at = row[:, None] * n_cols + col[None, :]
        dw += tl.load(dw_ptr + at, inside, 0.0)
        db += tl.load(db_ptr + at, inside, 0.0)
    tl.store(dw_out_ptr + col, tl.sum(dw, 0), col < n_cols)
    tl.store(db_out_ptr + col, tl.sum(db, 0), col < n_cols)


@triton.jit
def cross_entropy_fwd_bwd(
    logits_ptr, target_ptr, loss_ptr, n_cols, stride, ignored, BLOCK: tl.constexpr
):
    """The loss of a row, and its gradient in place of the logits; a running maximum and sum."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(target_ptr + row)
    logits_ptr += row * stride
    if target == ignored:
        for start in range(0, n_cols, BLOCK):
            col = start + tl.arange(0, BLOCK)
            tl.store(logits_ptr + col, 0.0, col < n_cols)
        tl.store(loss_ptr + row, 0.0)
        return
    top = float("-inf")
    total = 0.0
    at_target = tl.load(logits_ptr + target).to(tl.float32)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + col, col < n_cols, float("-inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), 0)
        top = higher
    tl.debug_barrier()  # the logit at the target is read by all before it is replaced
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + col, col < n_cols, float("-inf")).to(tl.float32)
        p = tl.exp(x - top) / total
        grad = tl.where(col == target, p - 1.0, p)
        tl.store(logits_ptr + col, grad.to(logits_ptr.dtype.element_ty), col < n_cols)
    tl.store(loss_ptr + row, top + tl.log(total) - at_target)


@triton.jit
def dropout(x_ptr, out_ptr, kept_ptr, n, p, seed, BLOCK: tl.constexpr):
    """Triton's own Philox: 10 rounds, counter = the element's index."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, inside)
    keep = tl.rand(seed, at) > p
    tl.store(out_ptr + at, tl.where(keep, x / (1 - p), 0.0), inside)
    tl.store(kept_ptr + at, keep, inside)


@triton.jit
def random_words(out_ptr, n, seed, BLOCK: tl.constexpr):
    """Philox 4x32-10: four words a counter."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b, c, d = tl.randint4x(seed, at)
    tl.store(out_ptr + at, a, at < n)
    tl.store(out_ptr + n + at, b, at < n)
    tl.store(out_ptr + 2 * n + at, c, at < n)
    tl.store(out_ptr + 3 * n + at, d, at < n)


@triton.jit
def gelu(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, at < n)
    out = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    tl.store(out_ptr + at, out, at < n)
