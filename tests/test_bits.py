"""The same bits: across runs, at any number of threads, and for a row whatever the batch around it;
and random numbers that are what their definition says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import CASES, Case, normed, softmax

import minigrad as mg
from minigrad.dispatch import empty, launch
from minigrad.models import GPT
from minigrad.models.gpt import GPTConfig
from minigrad.random import philox_words

Array = np.ndarray

THREADS = (1, 2, 3)
CACHED = 1e-5  # decoding with a cache against the whole context at once, absolute


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    before = mg.num_threads()
    yield
    mg.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def same_bits(a: list[Array], b: list[Array]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()
        for x, y in zip(a, b, strict=True)
    )


def differentiated(op: Callable[..., Any], leaves: list[mg.Tensor]) -> list[Array]:
    """The output and the gradients of its weighted sum, as copies."""
    out = op(*leaves)
    if not out.requires_grad:
        return [out.numpy().copy()]
    weights = np.random.default_rng(1).uniform(0.5, 1.5, out.shape)
    (out * mg.tensor(weights, out.dtype)).sum().backward()
    return [out.numpy().copy(), *(t.grad.numpy().copy() for t in leaves)]


def assert_same_at_any_thread_count(run: Callable[[], list[Array]]) -> None:
    results = []
    for threads in (*THREADS, THREADS[0]):
        mg.set_num_threads(threads)
        mg.manual_seed(5)
        results.append(run())
    for threads, other in zip(THREADS[1:], results[1:], strict=False):
        assert same_bits(results[0], other), f"1 thread and {threads} differ"
    assert same_bits(results[0], results[-1]), "two runs differ"


# Every kernel at a size that is worth more than one thread: (function, shapes).
LARGE: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "elementwise": (lambda a, b: mg.exp(a) * b + mg.tanh(a) / (b * b + 1), ((300, 501), (501,))),
    "where": (lambda a: mg.where(a > 0, a, mg.clip(a, -1, 1)), ((300, 501),)),
    "copy": (lambda a: mg.permute(a, (1, 0)).contiguous(), ((301, 502),)),
    "sum": (lambda a: mg.sum(a), ((400, 1001),)),
    "sum_rows": (lambda a: mg.sum(a, 1), ((400, 1001),)),
    "sum_columns": (lambda a: mg.sum(a, 0), ((4001, 101),)),
    "sum_middle": (lambda a: mg.sum(a, (0, 2)), ((40, 101, 100),)),
    "max": (lambda a: mg.max(a, 0), ((4001, 101),)),
    "prod": (lambda a: mg.prod(a * 0.01 + 1, 1), ((300, 501),)),
    "var": (lambda a: mg.var(a, 0), ((2000, 101),)),
    "norm": (lambda a: mg.norm(a), ((400, 1001),)),
    "cumsum": (lambda a: mg.cumsum(a, 0), ((2000, 101),)),
    "argmax": (lambda a: mg.argmax(a.detach(), 1), ((400, 1001),)),
    "matmul": (mg.matmul, ((170, 1100), (1100, 190))),
    "matmul_few_rows": (mg.matmul, ((3, 700), (700, 2100))),
    "matmul_batch": (mg.matmul, ((9, 65, 70), (9, 70, 33))),
    "linear_gelu": (lambda x, w, b: mg.linear(x, w, b, "gelu"), ((300, 70), (130, 70), (130,))),
    "linear_gelu_tanh": (
        lambda x, w, b: mg.linear(x, w, b, "gelu_tanh"), ((2000, 33), (65, 33), (65,))
    ),
    "softmax": (mg.softmax, ((500, 333),)),
    "log_softmax": (mg.log_softmax, ((500, 333),)),
    "logsumexp": (mg.logsumexp, ((500, 333),)),
    "layer_norm": (mg.layer_norm, ((2000, 130), (130,), (130,))),
    "layer_norm_residual": (
        lambda x, w, b, r: sum(mg.layer_norm(x, w, b, residual=r)),
        ((2000, 130), (130,), (130,), (2000, 130)),
    ),
    "rms_norm": (mg.rms_norm, ((2000, 130), (130,))),
    "attention": (
        lambda q, k, v: mg.attention(q, k, v, causal=True, dropout=0.2),
        ((2, 4, 150, 24), (2, 2, 170, 24), (2, 2, 170, 24)),
    ),
    "attention_packed": (lambda x: mg.attention_packed(x, 4, window=50), ((2, 150, 12, 24),)),
    "attention_varlen": (
        lambda q, k, v: mg.attention_varlen(q, k, v, [0, 1, 150, 150, 170], causal=True,
                                            dropout=0.2),
        ((170, 4, 24), (170, 2, 24), (170, 2, 24)),
    ),
    "embedding": (
        lambda w: mg.embedding(w, mg.tensor(np.random.default_rng(2).integers(0, 50, 3000))),
        ((50, 130),),
    ),
    "cross_entropy": (
        lambda x: mg.cross_entropy(x, mg.tensor(np.arange(2000) % 130), label_smoothing=0.1),
        ((2000, 130),),
    ),
    "linear_cross_entropy": (
        lambda x, w, b: mg.linear_cross_entropy(x, w, mg.tensor(np.arange(600) % 130), b),
        ((600, 33), (130, 33), (130,)),
    ),
    "dropout": (lambda x: mg.dropout(x, 0.3), ((333, 777),)),
    "random": (lambda x: x + mg.randn((333, 777)) + mg.rand((333, 777)), ((333, 777),)),
    "gather": (
        lambda x: x[mg.tensor(np.random.default_rng(3).integers(0, 300, 5000))], ((300, 40),)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_kernel_gives_the_same_bits_at_any_thread_count(name: str, level: str) -> None:
    op, shapes = LARGE[name]
    arrays = [normal(*s, seed=i) for i, s in enumerate(shapes)]
    assert_same_at_any_thread_count(
        lambda: differentiated(op, [mg.tensor(a, requires_grad=True) for a in arrays])
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize(
    "name", ["sum", "sum_columns", "matmul", "softmax", "layer_norm", "attention", "embedding"]
)
def test_other_dtypes_give_the_same_bits_at_any_thread_count(
    name: str, dtype: str, level: str
) -> None:
    op, shapes = LARGE[name]
    arrays = [normal(*s, seed=i) for i, s in enumerate(shapes)]
    assert_same_at_any_thread_count(
        lambda: differentiated(op, [mg.tensor(a, dtype, requires_grad=True) for a in arrays])
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_case_gives_the_same_bits_at_any_thread_count(case: Case, level: str) -> None:
    def run() -> list[Array]:
        leaves = [mg.tensor(a, "float32", requires_grad=True) for a in case.inputs()]
        return differentiated(case.op, leaves)

    assert_same_at_any_thread_count(run)


# ---- a whole model ----


def small_gpt(dropout: float = 0.0) -> GPT:
    mg.manual_seed(0)
    return GPT(GPTConfig(vocab_size=67, seq_len=80, n_layers=2, n_heads=3, dim=72, dropout=dropout))


def tokens(batch: int, length: int) -> mg.Tensor:
    return mg.tensor(np.random.default_rng(8).integers(0, 67, (batch, length)))


def training_steps() -> list[Array]:
    """Loss, gradients and parameters of two steps with dropout, AdamW and clipping."""
    model = small_gpt(dropout=0.1)
    optimizer = mg.optim.AdamW(model.parameter_groups(0.1), lr=1e-3)
    seen: list[Array] = []
    for _ in range(2):
        batch = tokens(6, 71)
        model.zero_grad()
        loss = model.loss(batch[:, :-1], batch[:, 1:])
        loss.backward()
        seen.append(loss.numpy().copy())
        seen.extend(p.grad.numpy().copy() for p in model.parameters())
        optimizer.step(0.5)
        seen.extend(p.numpy().copy() for p in model.parameters())
    return seen


def test_training_step_gives_the_same_bits_at_any_thread_count(level: str) -> None:
    assert_same_at_any_thread_count(training_steps)
    assert all(np.isfinite(x).all() for x in training_steps())


def test_inference_gives_the_same_bits_at_any_thread_count(level: str) -> None:
    def run() -> list[Array]:
        model = small_gpt()
        model.eval()
        with mg.no_grad():
            logits = model(tokens(2, 70)).numpy().copy()
        return [logits, model.generate(np.array([1, 2, 3]), 20)]

    assert_same_at_any_thread_count(run)


# ---- a row in a batch of 64 and in one of 1 ----

BATCH = 64


def like(x: mg.Tensor, *shape: int, seed: int = 0) -> mg.Tensor:
    """Weights in x's dtype."""
    return mg.tensor(normal(*shape, seed=seed), x.dtype)


# x (64, …) → a result whose row i depends on row i of x alone.
ROWS: dict[str, tuple[Callable[[mg.Tensor], mg.Tensor], tuple[int, ...]]] = {
    **{
        f"linear_{k}_{n}": (
            lambda x, k=k, n=n: mg.linear(
                x, like(x, n, k, seed=1), like(x, n, seed=2)
            ),
            (k,),
        )
        for k, n in [(1, 1), (7, 33), (255, 17), (257, 96), (700, 130), (2100, 31)]
    },
    "linear_of_tokens": (lambda x: mg.linear(x, like(x, 130, 70, seed=1)), (5, 70)),
    "linear_gelu": (
        lambda x: mg.linear(
            x, like(x, 37, 70, seed=1), like(x, 37), "gelu_tanh"
        ),
        (70,),
    ),
    "layer_norm": (
        lambda x: mg.layer_norm(x, like(x, 130), like(x, 130, seed=1)),
        (130,),
    ),
    "rms_norm": (lambda x: mg.rms_norm(x, like(x, 130)), (130,)),
    "softmax": (mg.softmax, (1000,)),
    "log_softmax": (mg.log_softmax, (77,)),
    "logsumexp": (lambda x: mg.logsumexp(x, -1, keepdims=True), (77,)),
    "sum": (lambda x: mg.sum(x, 1, keepdims=True), (1000,)),
    "attention": (
        lambda x: mg.attention_packed(x.reshape(x.shape[0], 70, 3, 24), 1, causal=True),
        (70, 72),
    ),
    "attention_window": (
        lambda x: mg.attention_packed(x.reshape(x.shape[0], 70, 4, 18), 2, window=9), (70, 72)
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ROWS)
def test_row_does_not_depend_on_its_batch(name: str, dtype: str, level: str) -> None:
    op, shape = ROWS[name]
    x = mg.tensor(normal(BATCH, *shape, seed=3), dtype)
    whole = op(x).numpy()
    for batch in (1, 2, 5, 25):
        part = op(mg.tensor(x.numpy()[:batch])).numpy()
        assert same_bits([part], [whole[:batch]]), f"a batch of {batch} differs"
    last = op(mg.tensor(x.numpy()[-1:])).numpy()
    assert same_bits([last], [whole[-1:]])


@pytest.mark.parametrize("columns", [2048, 2056, 2049])  # rows begin with a cache line, or do not
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "softmax", "log_softmax"])
def test_row_does_not_depend_on_whether_results_go_past_the_caches(
    name: str, dtype: str, columns: int, level: str
) -> None:
    """As those of 16 MiB and more do, forward and backward."""
    rows = (1 << 24) // (columns * (4 if dtype == "float32" else 2)) + 37
    options = {"weight": like(mg.tensor([0.0], dtype), columns)} if "norm" in name else {}

    def outputs(array: Array, gradient: Array) -> list[Array]:
        x = mg.tensor(array, dtype, requires_grad=True)
        y = getattr(mg, name)(x, **options)
        (dx,) = mg.grad(y, x, mg.tensor(gradient, dtype))
        return [y.numpy(), dx.numpy()]

    x, g = (normal(rows, columns, seed=i) for i in (4, 5))
    whole = outputs(x, g)
    for part in (slice(0, 300), slice(rows - 300, rows)):
        assert same_bits(outputs(x[part], g[part]), [w[part] for w in whole])


@pytest.mark.parametrize("columns", [2048, 2056])
def test_mixed_norm_past_the_caches(columns: int, level: str) -> None:
    """float32 rows, a bfloat16 result; the sums of the parameters' gradients go on beside dx."""
    rows = (1 << 24) // (columns * 2) + 37
    x, g = (mg.tensor(normal(rows, columns, seed=i)) for i in (4, 5))
    weight, bias = (mg.tensor(normal(columns, seed=i), requires_grad=True) for i in (6, 7))

    def outputs(part: slice) -> list[Array]:
        given = mg.tensor(x.numpy()[part], requires_grad=True)
        y = mg.layer_norm(given, weight, bias, dtype="bfloat16")
        grads = mg.grad(y, [given, weight, bias], mg.tensor(g.numpy()[part], "bfloat16"))
        return [y.numpy(), *(t.numpy() for t in grads)]

    whole, wide = outputs(slice(0, rows)), g.to("bfloat16").to("float64").numpy()
    normalised = normed(x.numpy().astype(np.float64), 1e-5)
    for got, exact in zip(whole[2:], ((wide * normalised).sum(0), wide.sum(0)), strict=True):
        assert np.abs(got - exact).max() <= 1e-6 * rows
    part = slice(rows - 300, rows)
    assert same_bits(outputs(part)[:2], [w[part] for w in whole[:2]])


@pytest.mark.parametrize("depth", [520, 1024])  # rows 4 KB apart are packed on AVX-512
@pytest.mark.parametrize("weight", [False, True], ids=["rows", "columns"])
def test_row_of_a_product_does_not_depend_on_the_number_of_rows(
    depth: int, weight: bool, level: str
) -> None:
    """Across the switches of the product: few rows, small work, blocks of rows; with contiguous
    rows of b, and with contiguous columns, as a weight has them."""
    a, b = normal(300, depth), normal(depth, 75, seed=1)  # 75: part of a block on every level
    if weight:
        b = np.asfortranarray(b)
    whole = product(a, b)
    for rows in (*range(1, 34), 56, 57, 96, 97, 224, 225, 299):
        assert same_bits([product(a[:rows], b)], [whole[:rows]]), rows
    columns = product(a, b[:, :13])
    assert same_bits([columns], [np.ascontiguousarray(whole[:, :13])])
    assert same_bits([product(np.asfortranarray(a), b)], [whole])
    bias, before = normal(75, seed=2), normal(300, 75, seed=3)
    added = product(a, b, bias, before)
    for rows in (1, 6, 8, 14, 16, 30, 32):
        part = product(a[:rows], b, bias, before[:rows])
        assert same_bits([part], [added[:rows]]), f"{rows} rows with a bias, added"
    for given in (a, np.asfortranarray(a), a[:7], a[:8]):  # a column alone, as the row it is turned
        for column in (b[:, 4:5], np.ascontiguousarray(b[:, 4:5])):
            assert same_bits([product(given, column)], [whole[: len(given), 4:5].copy()])
            part = product(given, column, None, before[: len(given), 4:5])
            assert same_bits([part], [product(given, b, None, before[: len(given)])[:, 4:5].copy()])
            part = product(given, column, bias[4:5], before[: len(given), 4:5])
            assert same_bits([part], [added[: len(given), 4:5].copy()])


def product(a: Array, b: Array, bias: Array | None = None, before: Array | None = None) -> Array:
    out = empty((a.shape[0], b.shape[1]), np.dtype(np.float32))
    if before is not None:
        out[...] = before
    launch("matmul", a, b, bias, out, before is not None)
    return out


# Bit patterns of float32: every sign, exponent and rounding of the half that bfloat16 drops.
HALVES = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]


def test_rounding_to_bfloat16_is_to_nearest_even(level: str) -> None:
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    bits = (high[:, None] | np.array(HALVES, np.uint32)).ravel()
    x = bits.view(np.float32)
    nan = np.isnan(x)
    rounded = mg.tensor(x).to("bfloat16").numpy()
    with np.errstate(invalid="ignore"):
        expected = x.astype(ml_dtypes.bfloat16)
    assert np.isnan(rounded[nan].astype(np.float32)).all()
    assert same_bits([rounded[~nan]], [expected[~nan]])


def test_gpt_gives_a_row_the_same_bits_in_a_batch_of_64_and_of_1(level: str) -> None:
    model = small_gpt()
    model.eval()
    batch = tokens(BATCH, 20)
    with mg.no_grad():
        whole = model(batch).numpy()
        alone = model(batch[:1]).numpy()
    assert same_bits([alone], [whole[:1]])


def test_decoding_with_a_cache_equals_the_whole_context(level: str) -> None:
    model = small_gpt()
    model.eval()
    batch = tokens(2, 70)
    with mg.no_grad():
        whole = model(batch).numpy()
        caches = [mg.nn.KVCache(70) for _ in model.blocks]
        pieces = [model(batch[:, :40], caches).numpy()]
        pieces += [model(batch[:, t : t + 1], caches).numpy() for t in range(40, 70)]
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=0, atol=CACHED)
    assert np.abs(whole).max() > 0.1


# ---- random numbers: the definition ----


def kept(shape: tuple[int, ...], p: float, seed: int, stream: int) -> Array:
    words = philox_words(seed, stream, int(np.prod(shape)))
    return (words >= np.uint32(int(p * 2**32))).reshape(shape)


def test_philox_words_are_those_of_the_paper() -> None:
    """The known answers of Random123, kat_vectors: philox4x32-10 of zeros."""
    assert philox_words(0, 0, 4).tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, 2**64 - 1])
def test_random_words_follow_the_definition(seed: int, level: str) -> None:
    generator = mg.Generator(seed)
    for stream, n in enumerate((1, 5, 1023, 5001)):
        got = mg.randint(0, 2**32, (n,), generator).numpy()
        assert got.tolist() == philox_words(seed, stream, n).tolist()
    uniform = mg.rand((77,), generator=generator).numpy()
    assert uniform.tolist() == ((philox_words(seed, 4, 77) >> 8) * 2.0**-24).tolist()


def test_normal_numbers_follow_the_definition(level: str) -> None:
    """Box and Muller's: each from two words, the radius by the first, the angle by the second."""
    seed, n = 2**34 + 3, 5001
    words = philox_words(seed, 0, 2 * n) >> 8
    u, v = words[::2] * 2.0**-24, words[1::2] * 2.0**-24
    exact = np.sqrt(-2 * np.log(1 - u)) * np.cos((v - 0.5) * 2 * np.pi)
    drawn = mg.randn((n,), generator=mg.Generator(seed)).numpy()
    np.testing.assert_allclose(drawn, exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_dropout_keeps_what_the_definition_keeps(dtype: str, p: float, level: str) -> None:
    seed = 2**33 + 5
    generator = mg.Generator(seed)
    for stream, shape in enumerate(((1,), (3, 7), (5, 1031), (2, 3, 2048))):
        x = mg.tensor(np.ones(shape), dtype, requires_grad=True)
        view = mg.permute(mg.permute(x, order(x)).contiguous(), order(x))
        out = mg.dropout(view, p, generator)
        stays = kept(shape, p, seed, stream)
        scaled = mg.tensor(np.where(stays, 1 / (1 - p), 0)).to(dtype).numpy()
        assert same_bits([out.numpy()], [scaled])
        out.sum().backward()
        assert same_bits([np.ascontiguousarray(x.grad.numpy())], [scaled])


def order(x: mg.Tensor) -> tuple[int, ...]:
    return tuple(reversed(range(x.ndim)))


def attention_with_dropout(
    form: str, q: Any, k: Any, v: Any, p: float, seed: int, causal: bool = False
) -> mg.Tensor:
    generator = mg.Generator(seed)
    if form == "packed":
        packed = mg.concat([mg.permute(x, (0, 2, 1, 3)) for x in (q, k, v)], 2)
        out = mg.attention_packed(packed, q.shape[1], dropout=p, causal=causal, generator=generator)
        return mg.permute(out, (0, 2, 1, 3))
    return mg.attention(q, k, v, dropout=p, causal=causal, impl=form, generator=generator)


# Keys whose words are whole blocks of four, or not; and queries that do not see all.
ROWS_OF_WORDS = pytest.mark.parametrize(
    ("n", "causal"), [(130, False), (132, False), (132, True), (133, True)]
)


@ROWS_OF_WORDS
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("form", ["fused", "composed", "packed"])
def test_dropout_inside_attention_follows_the_definition(
    form: str, dtype: str, n: int, causal: bool, level: str
) -> None:
    """Equal scores and one-hot values show every weight: word (b, h, i, j) decides."""
    p, seed, shape = 0.3, 2**35 + 1, (2, 3, 70 if form != "packed" else n, n)
    q = mg.zeros(shape, dtype)
    k = mg.zeros((2, 3, n, n), dtype)
    v = mg.tensor(np.broadcast_to(np.eye(n), (2, 3, n, n)), dtype)
    weights = attention_with_dropout(form, q, k, v, p, seed, causal).numpy().astype(np.float64)
    seen = np.tril(np.ones(shape[2:], bool), n - shape[2] if causal else n)
    stays = kept(shape, p, seed, 0) & seen
    assert ((weights != 0) == stays).all()
    exact = np.where(stays, 1 / seen.sum(-1, keepdims=True) / (1 - p), 0)
    np.testing.assert_allclose(weights, exact, rtol=1e-2)


@ROWS_OF_WORDS
@pytest.mark.parametrize("form", ["fused", "composed", "packed"])
def test_gradient_of_attention_uses_the_mask_of_its_dropout(
    form: str, n: int, causal: bool, level: str
) -> None:
    p, seed = 0.3, 11
    q, k, v, g = (normal(1, 2, n, 16, seed=s) for s in range(4))
    leaves = [mg.tensor(x, requires_grad=True) for x in (q, k, v)]
    out = attention_with_dropout(form, *leaves, p, seed, causal)
    out.backward(mg.tensor(g))
    factor = kept((1, 2, n, n), p, seed, 0) / (1 - p)
    hidden = np.triu(np.full((n, n), -np.inf if causal else 0.0), 1)
    weights = softmax(q.astype(np.float64) @ np.swapaxes(k, -1, -2) / 4 + hidden)
    np.testing.assert_allclose(out.numpy(), (weights * factor) @ v, atol=5e-6)
    dv = np.swapaxes(weights * factor, -1, -2) @ g
    d_weights = (g @ np.swapaxes(v, -1, -2)) * factor
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True)) / 4
    expected = (d_scores @ k, np.swapaxes(d_scores, -1, -2) @ q, dv)
    for leaf, exact in zip(leaves, expected, strict=True):
        np.testing.assert_allclose(leaf.grad.numpy(), exact, atol=5e-6)
