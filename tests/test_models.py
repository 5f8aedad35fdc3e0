"""Models: GPT's start, cache and choices; the autoencoder against PCA; the GAN's losses."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import tiny
from cases import attention, gelu_tanh, normed

import minigrad as mg
from minigrad.data import DataUnavailable, load_digits, pca_error
from minigrad.models import GAN, GPT, Autoencoder, GPTConfig
from minigrad.models.gan import binary_cross_entropy
from minigrad.models.gpt import choose
from minigrad.train.config import AutoencoderTrainConfig
from minigrad.train.images import autoencoder_task

Array = np.ndarray
CONFIG = GPTConfig(vocab_size=50, seq_len=24, n_layers=3, n_heads=4, dim=32)
CACHED = 1e-5  # decoding with a cache against the whole text at once
FORMULA = 2e-6


def tokens(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape)


def livelier(model: GPT) -> GPT:
    """Weights ten times as large, so that logits differ and attention is not flat."""
    with mg.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p *= 10.0
    return model


# ---- GPT ----


def test_gpt_is_its_formula(level: str) -> None:
    """Layer norm before each part, learned positions, tied embeddings: in float64."""
    model = livelier(GPT(CONFIG))
    w = {k: v.astype(np.float64) for k, v in model.state_dict().items()}
    x = tokens(2, 11)

    def norm(h: Array, name: str) -> Array:
        return normed(h, 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(h: Array, name: str) -> Array:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    h = w["token.weight"][x] + w["position.weight"][:11]
    for i in range(CONFIG.n_layers):
        at = f"blocks.{i}"
        qkv = dense(norm(h, f"{at}.norm1"), f"{at}.attention.qkv").reshape(2, 11, 3, 4, 8)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        joined = attention(q, k, v, causal=True).transpose(0, 2, 1, 3).reshape(2, 11, 32)
        h = h + dense(joined, f"{at}.attention.projection")
        inner = gelu_tanh(dense(norm(h, f"{at}.norm2"), f"{at}.feed_forward.expand"))
        h = h + dense(inner, f"{at}.feed_forward.projection")
    logits = norm(h, "norm") @ w["token.weight"].T
    np.testing.assert_allclose(
        model(mg.tensor(x)).numpy(), logits, rtol=FORMULA, atol=FORMULA * np.abs(logits).max()
    )
    targets = np.roll(x, -1, 1)
    targets[:, -1] = -100
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(logs, np.maximum(targets, 0)[..., None], -1)[..., 0]
    expected = -own[targets >= 0].mean()
    assert model.loss(mg.tensor(x), mg.tensor(targets)).item() == pytest.approx(expected, rel=1e-5)


def test_gpt_starts_as_gpt2_does() -> None:
    config = GPTConfig(vocab_size=300, seq_len=64, n_layers=8, n_heads=4, dim=128)
    model = GPT(config)
    residual = 0
    for name, p in model.named_parameters():
        values = p.numpy().astype(np.float64)
        if p.ndim == 1:
            assert (values == (0 if name.endswith("bias") else 1)).all(), name
            continue
        std = 0.02
        if name.endswith("projection.weight"):
            std = 0.02 / math.sqrt(2 * 8)
            residual += 1
        assert values.std() == pytest.approx(std, rel=0.03), name
        assert abs(values.mean()) < 4 * std / math.sqrt(values.size), name
    assert residual == 2 * 8
    loss = model.loss(mg.tensor(tokens(4, 64)), mg.tensor(tokens(4, 64, seed=1)))
    assert loss.item() == pytest.approx(math.log(300), abs=0.1)


def test_embeddings_are_tied() -> None:
    model = GPT(CONFIG)
    inner = 3 * 32 * 33 + 32 * 33 + 4 * 32 * 33 + 32 * (4 * 32 + 1) + 4 * 32
    assert model.n_parameters() == 50 * 32 + 24 * 32 + 3 * inner + 2 * 32
    model(mg.tensor([[1, 1]])).sum().backward()
    grad = model.token.weight.grad
    assert grad is not None
    assert (np.abs(grad.numpy()).sum(1) > 0).all()  # as rows of the output, all of them


def test_a_token_sees_only_what_was_before(level: str) -> None:
    model = livelier(GPT(CONFIG))
    x = tokens(1, 20)
    before = model(mg.tensor(x)).numpy().copy()
    x[0, 12:] = (x[0, 12:] + 1) % 50
    after = model(mg.tensor(x)).numpy()
    np.testing.assert_array_equal(after[:, :12], before[:, :12])
    assert (after[:, 12] != before[:, 12]).any()


@pytest.mark.parametrize("cuts", [[1] * 24, [5, 1, 1, 10, 7], [24]], ids=str)
def test_cached_is_uncached(cuts: list[int], level: str) -> None:
    model = livelier(GPT(CONFIG)).eval()
    x = mg.tensor(tokens(2, 24))
    with mg.no_grad():
        whole = model(x).numpy()
        caches = [mg.nn.KVCache(24) for _ in model.blocks]
        edges = np.cumsum([0, *cuts])
        parts = [model(x[:, int(a) : int(b)], caches).numpy() for a, b in itertools.pairwise(edges)]
    error = np.abs(np.concatenate(parts, 1) - whole).max()
    assert error <= CACHED * max(1.0, float(np.abs(whole).max()))
    with pytest.raises(ValueError, match="GPT: 25 tokens do not fit the context of 24"):
        model(x[:, :1], caches)


def test_generation_is_the_likeliest_token_of_the_whole_text_again_and_again() -> None:
    """By a cache, beyond the context, from whose last half it starts again."""
    model = livelier(GPT(CONFIG)).eval()
    prompt = tokens(5)
    got = model.generate(prompt, 60, temperature=0)
    seen: list[int] = [int(t) for t in prompt]
    window = list(seen)
    with mg.no_grad():
        for _ in range(60):
            if len(window) > 24:
                window = seen[-12:]
            token = int(model(mg.tensor([window])).numpy()[0, -1].argmax())
            seen.append(token)
            window.append(token)
    assert got.tolist() == seen
    told: list[Array] = []
    model.generate(prompt, 7, temperature=0, on_token=told.append)
    assert [token.shape for token in told] == [()] * 7
    assert [int(token) for token in told] == seen[5:12]
    long = tokens(40)
    assert model.generate(long, 3, temperature=0)[:40].tolist() == long.tolist()


def test_generation_is_a_function_of_its_generator_and_leaves_the_mode() -> None:
    model = livelier(GPT(CONFIG))
    model.train()
    prompt = tokens(3)
    a, b, c = (model.generate(prompt, 20, generator=mg.Generator(seed)) for seed in (1, 1, 2))
    assert a.tolist() == b.tolist() != c.tolist()
    assert model.training
    state = mg.manual_seed(0).state_dict()
    model.generate(prompt, 2)
    assert mg.manual_seed(0).state_dict() == state


def test_rows_are_generated_as_each_alone() -> None:
    """The likeliest tokens of every row, beyond the context; and what one stream draws."""
    model = livelier(GPT(CONFIG))
    prompts = tokens(3, 5)
    got = model.generate(prompts, 40, temperature=0)
    assert got.shape == (3, 45)
    assert got.dtype == np.int64
    for row, prompt in zip(got, prompts, strict=True):
        assert row.tolist() == model.generate(prompt, 40, temperature=0).tolist()
    told: list[Array] = []
    options = {"top_k": 20, "top_p": 0.95, "temperature": 1.3}
    drawn = model.generate(prompts, 30, generator=mg.Generator(4), on_token=told.append, **options)
    assert np.array_equal(np.stack(told, 1), drawn[:, 5:])
    assert len({tuple(row) for row in drawn[:, 5:].tolist()}) == 3
    alone = model.generate(prompts[0], 30, generator=mg.Generator(4), **options)
    assert alone.tolist() == drawn[0].tolist()  # whose draws are the first of each stream
    same = model.generate(np.stack([prompts[0]] * 2), 30, generator=mg.Generator(4))
    assert (same[0] != same[1]).any()


def test_generation_leaves_no_trace_of_captured_steps_or_precision() -> None:
    """Under a profile, in bfloat16 and with anomalies looked for, as plainly as otherwise."""
    model = livelier(GPT(CONFIG))
    prompt = tokens(2, 4)
    expected = model.generate(prompt, 12, temperature=0)
    with mg.profile() as profile:
        assert np.array_equal(model.generate(prompt, 12, temperature=0), expected)
    assert profile.rows["attention_cached_fwd"].calls == 12 * CONFIG.n_layers
    with mg.detect_anomaly():
        assert np.array_equal(model.generate(prompt, 12, temperature=0), expected)
    with mg.precision("bf16"):
        half = model.generate(prompt, 12, temperature=0)
        again = model.generate(prompt, 12, temperature=0)
    assert np.array_equal(half, again)
    assert np.array_equal(half[:, :4], prompt)
    assert model.generate(prompt, 0).tolist() == prompt.tolist()


def test_generation_gives_its_memory_back_at_once() -> None:
    model = GPT(CONFIG)
    gc.disable()
    try:
        model.generate(tokens(2, 4), 8)
        before = mg.memory_statistics()
        model.generate(tokens(2, 4), 8)
        after = mg.memory_statistics()
    finally:
        gc.enable()
    assert after["live_bytes"] == before["live_bytes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": np.zeros(0, int)}, "the prompt needs at least one token"),
        ({"prompt": np.zeros((0, 3), int)}, "the prompt needs at least one token"),
        ({"prompt": np.zeros((1, 1, 2), int)}, r"expected a prompt .* got shape \(1, 1, 2\)"),
        ({"prompt": np.zeros(2)}, r"of integers, got shape \(2,\) of float64"),
        ({"prompt": []}, "the prompt needs at least one token"),
        ({"prompt": [[0], [1, 2]]}, r"rows of different lengths: \[\[0\], \[1, 2\]\]"),
        ({"prompt": [50, *[0] * 30]}, r"token 50 is outside the vocabulary, \[0, 50\)"),
        ({"prompt": [[1], [-1]]}, "token -1 is outside the vocabulary"),
        ({"n_tokens": -1}, "n_tokens must be at least 0, got -1"),
        ({"n_tokens": 1.5}, r"n_tokens must be an integer, got 1\.5"),
        ({"n_tokens": 2**44}, "^generate: "),
        ({"temperature": -1.0}, r"temperature must be at least 0, got -1\.0"),
        ({"temperature": math.nan}, "temperature must be at least 0, got nan"),
        ({"temperature": None}, "temperature must be a number, got None"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_k": 1.5}, r"top_k must be an integer, got 1\.5"),
        ({"generator": 0}, "generator must be a Generator, got 0"),
        ({"top_p": 0.0}, r"expected top_p in \(0, 1\], got 0\.0"),
        ({"top_p": 1.1}, r"expected top_p in \(0, 1\], got 1\.1"),
    ],
)
def test_generation_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises((IndexError, MemoryError, TypeError, ValueError), match=message):
        GPT(CONFIG).generate(**({"prompt": tokens(1), "n_tokens": 1} | options))


SIZES = {"vocab_size": 5, "seq_len": 4, "n_layers": 1, "n_heads": 2, "dim": 4}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *[
            (
                partial(GPTConfig, **SIZES | {name: 0}),
                f"GPTConfig: {name} must be at least 1, got 0",
            )
            for name in SIZES
        ],
        (partial(GPTConfig, **SIZES | {"seq_len": -1}), "seq_len must be at least 1, got -1"),
        (partial(GPTConfig, **SIZES | {"dim": 4.0}), r"dim must be an integer, got 4\.0"),
        (partial(GPTConfig, **SIZES | {"n_heads": 3}), "dim 4 is no multiple of n_heads 3"),
        (partial(GPTConfig, **SIZES, dropout=1.0), r"GPTConfig: dropout must be in \[0, 1\)"),
        (partial(GPTConfig, **SIZES, activation="exp"), "GPTConfig: unknown activation 'exp'"),
        (lambda: GPT(SIZES), "GPT: expected a GPTConfig, got {"),
        (lambda: GPT(CONFIG)([1, 2]), r"GPT: expected tokens \(B, T\), got shape \(2,\)"),
        (lambda: Autoencoder([6]), "Autoencoder: expected at least two sizes"),
        (lambda: Autoencoder([6, 0]), "Autoencoder: a size must be at least 1, got 0"),
        (lambda: GAN(0, [2], 3), "GAN: codes must be at least 1, got 0"),
        (lambda: GAN(2, [2, -1], 3), "GAN: hidden must be at least 1, got -1"),
    ],
)
def test_models_that_cannot_be_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# ---- choosing a token ----

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.25, 0.05], np.float32))
DRAWS = (np.arange(2000) + 0.5) / 2000


def shares(**options: float) -> list[float]:
    """How often each token is chosen, over draws spread evenly."""
    picked = choose(np.broadcast_to(LOGITS, (len(DRAWS), 5)), DRAWS, **options)
    return (np.bincount(picked, minlength=5) / len(DRAWS)).tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.25, 0.05]),
        ({"temperature": 0}, [0, 1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.01, 0.16, 0.04, 0.0625, 0.0025]),
        ({"temperature": 2.0}, np.sqrt([0.1, 0.4, 0.2, 0.25, 0.05])),
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 2}, [0, 0.4, 0, 0.25, 0]),
        ({"top_k": 99}, [0.1, 0.4, 0.2, 0.25, 0.05]),
        ({"top_p": 0.39}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.41}, [0, 0.4, 0, 0.25, 0]),
        ({"top_p": 0.7}, [0, 0.4, 0.2, 0.25, 0]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.25, 0.05]),
        ({"top_k": 3, "top_p": 0.7}, [0, 0.4, 0, 0.25, 0]),
        ({"temperature": 0.5, "top_k": 2}, [0, 0.16, 0, 0.0625, 0]),
    ],
)
def test_choices_have_their_probabilities(options: dict[str, float], expected: list[float]) -> None:
    wanted = np.asarray(expected) / np.sum(expected)
    np.testing.assert_allclose(shares(**options), wanted, atol=1e-3)


def test_choices_at_the_edges() -> None:
    def one(logits: Array, draw: float, **options: float) -> int:
        (token,) = choose(logits[None], np.array([draw]), **options)
        return int(token)

    assert one(LOGITS, 0.0) == 1
    assert one(LOGITS, np.nextafter(1.0, 0)) == 4
    assert one(LOGITS, np.nextafter(1.0, 0), top_p=0.7) == 2
    assert one(np.where(np.arange(5) == 2, LOGITS, -np.inf), 0.9) == 2
    assert one(np.array([1e30, 0], np.float32), 0.99, temperature=1e-30) == 0


def test_every_row_is_chosen_by_its_own_logits_and_draw() -> None:
    rng = np.random.default_rng(0)
    logits, draws = rng.standard_normal((50, 7)), rng.random(50)
    together = choose(logits, draws, 0.7, 4, 0.8)
    apart = [int(choose(logits[i : i + 1], draws[i : i + 1], 0.7, 4, 0.8)[0]) for i in range(50)]
    assert together.tolist() == apart


# ---- autoencoder ----


def test_autoencoder_is_its_formula(level: str) -> None:
    model = Autoencoder([6, 5, 2])
    w = {k: v.astype(np.float64) for k, v in model.state_dict().items()}
    x = np.random.default_rng(0).random((7, 6))

    def dense(h: Array, name: str) -> Array:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    h = np.maximum(dense(x, "encoder.layers.0"), 0)
    codes = dense(h, "encoder.layers.2")
    h = np.maximum(dense(codes, "decoder.layers.0"), 0)
    out = 1 / (1 + np.exp(-dense(h, "decoder.layers.2")))
    images = mg.tensor(x, "float32")
    np.testing.assert_allclose(model.encoder(images).numpy(), codes, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(images).numpy(), out, rtol=1e-5, atol=1e-6)
    assert model.loss(images).item() == pytest.approx(((out - x) ** 2).mean(), rel=1e-5)


def test_dense_weights_start_from_glorots_bounds() -> None:
    weight = Autoencoder([300, 200]).encoder[0].weight.numpy()
    bound = math.sqrt(6 / 500)
    assert 0.99 * bound < np.abs(weight).max() <= bound
    assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_autoencoder_beats_pca_with_as_many_codes_on_digits() -> None:
    try:
        images = load_digits()
    except DataUnavailable as error:
        pytest.skip(f"needs the 8 × 8 digits: {error}")
    config = AutoencoderTrainConfig(steps=1500, batch_size=64, hidden=100, codes=8, lr=3e-3)
    task = autoencoder_task(config, images)
    for t in range(config.steps):
        task.step(t)
    linear = pca_error(images.train, images.test, 8)
    assert 0.02 < linear < 0.03
    assert task.evaluate() < 0.85 * linear


# ---- GAN ----


def test_binary_cross_entropy_from_logits_does_not_overflow() -> None:
    logits = np.array([[-200.0], [-3.0], [0.0], [2.0], [200.0]])
    x = mg.tensor(logits, "float64", requires_grad=True)
    for label in (0.0, 1.0):
        x.grad = None
        loss = binary_cross_entropy(x, label)
        loss.backward()
        signs = -logits if label else logits
        assert loss.item() == pytest.approx(np.logaddexp(0, signs).mean(), rel=1e-12)
        p = 1 / (1 + np.exp(-logits))
        assert x.grad is not None
        np.testing.assert_allclose(x.grad.numpy(), (p - label) / 5, rtol=1e-9, atol=1e-15)
    assert binary_cross_entropy(mg.zeros((3, 1)), 1.0).item() == pytest.approx(math.log(2))


def test_gan_losses_teach_each_side_its_own_part() -> None:
    model = GAN(3, [5, 6], 8)
    real = mg.tensor(np.random.default_rng(0).random((4, 8)), "float32")
    codes = mg.randn((4, 3))
    fake = model.generate(codes)
    assert fake.shape == (4, 8)
    assert 0 < fake.numpy().min() < fake.numpy().max() < 1
    logits = [model.discriminator(x).numpy().astype(np.float64) for x in (real, fake)]
    judged = model.discriminator_loss(real, fake)
    expected = (np.logaddexp(0, -logits[0]).mean() + np.logaddexp(0, logits[1]).mean()) / 2
    assert judged.item() == pytest.approx(expected, rel=1e-5)
    judged.backward()
    assert all(p.grad is not None for p in model.discriminator.parameters())
    assert all(p.grad is None for p in model.generator.parameters())
    model.zero_grad()
    made = model.generator_loss(fake)
    assert made.item() == pytest.approx(np.logaddexp(0, -logits[1]).mean(), rel=1e-5)
    made.backward()
    assert all(p.grad is not None for p in model.generator.parameters())


def test_gan_step_moves_both_sides() -> None:
    task = tiny.make(tiny.GAN)
    before = task.model.state_dict()
    loss = task.step(0)
    assert 0 < loss < 5
    for name, array in task.model.state_dict().items():
        assert (array != before[name]).any(), name
