"""Attention over a cache against attention over everything at once."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cases import attention

import minigrad as mg
from minigrad import nn

Array = np.ndarray
TOLERANCE = {"float32": 2e-6, "float64": 1e-12, "bfloat16": 2e-2, "float16": 3e-3}


def data(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def projected(b: int, heads: int, t: int, dim: int, dtype: str, seed: int) -> mg.Tensor:
    """(B, H, T, D) as it lies in a projection: heads beside each other."""
    return mg.tensor(data(b, t, heads, dim, seed=seed), dtype).permute(0, 2, 1, 3)


def cached(
    qkv: list[mg.Tensor], cuts: list[int], capacity: int, **options: Any
) -> tuple[Array, nn.KVCache]:
    cache, parts = nn.KVCache(capacity), []
    edges = np.cumsum([0, *cuts])
    for a, b in itertools.pairwise(edges):
        parts.append(cache.attend(*[x[:, :, int(a) : int(b)] for x in qkv], **options).numpy())
    return np.concatenate(parts, 2), cache


# Features around a vector and the block of vectors; lengths around a vector and a tile of keys.
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("dim", [1, 4, 7, 8, 9, 31, 32, 33, 64, 65])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
def test_token_by_token_is_all_at_once(
    heads: int, kv_heads: int, dim: int, dtype: str, level: str
) -> None:
    n = 19
    qkv = [projected(2, h, n, dim, dtype, i) for i, h in enumerate((heads, kv_heads, kv_heads))]
    exact = attention(*[x.numpy().astype(np.float64) for x in qkv], causal=True)
    for cuts in ([1] * n, [5, 1, 1, 12]):
        out, _ = cached(qkv, cuts, n, causal=True)
        np.testing.assert_allclose(
            out.astype(np.float64), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("n", [1, 7, 8, 9, 63, 64, 65, 130])
def test_the_last_of_many_keys(n: int, level: str) -> None:
    qkv = [projected(2, 3, n, 16, "float32", i) for i in range(3)]
    out, _ = cached(qkv, [n - 1, 1] if n > 1 else [1], n + 3)
    exact = attention(*[x.numpy().astype(np.float64) for x in qkv])
    np.testing.assert_allclose(out[:, :, -1], exact[:, :, -1], rtol=2e-6, atol=2e-6)


def test_several_tokens_see_all_of_them_unless_causal(level: str) -> None:
    qkv = [projected(1, 2, 9, 8, "float32", i) for i in range(3)]
    out, _ = cached(qkv, [4, 5], 9)
    exact = attention(*[x.numpy().astype(np.float64) for x in qkv])
    np.testing.assert_allclose(out[:, :, 4:], exact[:, :, 4:], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("n_new", [1, 3])
def test_a_mask_hides_tokens_and_what_lies_behind_is_never_read(n_new: int, level: str) -> None:
    qkv = [projected(2, 2, 6 + n_new, 8, "float32", i) for i in range(3)]
    mask = np.random.default_rng(0).random((2, 1, n_new, 6 + n_new)) < 0.6
    mask[..., 0] = True
    _, cache = cached([x[:, :, :6] for x in qkv], [6], 12)
    for memory in (cache.keys, cache.values):
        assert memory is not None
        memory[:, :, 6:] = np.nan
    out = cache.attend(*[x[:, :, 6:] for x in qkv], mask=mg.tensor(mask)).numpy()
    wide = [x.to("float64") for x in qkv]
    exact = mg.attention(wide[0][:, :, 6:], *wide[1:], mask=mask, impl="composed").numpy()
    np.testing.assert_allclose(out, exact, rtol=2e-6, atol=2e-6)


def test_scores_without_a_meaning_are_as_in_attention(level: str) -> None:
    for bad, index in ((np.inf, 1), (np.nan, 3), (-np.inf, 2)):
        q, k, v = (data(1, 1, 5, 8, seed=i) for i in range(3))
        k[0, 0, index] = bad
        qkv = [mg.tensor(x) for x in (q, k, v)]
        plain = mg.attention(*qkv, causal=True).numpy()
        out, _ = cached(qkv, [1] * 5, 5, causal=True)
        assert np.array_equal(np.isnan(out), np.isnan(plain))


def test_a_row_does_not_depend_on_the_batch_around_it(level: str) -> None:
    qkv = [projected(17, 2, 70, 24, "float32", i) for i in range(3)]
    whole, _ = cached(qkv, [66, 1, 1, 2], 80, causal=True)
    alone, _ = cached([x[:1] for x in qkv], [66, 1, 1, 2], 75, causal=True)
    assert np.array_equal(whole[:1].view(np.int32), alone.view(np.int32))


def test_a_captured_step_decodes_token_after_token(level: str) -> None:
    """Also after a reset, and up to the end of the cache, which a replay must not pass."""
    layer = nn.MultiheadAttention(16, 4, causal=True)
    x = mg.tensor(data(2, 12, 16))
    with mg.no_grad():
        expected = layer(x).numpy()
        cache = nn.KVCache(12)
        layer(x[:, :3], cache=cache)
        step = mg.capture(lambda token: layer(token, cache=cache))
        for _ in range(2):
            for t in range(cache.length, 12):
                out = step(x[:, t : t + 1]).numpy()
                np.testing.assert_allclose(out[:, 0], expected[:, t], rtol=1e-5, atol=1e-6)
            assert cache.length == 12
            with pytest.raises(ValueError, match="1 tokens after 12 do not fit"):
                step(x[:, :1])
            cache.reset()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": (1, 2, 3)}, ValueError, "expected five tensors"),
        ({"v": (1, 2, 3, 5)}, ValueError, "k and v, keys and values"),
        ({"values": (1, 2, 8, 4)}, ValueError, "k and v, keys and values"),
        ({"q": (1, 2, 2, 4)}, ValueError, "the lengths of q and k"),
        ({"q": (2, 2, 3, 4)}, ValueError, "differ from the cache's"),
        ({"keys": (1, 1, 9, 4), "values": (1, 1, 9, 4)}, ValueError, "differ from the cache's"),
        ({"q": (1, 3, 3, 4)}, ValueError, "Hq must be a multiple of Hkv"),
        ({"start": 7}, ValueError, "3 tokens behind 7 do not fit a cache of 9"),
        ({"start": -1}, ValueError, "3 tokens behind -1 do not fit"),
    ],
)
def test_what_does_not_fit_is_told(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    shapes = dict.fromkeys("qkv", (1, 2, 3, 4)) | dict.fromkeys(("keys", "values"), (1, 2, 9, 4))
    start = np.array([change.get("start", 0)])
    shapes |= {name: shape for name, shape in change.items() if name != "start"}
    with pytest.raises(error, match=message):
        mg.attention_cached(*[mg.zeros(shape) for shape in shapes.values()], start)


def test_dtypes_that_differ_are_told() -> None:
    q, cache = mg.zeros((1, 1, 1, 4)), mg.zeros((1, 1, 2, 4), "bfloat16")
    with pytest.raises(TypeError, match="must share one floating dtype; got float32, float32, f"):
        mg.attention_cached(q, q, q, cache, cache, np.zeros(1, np.int64))
