"""Products of bfloat16, to the bit, and the linear layer of mixed precision."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import minigrad as mg
from minigrad.dispatch import empty, launch
from minigrad.models import GPT, GPTConfig
from minigrad.ops.linear_bf16 import MAX_PACKED

Array = np.ndarray
BF16 = np.dtype(ml_dtypes.bfloat16)

# Around the edges of tiles (16, 32), micro kernels (4, 6, 14), blocks of K (256) and of rows.
SHAPES = [
    (1, 1, 1), (2, 31, 33), (6, 32, 16), (7, 33, 32), (15, 2, 31), (17, 255, 65), (33, 257, 7),
    (97, 64, 40), (130, 513, 34), (225, 40, 530),
]  # fmt: skip


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def halves(*shape: int, seed: int = 0) -> Array:
    return floats(*shape, seed=seed).astype(BF16)


def product(a: Array, b: Array, dtype: Any = np.float32, bias: Array | None = None) -> Array:
    out = empty((a.shape[0], b.shape[1]), np.dtype(dtype))
    launch("matmul", a, b, bias, out, False)
    return out


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


# ---- the product ----


def chained(a: Array, b: Array, depth: int) -> Array:
    """The sum as every level but AMX has it: k = 1, 0, 3, 2, … in blocks of `depth`. Products of
    two bfloat16 are exact in float32, so a multiply and an add round as a fused one does."""
    total = None
    for k0 in range(0, a.shape[1], depth):
        block = np.zeros((a.shape[0], b.shape[1]), np.float32)
        for k in range(k0, min(k0 + depth, a.shape[1] + 1)):
            if (k ^ 1) < a.shape[1]:
                block += np.outer(a[:, k ^ 1], b[k ^ 1])
        total = block if total is None else total + block
    return total


def tiled(a: Array, b: Array) -> Array:
    """The sum as AMX has it: 32 values of k at a time, the even ones and the odd ones apart."""
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k0 in range(0, a.shape[1], 32):
        sums = np.zeros((2, *total.shape), np.float32)
        for k in range(k0, min(k0 + 32, a.shape[1])):
            sums[k % 2] += np.outer(a[:, k], b[k])
        total += sums[0] + sums[1]
    return total


@pytest.mark.parametrize("shape", SHAPES)
def test_product_has_the_bits_of_its_definition(shape: tuple[int, ...], level: str) -> None:
    m, k, n = shape
    a, b = halves(m, k), halves(k, n, seed=1)
    wide = a.astype(np.float32), b.astype(np.float32)
    depth = 256 if level == "generic" else 512  # kKC in csrc/matmul_kernel.h
    expected = tiled(*wide) if level.startswith("amx") else chained(*wide, depth)
    assert same_bits(product(a, b), expected)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    size = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64))
    assert (np.abs(expected - exact) <= k * 2.0**-24 * size).all()
    assert same_bits(product(a, b, BF16), expected.astype(BF16))


@pytest.mark.parametrize("shape", SHAPES)
def test_product_does_not_depend_on_strides(shape: tuple[int, ...], level: str) -> None:
    m, k, n = shape
    a, b = halves(m, k), halves(k, n, seed=1)
    plain = product(a, b)
    wide = halves(2 * k, 3 * n)
    wide[::2, 1::3] = b
    flipped = np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1]
    for x in (a, np.asfortranarray(a), flipped):
        for y in (b, np.asfortranarray(b), wide[::2, 1::3]):
            assert same_bits(product(x, y), plain)


def test_product_of_rows_does_not_depend_on_their_number(level: str) -> None:
    a, b = halves(300, 520), halves(520, 70, seed=1)
    whole = product(a, b)
    for rows in (1, 2, 5, 15, 16, 17, 31, 32, 33, 95, 96, 97, 129, 225, 299):
        assert same_bits(product(a[:rows], b), whole[:rows]), rows
    assert same_bits(product(a, b[:, :33]), np.ascontiguousarray(whole[:, :33]))


def test_product_of_an_operand_too_large_to_pack_for_all_tasks() -> None:
    """4.3 million elements of columns that are contiguous, by more than 512 columns of b."""
    if mg.levels()[-1] == "generic":
        pytest.skip("takes seconds without vector instructions")
    a, b = np.asfortranarray(halves(4200, 1030)), halves(1030, 530, seed=1)
    whole = product(a, b)
    for rows in (slice(0, 20), slice(2090, 2110), slice(4180, 4200)):
        assert same_bits(product(np.ascontiguousarray(a[rows]), b), whole[rows])


@pytest.mark.parametrize("shape", [(9, 40, 21), (30, 40, 70)], ids=["part", "whole blocks"])
def test_bias_and_accumulation(shape: tuple[int, ...], level: str) -> None:
    m, k, n = shape
    a, b, bias = halves(m, k), halves(k, n, seed=1), floats(n, seed=2)
    plain = product(a, b)
    for dtype in (np.dtype(np.float32), BF16):
        assert same_bits(product(a, b, dtype, bias), (plain + bias).astype(dtype))
        before = halves(m, n, seed=3).astype(dtype)
        out = before.copy()
        launch("matmul", a, b, None, out, True)
        assert same_bits(out, (before.astype(np.float32) + plain).astype(dtype))


def test_batches_and_empty_shapes(level: str) -> None:
    b = halves(40, 21, seed=1)
    batch = halves(5, 3, 40)
    out = (mg.tensor(batch) @ mg.tensor(b)).numpy()
    assert all(same_bits(out[i], product(batch[i], b, BF16)) for i in range(5))
    assert product(halves(3, 0), halves(0, 4)).tolist() == [[0.0] * 4] * 3
    assert product(halves(0, 3), halves(3, 4)).shape == (0, 4)
    assert product(halves(2, 3), halves(3, 0)).shape == (2, 0)


def test_not_finite_values_stay_in_their_rows_and_columns(level: str) -> None:
    a, b = halves(20, 37), halves(37, 35, seed=1)
    clean = product(a, b)
    a[3, 36], b[0, 34] = np.inf, np.nan
    out = product(a, b)
    assert not np.isfinite(out[3]).any()
    assert np.isnan(out[:, 34]).all()
    kept = np.delete(np.delete(out, 3, 0), 34, 1)
    assert same_bits(kept, np.delete(np.delete(clean, 3, 0), 34, 1))


@pytest.mark.parametrize("shape", [(3, 5), (64, 32), (300, 70), (0, 4), (4, 0)])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_packing_follows_its_reference(shape: tuple[int, int], dtype: Any, level: str) -> None:
    k, n = shape
    for b in (floats(k, n).astype(dtype), floats(n, k).astype(dtype).T):
        packed = [empty((-(-n // 32), -(-k // 32) * 16, 32, 2), BF16) for _ in range(2)]
        launch("pack_bf16", b, packed[0])
        with mg.use_kernels("ref"):
            launch("pack_bf16", b, packed[1])
        assert same_bits(*packed)


# ---- the layer ----

ROUNDING = 2.0**-8  # of bfloat16, relative


def leaves(*arrays: Array) -> list[mg.Tensor]:
    return [mg.tensor(a, requires_grad=True) for a in arrays]


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh"])
def test_linear_in_bf16_is_as_near_as_rounding_allows(activation: str | None, level: str) -> None:
    arrays = floats(2, 19, 70), floats(45, 70, seed=1), floats(45, seed=2)
    weights = floats(2, 19, 45, seed=3)
    x, w, b = leaves(*arrays)
    with mg.precision("bf16"):
        out = mg.linear(x, w, b, activation)
    assert out.dtype == BF16
    (out.to("float32") * mg.tensor(weights)).sum().backward()
    exact = leaves(*arrays)
    want = mg.linear(*exact, activation)
    (want * mg.tensor(weights)).sum().backward()
    for got, expected in [
        (out, want),
        *((t.grad, e.grad) for t, e in zip((x, w, b), exact, strict=True)),
    ]:
        difference = got.numpy().astype(np.float64) - expected.numpy()
        assert np.linalg.norm(difference) <= 3 * ROUNDING * np.linalg.norm(expected.numpy())
    assert [t.grad.dtype.name for t in (x, w, b)] == ["float32"] * 3


def test_row_in_bf16_does_not_depend_on_its_batch(level: str) -> None:
    x, w, b = floats(64, 70), floats(45, 70, seed=1), floats(45, seed=2)
    with mg.precision("bf16"):
        whole = mg.linear(x, mg.tensor(w), mg.tensor(b), "gelu").numpy()
        alone = mg.linear(x[:1], mg.tensor(w), mg.tensor(b), "gelu").numpy()
    assert same_bits(alone, whole[:1])


def test_a_changed_weight_is_packed_anew() -> None:
    x, w = floats(3, 40), mg.tensor(floats(5, 40, seed=1), requires_grad=True)

    def fresh() -> Array:
        return mg.linear(x, mg.tensor(w.numpy().copy())).numpy()

    with mg.precision("bf16"):
        before = mg.linear(x, w).numpy()
        assert same_bits(before, fresh())
        ((version, buffer),) = w.storage.packed.values()
        assert same_bits(mg.linear(x, w).numpy(), before)
        assert w.storage.packed == {next(iter(w.storage.packed)): (version, buffer)}
        mg.linear(x, w).sum().backward()
        mg.optim.SGD([w], 0.5).step()
        after = mg.linear(x, w).numpy()
        assert same_bits(after, fresh())
        assert not same_bits(after, before)
        assert next(iter(w.storage.packed.values()))[1] is buffer
        with mg.no_grad():
            w.copy_(0.0)
        assert not mg.linear(x, w).numpy().any()


def test_views_of_one_weight_do_not_share_a_packed_copy() -> None:
    w = mg.tensor(floats(6, 6))
    x = floats(2, 6, seed=1)
    with mg.precision("bf16"):
        for view in (w, mg.swapaxes(w, 0, 1), w[::-1], w[:, ::-1], w[1:4], w[2:5]):
            alone = mg.tensor(view.numpy().copy())
            assert same_bits(mg.linear(x, view).numpy(), mg.linear(x, alone).numpy())


def test_activations_leave_no_packed_copy() -> None:
    x, w = leaves(floats(8, 40), floats(5, 40, seed=1))
    with mg.precision("bf16"):
        mg.linear(x, w).sum().backward()
    assert not x.storage.packed
    assert len(w.storage.packed) == 2  # for forward and for the gradient of x


def test_backward_follows_forward_out_of_the_block() -> None:
    gradients = []
    for inside in (True, False):
        x, w = leaves(floats(8, 40), floats(5, 40, seed=1))
        with mg.precision("bf16"):
            out = mg.linear(x, w)
            if inside:
                out.sum().backward()
        if not inside:
            out.sum().backward()
        gradients.append((x.grad.numpy(), w.grad.numpy()))
    assert all(same_bits(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh"])
def test_second_derivative_in_bf16(activation: str | None) -> None:
    x, w = leaves(floats(6, 9), floats(4, 9, seed=1))

    def second() -> Array:
        out = mg.linear(x, w, None, activation)
        (g,) = mg.grad((out * out).sum(), x, create_graph=True)
        return mg.grad((g * g).sum(), w)[0].numpy().astype(np.float64)

    exact = second()
    with mg.precision("bf16"):
        got = second()
    assert np.linalg.norm(got - exact) <= 8 * ROUNDING * np.linalg.norm(exact)


def test_precision_is_of_its_block() -> None:
    x, w = floats(2, 3), mg.tensor(floats(4, 3))
    with mg.precision("bf16"):
        with mg.precision("fp32"):
            assert mg.linear(x, w).dtype.name == "float32"
        assert mg.linear(x, w).dtype == BF16
    assert mg.linear(x, w).dtype.name == "float32"
    with pytest.raises(ValueError, match=r"precision: unknown 'fp8'; expected one of fp32, bf16"):
        mg.precision("fp8").__enter__()


def test_what_mixed_precision_refuses() -> None:
    x, w = mg.tensor(floats(2, 3)), mg.tensor(floats(4, 3))
    half = w.to("bfloat16")
    with pytest.raises(TypeError, match="linear: operands are float32 and bfloat16"):
        mg.linear(x, half)
    with mg.precision("bf16"):
        assert mg.linear(x.to("bfloat16"), half).dtype == BF16
        with pytest.raises(TypeError, match=r"matmul: operands are float32 and bfloat16"):
            x @ half.T
        with pytest.raises(TypeError, match=r'weight is float64; mg.precision\("bf16"\) takes'):
            mg.linear(x, w.to("float64"))
        with pytest.raises(TypeError, match="bias is bfloat16"):
            mg.linear(x, w, mg.tensor(halves(4)))


def test_norm_of_an_update_and_a_wider_stream(level: str) -> None:
    update, stream = leaves(halves(3, 40), floats(3, 40, seed=1))
    normed, total = mg.layer_norm(update, residual=stream)
    plain = mg.layer_norm(update.to("float32"), residual=stream)
    assert same_bits(normed.numpy(), plain[0].numpy())
    assert same_bits(total.numpy(), plain[1].numpy())
    (normed * total).sum().backward()
    assert (update.grad.dtype, stream.grad.dtype) == (BF16, np.dtype(np.float32))


def test_gpt_learns_in_bf16_as_in_fp32(level: str) -> None:
    """Each loss of 12 steps within 0.02 nats, on tokens that can be learnt; same bits at 1 and 2
    threads."""
    tokens = np.random.default_rng(0).integers(0, 20, 8)[np.arange(4 * 33).reshape(4, 33) % 8]
    losses: dict[Any, list[float]] = {}
    before = mg.num_threads()
    for precision, threads in (("fp32", 2), ("bf16", 2), ("bf16", 1)):
        mg.set_num_threads(threads)
        mg.manual_seed(0)
        model = GPT(GPTConfig(vocab_size=20, seq_len=32, n_layers=2, n_heads=2, dim=32))
        optimizer = mg.optim.AdamW(model.parameters(), lr=3e-3)
        seen = losses[precision, threads] = []
        for _ in range(12):
            optimizer.zero_grad()
            with mg.precision(precision):
                loss = model.loss(mg.tensor(tokens[:, :-1]), mg.tensor(tokens[:, 1:]))
            loss.backward()
            optimizer.step()
            assert loss.dtype.name == "float32"
            seen.append(float(loss.item()))
    mg.set_num_threads(before)
    assert losses["bf16", 1] == losses["bf16", 2]
    assert losses["fp32", 2][-1] < losses["fp32", 2][0] - 1
    np.testing.assert_allclose(losses["bf16", 2], losses["fp32", 2], rtol=0, atol=0.02)


def test_a_storage_keeps_few_packed_copies() -> None:
    weight, x = mg.randn((64, 8)), mg.ones((2, 8))
    with mg.precision("bf16"), mg.no_grad():
        for i in range(50):
            mg.linear(x, weight[i : i + 8])
        assert len(weight.storage.packed) <= MAX_PACKED
        weight *= 2
        mg.linear(x, weight)
    assert len(weight.storage.packed) == 1
