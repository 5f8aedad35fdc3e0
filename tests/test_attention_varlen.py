"""Packed attention: each sequence as attention alone has it, bit for bit, and against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import attention

import minigrad as mg
from minigrad.random import philox_words

Array = np.ndarray

# straddling a tile of 64, one token, none
LENGTHS = [1, 64, 0, 65, 63, 130]
TOLERANCE = {"float32": (2e-6, 5e-6), "float64": (1e-12, 1e-11)}  # forward, gradient


def packed(lengths: list[int], heads: int, seed: int, dtype: str = "float32") -> mg.Tensor:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((sum(lengths), heads, 16)).astype(dtype)
    return mg.tensor(values, requires_grad=True)


def ends(lengths: list[int]) -> Array:
    return np.cumsum([0, *lengths])


def alone(x: Array, cu: Array, b: int) -> Array:
    """Sequence b as (1, H, T, D)."""
    return x[cu[b] : cu[b + 1]].transpose(1, 0, 2)[None]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"window": 20}, {"causal": True, "window": 70}],
    ids=["full", "causal", "band", "causal_window"],
)
def test_against_float64_and_each_sequence_alone(
    options: dict[str, Any], dtype: str, level: str
) -> None:
    more = [n + 3 if n else 0 for n in LENGTHS]
    q, k, v = packed(LENGTHS, 4, 0, dtype), packed(more, 2, 1, dtype), packed(more, 2, 2, dtype)
    g = mg.tensor(np.random.default_rng(3).standard_normal(q.shape).astype(dtype))
    cu_q, cu_k = ends(LENGTHS), ends(more)
    out = mg.attention_varlen(q, k, v, cu_q, cu_k, **options)
    grads = mg.grad(out, [q, k, v], g)
    forward, backward = TOLERANCE[dtype]
    with mg.use_kernels("ref"):
        wide = [t.detach().to("float64").requires_grad_() for t in (q, k, v)]
        exact = mg.attention_varlen(*wide, cu_q, cu_k, **options)
        exact_grads = mg.grad(exact, wide, g.to("float64"))
    np.testing.assert_allclose(out.numpy(), exact.numpy(), 0, forward)
    for got, want in zip(grads, exact_grads, strict=True):
        scale = max(1.0, float(np.abs(want.numpy()).max()))
        np.testing.assert_allclose(got.numpy(), want.numpy(), 0, backward * scale)
    for b, n in enumerate(LENGTHS):
        if n == 0:
            continue
        parts = [
            mg.tensor(alone(t.numpy(), cu, b), requires_grad=True)
            for t, cu in ((q, cu_q), (k, cu_k), (v, cu_k))
        ]
        one = mg.attention(*parts, **options)
        one_grads = mg.grad(one, parts, mg.tensor(alone(g.numpy(), cu_q, b)))
        pairs = [(out, one, cu_q), *zip(grads, one_grads, (cu_q, cu_k, cu_k), strict=True)]
        for got, want, cu in pairs:
            assert alone(got.numpy(), cu, b).tobytes() == want.numpy().tobytes()
        if dtype == "float64":
            plain = attention(*(p.numpy() for p in parts), **options)
            np.testing.assert_allclose(one.numpy(), plain, 0, forward)


def test_equal_lengths_are_a_batch_dropout_included(level: str) -> None:
    for dtype in ("float32", "bfloat16", "float64"):
        results = []
        rng = np.random.default_rng(0)
        arrays = [rng.standard_normal((3 * 70, h, 8)) for h in (4, 2, 2)]
        for varlen in (True, False):
            mg.manual_seed(9)
            leaves = [mg.tensor(a, dtype, requires_grad=True) for a in arrays]
            if varlen:
                out = mg.attention_varlen(*leaves, ends([70] * 3), causal=True, dropout=0.3)
            else:
                batch = [t.reshape(3, 70, t.shape[1], 8).permute(0, 2, 1, 3) for t in leaves]
                out = mg.attention(*batch, causal=True, dropout=0.3)
                out = out.permute(0, 2, 1, 3).reshape(210, 4, 8)
            grads = mg.grad((out * out).sum(), leaves)
            results.append([np.ascontiguousarray(t.numpy()).tobytes() for t in (out, *grads)])
        assert results[0] == results[1]


@pytest.mark.parametrize("lengths", [[3, 5], [4, 6, 8]])
def test_dropout_follows_its_index(lengths: list[int], level: str) -> None:
    """Sequence b's weights come after those of the sequences before it."""
    heads, p = 2, 0.4
    q, k = packed(lengths, heads, 0), packed(lengths, heads, 1)
    v = packed(lengths, heads, 2)
    mg.manual_seed(6)
    out = mg.attention_varlen(q, k, v, ends(lengths), dropout=p).numpy()
    words, first = philox_words(6, 0, heads * sum(n * n for n in lengths)), 0
    for b, n in enumerate(lengths):
        kept = words[first : first + heads * n * n].reshape(heads, n, n) >= int(p * 2**32)
        first += heads * n * n
        x, y, z = (alone(t.numpy(), ends(lengths), b)[0].astype(np.float64) for t in (q, k, v))
        weights = np.exp(x @ y.transpose(0, 2, 1) / 4)
        weights = weights / weights.sum(-1, keepdims=True) * kept / (1 - p)
        np.testing.assert_allclose(alone(out, ends(lengths), b)[0], weights @ z, 0, 2e-6)


def test_views_of_a_packed_projection_are_read_in_place(level: str) -> None:
    qkv = mg.tensor(packed(LENGTHS, 6, 0).numpy(), requires_grad=True)
    cu = mg.tensor(ends(LENGTHS))
    with mg.profile() as p:
        out = mg.attention_varlen(*mg.split(qkv, 3, axis=1), cu, causal=True)
    assert "copy" not in p.rows
    whole = [mg.tensor(x.numpy().copy(), requires_grad=True) for x in mg.split(qkv, 3, axis=1)]
    apart = mg.attention_varlen(*whole, cu, causal=True)
    assert out.numpy().tobytes() == apart.numpy().tobytes()
    (got,) = mg.grad(out.sum(), [qkv])
    want = np.concatenate([g.numpy() for g in mg.grad(apart.sum(), whole)], 1)
    np.testing.assert_array_equal(got.numpy(), want)


def test_no_tokens_and_no_keys() -> None:
    q, none = packed([2, 3], 2, 0), packed([0, 0], 2, 1)
    out = mg.attention_varlen(q, none, none, [0, 2, 5], [0, 0, 0])
    assert not out.numpy().any()
    assert not mg.grad(out.sum(), q)[0].numpy().any()
    assert mg.attention_varlen(none, none, none, [0]).shape == (0, 2, 16)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cu_seqlens_q": [0, 3]}, ValueError, r"rise from 0 to the number of tokens, 5; got \[0"),
        ({"cu_seqlens_q": [0, 4, 2, 5]}, ValueError, "cu_seqlens_q must rise"),
        ({"cu_seqlens_q": [0.0, 5.0]}, TypeError, "must be a vector of int32 or int64"),
        ({"cu_seqlens_k": [0, 2, 5]}, ValueError, "tells 1 sequences and cu_seqlens_k 2"),
        ({"k": mg.zeros((5, 3, 16))}, ValueError, "expected q"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\)"),
        ({"q": mg.zeros((5, 2, 16), "float64")}, TypeError, "share one floating dtype"),
    ],
)
def test_what_does_not_fit_is_named(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    x = packed([5], 2, 0)
    given: dict[str, Any] = {"q": x, "k": x, "v": x, "cu_seqlens_q": [0, 5]} | change
    with pytest.raises(error, match=message):
        mg.attention_varlen(**given)


def test_second_derivative_is_refused() -> None:
    q = packed([5], 2, 0)
    out = mg.attention_varlen(q, q, q, [0, 5])
    with pytest.raises(NotImplementedError, match=r"attention\(..., impl=.composed.\) on each"):
        mg.grad(out.sum(), q, create_graph=True)
