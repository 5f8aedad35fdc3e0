"""Triton matrix products."""

import triton
import triton.language as tl


@triton.jit
def matmul(
    a_ptr, b_ptr, c_ptr, m, n, k, a_m, a_k, b_k, b_n, c_m, c_n,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """c = a b, tiles in groups of rows so that neighbours in time share b."""
    tile = tl.program_id(0)
    n_m = tl.cdiv(m, M)
    n_n = tl.cdiv(n, N)
    in_group = GROUP * n_n
    first = tile // in_group * GROUP
    height = min(n_m - first, GROUP)
    tile_m = first + tile % in_group % height
    tile_n = tile % in_group // height
    row = (tile_m * M + tl.arange(0, M)) % m
    col = (tile_n * N + tl.arange(0, N)) % n
    depth = tl.arange(0, K)
    a_ptrs = a_ptr + row[:, None] * a_m + depth[None, :] * a_k
    b_ptrs = b_ptr + depth[:, None] * b_k + col[None, :] * b_n
    acc = tl.zeros((M, N), tl.float32)
    for step in range(0, tl.cdiv(k, K)):
        a = tl.load(a_ptrs, depth[None, :] < k - step * K, 0.0)
        b = tl.load(b_ptrs, depth[:, None] < k - step * K, 0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        a_ptrs += K * a_k
        b_ptrs += K * b_k
    row = tile_m * M + tl.arange(0, M)
    col = tile_n * N + tl.arange(0, N)
    at = c_ptr + row[:, None] * c_m + col[None, :] * c_n
    tl.store(at, acc.to(c_ptr.dtype.element_ty), (row[:, None] < m) & (col[None, :] < n))


@triton.jit
def matmul_int8(a_ptr, b_ptr, c_ptr, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """int8 (m, k) times int8 (n, k) transposed, summed in int32; sizes are whole tiles."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    col = tl.program_id(1) * N + tl.arange(0, N)
    acc = tl.zeros((M, N), tl.int32)
    for start in range(0, k, K):
        depth = start + tl.arange(0, K)
        a = tl.load(a_ptr + row[:, None] * k + depth[None, :])
        b = tl.load(b_ptr + col[None, :] * k + depth[:, None])
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + row[:, None] * n + col[None, :], acc)


@triton.jit
def matmul_descriptors(
    a_ptr, b_ptr, c_ptr, m, n, k,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """By tensor descriptors made in the kernel; b is (n, k)."""
    a_desc = tl.make_tensor_descriptor(a_ptr, [m, k], [k, 1], [M, K])
    b_desc = tl.make_tensor_descriptor(b_ptr, [n, k], [k, 1], [N, K])
    c_desc = tl.make_tensor_descriptor(c_ptr, [m, n], [n, 1], [M, N])
    tile_m = tl.program_id(0) * M
    tile_n = tl.program_id(1) * N
    acc = tl.zeros((M, N), tl.float32)
    for start in range(0, k, K):
        a = a_desc.load([tile_m, start])
        b = b_desc.load([tile_n, start])
        acc = tl.dot(a, b.T, acc)
    c_desc.store([tile_m, tile_n], acc.to(c_ptr.dtype.element_ty))


@triton.jit
def matmul_specialised(
    a_ptr, b_ptr, c_ptr, m, n, k,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PERSISTENT: tl.constexpr,
):  # fmt: skip
    """The same with loads in warps of their own."""
    a_desc = tl.make_tensor_descriptor(a_ptr, [m, k], [k, 1], [M, K])
    b_desc = tl.make_tensor_descriptor(b_ptr, [n, k], [k, 1], [N, K])
    c_desc = tl.make_tensor_descriptor(c_ptr, [m, n], [n, 1], [M, N])
    n_n = tl.cdiv(n, N)
    if PERSISTENT:
        for tile in tl.range(
            tl.program_id(0), tl.cdiv(m, M) * n_n, tl.num_programs(0), warp_specialize=True
        ):
            acc = tl.zeros((M, N), tl.float32)
            for start in range(0, k, K):
                a = a_desc.load([tile // n_n * M, start])
                b = b_desc.load([tile % n_n * N, start])
                acc = tl.dot(a, b.T, acc)
            c_desc.store([tile // n_n * M, tile % n_n * N], acc.to(c_ptr.dtype.element_ty))
    else:
        tile = tl.program_id(0)
        acc = tl.zeros((M, N), tl.float32)
        for start in tl.range(0, k, K, warp_specialize=True):
            a = a_desc.load([tile // n_n * M, start])
            b = b_desc.load([tile % n_n * N, start])
            acc = tl.dot(a, b.T, acc)
        c_desc.store([tile // n_n * M, tile % n_n * N], acc.to(c_ptr.dtype.element_ty))
