"""Triton kernels for the rest of the language: atomics, histograms, scans, sorting, gathers."""

import triton
import triton.language as tl


@triton.jit
def atomics(
    x_ptr, at_ptr, sum_ptr, half_ptr, max_ptr, min_ptr, int_ptr, bits_ptr, n, BLOCK: tl.constexpr
):
    """At int_ptr + at: sums; at float arrays: sums, maxima, minima; bits: and, or, xor."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    x = tl.load(x_ptr + i, inside)
    at = tl.load(at_ptr + i, inside)
    tl.atomic_add(sum_ptr + at, x, inside)
    tl.atomic_add(half_ptr + at, (at + 1).to(tl.float16), inside)
    tl.atomic_max(max_ptr + at, x, inside)
    tl.atomic_min(min_ptr + at, x, inside)
    tl.atomic_add(int_ptr + at, i, inside)
    tl.atomic_and(bits_ptr + at, ~(1 << (i & 15)), inside)
    tl.atomic_or(bits_ptr + 8 + at, 1 << (i & 15), inside)
    tl.atomic_xor(bits_ptr + 16 + at, i, inside)


@triton.jit
def locked_sum(x_ptr, out_ptr, lock_ptr, n, BLOCK: tl.constexpr):
    """A spin lock around a plain read, sum and write."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.load(x_ptr + i, i < n, 0.0), 0)
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    tl.store(out_ptr, tl.load(out_ptr) + total)
    tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, 0)


@triton.jit
def histogram(x_ptr, out_ptr, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, i < n, BINS - 1)
    tl.atomic_add(out_ptr + tl.arange(0, BINS), tl.histogram(x, BINS))


@triton.jit
def _times_add(a, b, c, d):
    """x → a x + b, then x → c x + d."""
    return a * c, b * c + d


@triton.jit
def scans(x_ptr, y_ptr, out_ptr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Sums, products, from the end, and a recurrence, along rows; out (5, ROWS, COLS)."""
    at = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    x = tl.load(x_ptr + at)
    y = tl.load(y_ptr + at)
    tl.store(out_ptr + at, tl.cumsum(x, 1))
    tl.store(out_ptr + ROWS * COLS + at, tl.cumprod(y, 1))
    tl.store(out_ptr + 2 * ROWS * COLS + at, tl.cumsum(x, 1, reverse=True))
    tl.store(out_ptr + 3 * ROWS * COLS + at, tl.cumsum(x, 0))
    _, h = tl.associative_scan((y, x), 1, _times_add)
    tl.store(out_ptr + 4 * ROWS * COLS + at, h)


@triton.jit
def sorts(x_ptr, out_ptr, top_ptr, ROWS: tl.constexpr, COLS: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    at = row * COLS + tl.arange(0, COLS)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, tl.sort(x, 1))
    tl.store(top_ptr + row * 8 + tl.arange(0, 8)[None, :], tl.topk(x, 8, 1))


@triton.jit
def reductions(x_ptr, out_ptr, index_ptr, n_cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """out (4, ROWS): sum, max, min, and xor of the bits; index (2, ROWS)."""
    row = tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    inside = (col < n_cols)[None, :] & (row >= 0)[:, None]
    x = tl.load(x_ptr + row[:, None] * n_cols + col[None, :], inside, 0.0)
    tl.store(out_ptr + row, tl.sum(x, 1))
    tl.store(out_ptr + ROWS + row, tl.max(tl.where(inside, x, float("-inf")), 1))
    tl.store(out_ptr + 2 * ROWS + row, tl.min(tl.where(inside, x, float("inf")), 1))
    bits = tl.xor_sum(x.to(tl.int32, bitcast=True) & 0x7FFFFF, 1)
    tl.store(out_ptr + 3 * ROWS + row, bits.to(tl.float32))
    tl.store(index_ptr + row, tl.argmax(tl.where(inside, x, float("-inf")), 1))
    tl.store(index_ptr + ROWS + row, tl.argmin(tl.where(inside, x, float("inf")), 1))


@triton.jit
def gathers(x_ptr, index_ptr, out_ptr, turned_ptr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """out = x taken along columns by index; turned = x transposed, joined with its negation."""
    row = tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, COLS)[None, :]
    x = tl.load(x_ptr + row * COLS + col)
    index = tl.load(index_ptr + row * COLS + col)
    tl.store(out_ptr + row * COLS + col, tl.gather(x, index, 1))
    turned = tl.trans(x)
    both = tl.join(turned, -turned)
    flat = tl.reshape(both, (COLS, 2 * ROWS))
    at = tl.arange(0, COLS)[:, None] * (2 * ROWS) + tl.arange(0, 2 * ROWS)[None, :]
    tl.store(turned_ptr + at, flat)


@triton.jit
def functions(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    x = tl.load(x_ptr + i, inside, 1.0)
    tl.store(out_ptr + i, tl.exp(x), inside)
    tl.store(out_ptr + n + i, tl.log(x), inside)
    tl.store(out_ptr + 2 * n + i, tl.sin(x), inside)
    tl.store(out_ptr + 3 * n + i, tl.cos(x), inside)
    tl.store(out_ptr + 4 * n + i, tl.sqrt(x), inside)
    tl.store(out_ptr + 5 * n + i, tl.rsqrt(x), inside)
    tl.store(out_ptr + 6 * n + i, tl.sigmoid(x), inside)
    tl.store(out_ptr + 7 * n + i, tl.fdiv(1.0, x), inside)
    tl.store(out_ptr + 8 * n + i, tl.div_rn(1.0, x), inside)
    tl.store(out_ptr + 9 * n + i, tl.sqrt_rn(x), inside)
    tl.store(out_ptr + 10 * n + i, tl.floor(x) + tl.ceil(x), inside)
    tl.store(out_ptr + 11 * n + i, tl.erf(x), inside)
    tl.store(out_ptr + 12 * n + i, tl.fma(x, x, x), inside)


@triton.jit
def casts(x_ptr, y_ptr, int8_ptr, half_ptr, bfloat_ptr, int64_ptr, e5_ptr, n, BLOCK: tl.constexpr):
    """float32 x and int64 y through the other types and back."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    x = tl.load(x_ptr + i, inside, 0.0)
    y = tl.load(y_ptr + i, inside, 0)
    tl.store(int8_ptr + i, x.to(tl.int8), inside)
    tl.store(half_ptr + i, x.to(tl.float16) * y.to(tl.float16), inside)
    tl.store(bfloat_ptr + i, x.to(tl.bfloat16) + y.to(tl.bfloat16), inside)
    tl.store(int64_ptr + i, y // 7 + y % 5 + x.to(tl.int64) * 3, inside)
    tl.store(e5_ptr + i, x.to(tl.float8e5).to(tl.float32), inside)


@triton.jit
def says(x_ptr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    tl.device_print("x", x)
    tl.device_assert(x >= 0, "negative")


@triton.jit
def convolution(
    x_ptr, w_ptr, out_ptr, height, width, CHANNELS: tl.constexpr, FILTERS: tl.constexpr,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """3 × 3, same padding, as nine products: x (height, width, CHANNELS), w (3, 3, CHANNELS,
    FILTERS), out (height, width, FILTERS)."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row = pixel // width
    col = pixel % width
    channel = tl.arange(0, CHANNELS)
    f = tl.arange(0, FILTERS)
    acc = tl.zeros((PIXELS, FILTERS), tl.float32)
    for tap in range(9):
        r = row + tap // 3 - 1
        c = col + tap % 3 - 1
        seen = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        x = tl.load(
            x_ptr + ((r * width + c) * CHANNELS)[:, None] + channel[None, :], seen[:, None], 0.0
        )
        w = tl.load(w_ptr + tap * CHANNELS * FILTERS + channel[:, None] * FILTERS + f[None, :])
        acc = tl.dot(x, w, acc)
    at = out_ptr + pixel[:, None] * FILTERS + f[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), (pixel < height * width)[:, None])


@triton.jit
def adam(
    w_ptr, g_ptr, m_ptr, v_ptr, n, rate, beta1, beta2, eps, correction1, correction2,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    g = tl.load(g_ptr + i, inside, 0.0)
    m = beta1 * tl.load(m_ptr + i, inside, 0.0) + (1 - beta1) * g
    v = beta2 * tl.load(v_ptr + i, inside, 0.0) + (1 - beta2) * g * g
    w = tl.load(w_ptr + i, inside, 0.0)
    w -= rate * (m / correction1) / (tl.sqrt(v / correction2) + eps)
    tl.store(w_ptr + i, w, inside)
    tl.store(m_ptr + i, m, inside)
    tl.store(v_ptr + i, v, inside)


@triton.jit
def embedding_bwd(index_ptr, grad_ptr, out_ptr, n, D: tl.constexpr, ROWS: tl.constexpr):
    """Rows of grad added to the rows of out that index names."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, D)
    inside = (row < n)[:, None] & (d >= 0)[None, :]
    index = tl.load(index_ptr + row, row < n, 0)
    grad = tl.load(grad_ptr + row[:, None] * D + d[None, :], inside, 0.0)
    tl.atomic_add(out_ptr + index[:, None] * D + d[None, :], grad, inside)
