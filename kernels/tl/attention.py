"""Masked multi-head attention forward, in Triton: softmax(q kᵀ · scale + bias, masked) v, a tile of
queries a program, tiles of keys in turn (Dao et al. 2022; Dao 2023).

A running maximum and sum normalise once at the end; exponentials are powers of two, with log2 e
folded into the scale. Tiles of keys that all of a program's queries may see run in a loop without
any masking; the others (the diagonal, a window's edges, the last tile, and all of them where there
is a mask, a bias or dropout) in one that masks.

    causal, Tq = 3, Tk = 5          window = 2, causal          (x: may attend)
    x x x . .                       . x x . .
    x x x x .                       . . x x .
    x x x x x                       . . . x x

A row with every key masked gives zeros and lse = -inf. NaN and infinity in a masked key or value
stop there. Refuses float64, head_dim beyond 256, and head_dim that is not contiguous. float32
products are in full precision (ieee), not tf32.
"""

from __future__ import annotations

import math

import numpy as np
import triton
import triton.language as tl

from minigrad.gpu import TritonLaunch, check_floats, interpreting, strides

from .philox import philox_word

LARGEST_HEAD_DIM = 256


@triton.jit
def _attend(
    acc, top, total, q, query, k_ptr, v_ptr, mask_ptr, bias_ptr, begin, end,
    n_queries, n_keys, k_stride, v_stride, mask_i, mask_j, bias_i, bias_j,
    window, scale, threshold, kept, seed, stream, first_index,
    D: tl.constexpr, DIM: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, DROPOUT: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The keys begin … end - 1 in tiles, into acc (QUERIES, DIM), top and total (QUERIES,)."""
    d = tl.arange(0, DIM)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        rows = key.to(tl.int64)[:, None]
        if MASKED:
            here = (key < n_keys)[:, None] & (d < D)[None, :]
        else:
            here = (d < D)[None, :]
        k = tl.load(k_ptr + rows * k_stride + d[None, :], here, 0.0)
        v = tl.load(v_ptr + rows * v_stride + d[None, :], here, 0.0)
        if UPCAST:  # the interpreter has no bfloat16 arithmetic
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if MASKED:
            position = query[:, None] + (n_keys - n_queries)
            allowed = (key < n_keys)[None, :] & (query < n_queries)[:, None]
            if CAUSAL:
                allowed = allowed & (key[None, :] <= position)
            if WINDOW:
                allowed = allowed & (key[None, :] > position - window)
                if not CAUSAL:
                    allowed = allowed & (key[None, :] < position + window)
            at = query.to(tl.int64)[:, None]
            if mask_ptr is not None:
                seen = tl.load(mask_ptr + at * mask_i + key[None, :] * mask_j, allowed, 0)
                allowed = allowed & (seen != 0)
            if bias_ptr is not None:
                bias = tl.load(bias_ptr + at * bias_i + key[None, :] * bias_j, allowed, 0.0)
                s += bias.to(tl.float32) * 1.4426950408889634
            s = tl.where(allowed, s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        # Where nothing has been seen both are -inf, and their difference would be NaN.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        if DROPOUT:
            index = first_index + query.to(tl.uint64)[:, None] * tl.cast(n_keys, tl.uint64)
            word = philox_word(seed, stream, index + key.to(tl.uint64)[None, :])
            p = tl.where(word >= threshold, p * kept, 0.0)
        if MASKED:
            # A weight of 0 times NaN is NaN, so values that are not finite stay out of the product
            # and reach those queries alone whose weight for them is not 0.
            bad = (tl.abs(v.to(tl.float32)) < float("inf")) == 0
            v = tl.where(bad, 0.0, v).to(v.dtype)
            if tl.sum(bad.to(tl.int32)) > 0:
                hit = tl.dot((p != 0).to(tl.float16), bad.to(tl.float16))
                acc = tl.where(hit > 0, float("nan"), acc)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
        top = higher
    return acc, top, total


@triton.jit
def attention_tile_fwd(
    q_ptr,  # (B, Hq, Tq, D), strides q_b, q_h, q_t, 1
    k_ptr,  # (B, Hkv, Tk, D)
    v_ptr,  # (B, Hkv, Tk, D)
    mask_ptr,  # (B, Hq, Tq, Tk) uint8, 0 = masked, any strides; or None
    bias_ptr,  # (B, Hq, Tq, Tk), any strides; or None
    out_ptr,  # (B, Hq, Tq, D)
    lse_ptr,  # (B, Hq, Tq) float32, contiguous
    rng_ptr,  # [seed, stream] uint64; or None
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t,
    mask_b, mask_h, mask_i, mask_j, bias_b, bias_h, bias_i, bias_j,
    n_heads, n_queries, n_keys, window, scale, threshold, kept,
    GROUP: tl.constexpr,  # query heads that share a key head
    D: tl.constexpr,
    DIM: tl.constexpr,  # a power of two from D on
    QUERIES: tl.constexpr,  # queries a program
    KEYS: tl.constexpr,  # keys a tile
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    DROPOUT: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    # Heavy tiles first: causal rows grow longer towards the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    b = (tl.program_id(1) // n_heads).to(tl.int64)
    h = (tl.program_id(1) % n_heads).to(tl.int64)
    query = tile * QUERIES + tl.arange(0, QUERIES)
    d = tl.arange(0, DIM)
    rows = query.to(tl.int64)[:, None]
    inside = (query < n_queries)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + b * q_b + h * q_h + rows * q_t + d[None, :], inside, 0.0)
    if UPCAST:
        q = q.to(tl.float32)
    k_ptr += b * k_b + (h // GROUP) * k_h
    v_ptr += b * v_b + (h // GROUP) * v_h
    if mask_ptr is not None:
        mask_ptr += b * mask_b + h * mask_h
    if bias_ptr is not None:
        bias_ptr += b * bias_b + h * bias_h
    seed = tl.zeros((), tl.uint64)
    stream = tl.zeros((), tl.uint64)
    if DROPOUT:
        seed = tl.load(rng_ptr)
        stream = tl.load(rng_ptr + 1)
    first_index = ((b * n_heads + h) * n_queries).to(tl.uint64) * tl.cast(n_keys, tl.uint64)

    # Keys that any query of this tile may see, and among them those that all of them see.
    first = tile * QUERIES + (n_keys - n_queries)
    begin = 0
    end = n_keys
    all_seen = n_keys // KEYS * KEYS
    if CAUSAL:
        end = tl.minimum(n_keys, first + QUERIES)
        all_seen = tl.minimum(all_seen, tl.maximum(first + 1, 0) // KEYS * KEYS)
    if WINDOW:
        begin = tl.maximum(first - window + 1, 0) // KEYS * KEYS
        if not CAUSAL:
            end = tl.minimum(n_keys, first + QUERIES + window - 1)
    if WINDOW or DROPOUT or mask_ptr is not None or bias_ptr is not None:
        all_seen = begin

    acc = tl.zeros((QUERIES, DIM), tl.float32)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc, top, total = _attend(
        acc, top, total, q, query, k_ptr, v_ptr, None, None, begin, all_seen,
        n_queries, n_keys, k_t, v_t, 0, 0, 0, 0,
        window, scale, threshold, kept, seed, stream, first_index,
        D, DIM, KEYS, CAUSAL, WINDOW, False, False, UPCAST,
    )  # fmt: skip
    acc, top, total = _attend(
        acc, top, total, q, query, k_ptr, v_ptr, mask_ptr, bias_ptr, all_seen, end,
        n_queries, n_keys, k_t, v_t, mask_i, mask_j, bias_i, bias_j,
        window, scale, threshold, kept, seed, stream, first_index,
        D, DIM, KEYS, CAUSAL, WINDOW, DROPOUT, True, UPCAST,
    )  # fmt: skip

    empty = total == 0
    out = tl.where(empty[:, None], 0.0, acc / tl.where(empty, 1.0, total)[:, None])
    at = out_ptr + b * o_b + h * o_h + rows * o_t + d[None, :]
    tl.store(at, out.to(out_ptr.dtype.element_ty), inside)
    lse = tl.where(empty, float("-inf"), (top + tl.log2(total)) * 0.6931471805599453)
    tl.store(lse_ptr + (b * n_heads + h) * n_queries + query, lse, query < n_queries)


def _tiles(dtype: str, dim: int) -> tuple[int, int, int, int]:
    """Queries, keys, warps and stages: the largest tried whose kernel keeps everything in registers
    on sm_80 and on sm_90, masks, bias, window and dropout included."""
    if dtype == "float32":
        return (32, 32, 8, 2) if dim <= 64 else (32, 16, 4, 2) if dim <= 128 else (16, 16, 4, 2)
    return (64, 32, 4, 2) if dim <= 128 else (32, 32, 8, 2)


def attention_fwd(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None,
    bias: np.ndarray | None,
    out: np.ndarray,
    lse: np.ndarray,
    scale: float,
    causal: bool,
    window: int,
    dropout_p: float,
    rng: np.ndarray | None,
) -> TritonLaunch | None:
    """q (B, Hq, Tq, D), k and v (B, Hkv, Tk, D) → out (B, Hq, Tq, D) and the logarithm of each
    row's sum of exponentials, lse (B, Hq, Tq) float32."""
    if not out.size:
        return None
    dtype = check_floats("attention_fwd", q, k, v, bias, out)
    n_batch, n_heads, n_queries, head_dim = q.shape
    n_keys = k.shape[2]
    if head_dim > LARGEST_HEAD_DIM:
        raise ValueError(
            f"attention_fwd: head_dim {head_dim}; the Triton kernel takes up to {LARGEST_HEAD_DIM}"
        )
    dim = max(16, triton.next_power_of_2(head_dim))
    queries, keys, warps, stages = _tiles(dtype, dim)
    none = (0, 0, 0, 0)
    return TritonLaunch(
        attention_tile_fwd,
        (triton.cdiv(n_queries, queries), n_batch * n_heads),
        [
            q, k, v, mask, bias, out, lse, rng if dropout_p > 0 else None,
            *strides(q)[:3], *strides(k)[:3], *strides(v)[:3], *strides(out)[:3],
            *(none if mask is None else strides(mask)), *(none if bias is None else strides(bias)),
            n_heads, n_queries, n_keys, max(window, 0), scale * math.log2(math.e),
            math.floor(dropout_p * 2**32), 1 / (1 - dropout_p),
        ],
        {
            "GROUP": n_heads // k.shape[1],
            "D": head_dim,
            "DIM": dim,
            "QUERIES": queries,
            "KEYS": keys,
            "CAUSAL": causal,
            "WINDOW": window >= 0,
            "DROPOUT": dropout_p > 0,
            "UPCAST": interpreting(),
        },
        num_warps=warps,
        num_stages=stages,
    )  # fmt: skip
