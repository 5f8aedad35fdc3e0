"""Triton attention: forward, and backward in its split form (dq; dk and dv)."""

import triton
import triton.language as tl


@triton.jit
def attention_fwd(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, scale, n,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """(H, n, D), n a multiple of both tiles; a program has a tile of queries of one head."""
    tile = tl.program_id(0)
    offset = tl.program_id(1).to(tl.int64) * n * D
    query = tile * QUERIES + tl.arange(0, QUERIES)
    d = tl.arange(0, D)
    q = tl.load(q_ptr + offset + query[:, None] * D + d[None, :])
    acc = tl.zeros((QUERIES, D), tl.float32)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    end = (tile + 1) * QUERIES if CAUSAL else n
    for start in range(0, end, KEYS):
        key = start + tl.arange(0, KEYS)
        k = tl.load(k_ptr + offset + key[None, :] * D + d[:, None])
        v = tl.load(v_ptr + offset + key[:, None] * D + d[None, :])
        s = tl.dot(q, k) * (scale * 1.4426950408889634)
        if CAUSAL:
            s = tl.where(query[:, None] >= key[None, :], s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        top = higher
    out = acc / total[:, None]
    tl.store(out_ptr + offset + query[:, None] * D + d[None, :], out.to(out_ptr.dtype.element_ty))
    tl.store(lse_ptr + tl.program_id(1) * n + query, top + tl.log2(total))


@triton.jit
def attention_fwd_descriptors(
    q_ptr, k_ptr, v_ptr, out_ptr, scale, n_heads, n,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, SPECIALISED: tl.constexpr,
):  # fmt: skip
    """Not causal, by tensor descriptors over (H n, D)."""
    rows = n_heads * n
    q_desc = tl.make_tensor_descriptor(q_ptr, [rows, D], [D, 1], [QUERIES, D])
    k_desc = tl.make_tensor_descriptor(k_ptr, [rows, D], [D, 1], [KEYS, D])
    v_desc = tl.make_tensor_descriptor(v_ptr, [rows, D], [D, 1], [KEYS, D])
    o_desc = tl.make_tensor_descriptor(out_ptr, [rows, D], [D, 1], [QUERIES, D])
    first = tl.program_id(1) * n
    row = first + tl.program_id(0) * QUERIES
    q = q_desc.load([row, 0])
    acc = tl.zeros((QUERIES, D), tl.float32)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    for start in tl.range(0, n, KEYS, warp_specialize=SPECIALISED):
        k = k_desc.load([first + start, 0])
        s = tl.dot(q, k.T) * (scale * 1.4426950408889634)
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        v = v_desc.load([first + start, 0])
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        top = higher
    o_desc.store([row, 0], (acc / total[:, None]).to(out_ptr.dtype.element_ty))


@triton.jit
def row_dots(out_ptr, grad_ptr, delta_ptr, n, D: tl.constexpr, ROWS: tl.constexpr):
    """delta = sum over d of out · grad, what softmax's backward subtracts."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = row[:, None] * D + tl.arange(0, D)[None, :]
    out = tl.load(out_ptr + at).to(tl.float32)
    grad = tl.load(grad_ptr + at).to(tl.float32)
    tl.store(delta_ptr + row, tl.sum(out * grad, 1))


@triton.jit
def attention_bwd_keys(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, scale, n,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of keys: the queries in turn, everything transposed."""
    tile = tl.program_id(0)
    offset = tl.program_id(1).to(tl.int64) * n * D
    lse_ptr += tl.program_id(1) * n
    delta_ptr += tl.program_id(1) * n
    key = tile * KEYS + tl.arange(0, KEYS)
    d = tl.arange(0, D)
    k = tl.load(k_ptr + offset + key[:, None] * D + d[None, :])
    v = tl.load(v_ptr + offset + key[:, None] * D + d[None, :])
    dk = tl.zeros((KEYS, D), tl.float32)
    dv = tl.zeros((KEYS, D), tl.float32)
    begin = tile * KEYS // QUERIES * QUERIES if CAUSAL else 0
    for start in range(begin, n, QUERIES):
        query = start + tl.arange(0, QUERIES)
        q_t = tl.load(q_ptr + offset + query[None, :] * D + d[:, None])
        grad = tl.load(grad_ptr + offset + query[:, None] * D + d[None, :])
        s_t = tl.dot(k, q_t) * (scale * 1.4426950408889634)
        p_t = tl.exp2(s_t - tl.load(lse_ptr + query)[None, :])
        if CAUSAL:
            p_t = tl.where(query[None, :] >= key[:, None], p_t, 0.0)
        dv = tl.dot(p_t.to(grad.dtype), grad, dv)
        dp_t = tl.dot(v, tl.trans(grad))
        ds_t = p_t * (dp_t - tl.load(delta_ptr + query)[None, :])
        dk = tl.dot(ds_t.to(q_t.dtype), tl.trans(q_t), dk)
    at = offset + key[:, None] * D + d[None, :]
    tl.store(dk_ptr + at, (dk * scale).to(dk_ptr.dtype.element_ty))
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty))


@triton.jit
def attention_bwd_queries(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, scale, n,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    offset = tl.program_id(1).to(tl.int64) * n * D
    query = tile * QUERIES + tl.arange(0, QUERIES)
    d = tl.arange(0, D)
    at = offset + query[:, None] * D + d[None, :]
    q = tl.load(q_ptr + at)
    grad = tl.load(grad_ptr + at)
    lse = tl.load(lse_ptr + tl.program_id(1) * n + query)
    delta = tl.load(delta_ptr + tl.program_id(1) * n + query)
    dq = tl.zeros((QUERIES, D), tl.float32)
    end = (tile + 1) * QUERIES if CAUSAL else n
    for start in range(0, end, KEYS):
        key = start + tl.arange(0, KEYS)
        k = tl.load(k_ptr + offset + key[:, None] * D + d[None, :])
        v = tl.load(v_ptr + offset + key[:, None] * D + d[None, :])
        s = tl.dot(q, tl.trans(k)) * (scale * 1.4426950408889634)
        p = tl.exp2(s - lse[:, None])
        if CAUSAL:
            p = tl.where(query[:, None] >= key[None, :], p, 0.0)
        dp = tl.dot(grad, tl.trans(v))
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq)
    tl.store(dq_ptr + at, (dq * scale).to(dq_ptr.dtype.element_ty))


@triton.jit
def attention_bwd_atomic(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr, scale, n,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """All three in one pass over the queries (not causal), dq by atomic additions in float32."""
    offset = tl.program_id(1).to(tl.int64) * n * D
    lse_ptr += tl.program_id(1) * n
    delta_ptr += tl.program_id(1) * n
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    d = tl.arange(0, D)
    k = tl.load(k_ptr + offset + key[:, None] * D + d[None, :])
    v = tl.load(v_ptr + offset + key[:, None] * D + d[None, :])
    dk = tl.zeros((KEYS, D), tl.float32)
    dv = tl.zeros((KEYS, D), tl.float32)
    for start in range(0, n, QUERIES):
        query = start + tl.arange(0, QUERIES)
        at = offset + query[:, None] * D + d[None, :]
        q = tl.load(q_ptr + at)
        grad = tl.load(grad_ptr + at)
        s = tl.dot(q, tl.trans(k)) * (scale * 1.4426950408889634)
        p = tl.exp2(s - tl.load(lse_ptr + query)[:, None])
        dv = tl.dot(tl.trans(p.to(grad.dtype)), grad, dv)
        ds = p * (tl.dot(grad, tl.trans(v)) - tl.load(delta_ptr + query)[:, None])
        half = ds.to(q.dtype)
        dk = tl.dot(tl.trans(half), q, dk)
        tl.atomic_add(dq_ptr + at, tl.dot(half, k) * scale)
    at = offset + key[:, None] * D + d[None, :]
    tl.store(dk_ptr + at, (dk * scale).to(dk_ptr.dtype.element_ty))
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty))
