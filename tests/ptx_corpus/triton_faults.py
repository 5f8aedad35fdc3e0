"""Triton kernels with one planted fault each; the line to be reported carries `# fault`."""

import triton
import triton.language as tl


@triton.jit
def read_outside(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)  # fault
    tl.store(out_ptr + i, x, i < n)


@triton.jit
def write_outside(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, i < n, 0.0)
    tl.store(out_ptr + i, x * 2)  # fault


@triton.jit
def atomic_outside(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, i < n, 0.0)
    tl.atomic_add(out_ptr + i, x)  # fault


@triton.jit
def misaligned(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    odd = (x_ptr.to(tl.pointer_type(tl.int8)) + 2).to(tl.pointer_type(tl.float32))
    x = tl.load(odd + i, i < n - 1, 0.0)  # fault
    tl.store(out_ptr + i, x, i < n)


@triton.jit
def row_outside(x_ptr, out_ptr, n_rows, n_cols, stride, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The mask forgets rows, in one tile of many."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    x = tl.load(x_ptr + row[:, None] * stride + col[None, :], (col < n_cols)[None, :])  # fault
    tl.store(out_ptr + row, tl.sum(x, 1), row < n_rows)


@triton.jit
def _taken(x_ptr, at):
    return tl.load(x_ptr + at)  # fault


@triton.jit
def in_a_function(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, _taken(x_ptr, i * 2), i < n)


@triton.jit
def copies_outside(x_ptr, y_ptr, out_ptr, n, M: tl.constexpr, K: tl.constexpr):
    """Loads of a pipelined product: cp.async on sm_80."""
    row = tl.arange(0, M)
    acc = tl.zeros((M, M), tl.float32)
    for start in range(0, n + K, K):
        col = start + tl.arange(0, K)
        x = tl.load(x_ptr + row[:, None] * n + col[None, :])  # fault
        y = tl.load(y_ptr + row[None, :] * n + col[:, None])  # fault
        acc = tl.dot(x, y, acc)
    tl.store(out_ptr + row[:, None] * M + row[None, :], acc)


@triton.jit
def waits_for_last(flag_ptr, out_ptr):
    if tl.program_id(0) == tl.num_programs(0) - 1:
        tl.atomic_xchg(flag_ptr, 1)
    else:
        while tl.atomic_add(flag_ptr, 0) == 0:  # fault
            pass
    tl.store(out_ptr + tl.program_id(0), 1)


@triton.jit
def lost_lock(lock_ptr, out_ptr):
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:  # fault
        pass
    tl.store(out_ptr + tl.program_id(0), 1)


@triton.jit
def asserts(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, i < n, 0.0)
    tl.device_assert(x > 1e9, "too small")  # fault
    tl.store(out_ptr + i, x, i < n)


@triton.jit
def endless(x_ptr, out_ptr):
    x = tl.load(x_ptr)
    while x < 1e30:  # fault
        x = x * 0.5  # fault
    tl.store(out_ptr, x)
