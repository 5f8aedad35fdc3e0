"""Layers against their formulas; modules: names, groups, state, modes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from cases import attention, gelu_tanh, normed

import minigrad as mg
from minigrad import nn

Array = np.ndarray
TOLERANCE = 2e-6  # float32 layers of unit inputs against float64
TORCH_TOLERANCE = 1e-6


def data(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(actual: mg.Tensor, expected: Array, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.numpy(), expected, rtol=tolerance, atol=tolerance)


def wide(tensor: mg.Tensor | None) -> Array:
    assert tensor is not None
    return tensor.numpy().astype(np.float64)


# ---- layers ----


@pytest.mark.parametrize("activation", [None, "relu", "gelu_tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(activation: str | None, bias: bool, level: str) -> None:
    layer = nn.Linear(5, 3, bias, activation)
    x = data(2, 4, 5)
    expected = x @ wide(layer.weight).T + (wide(layer.bias) if bias else 0)
    apply = {None: lambda v: v, "relu": lambda v: np.maximum(v, 0), "gelu_tanh": gelu_tanh}
    close(layer(mg.tensor(x)), apply[activation](expected))
    assert (layer.bias is not None) == bias


def test_linear_starts_from_torchs_bounds() -> None:
    layer = nn.Linear(400, 300)
    bound = 1 / math.sqrt(400)
    for p in (layer.weight, layer.bias):
        values = wide(p)
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.98 * bound
        assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert wide(layer.weight).std() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    empty = nn.Linear(0, 3)
    assert empty(mg.zeros((2, 0))).tolist() == [[0, 0, 0]] * 2


def test_layers_start_from_what_they_are_given() -> None:
    init = partial(nn.normal, std=0.1)
    mg.manual_seed(1)
    layers = nn.Linear(40, 30, init=init), nn.Embedding(20, 40, init=init)
    attention = nn.MultiheadAttention(
        40, 2, init=init, projection_init=partial(mg.zeros, requires_grad=True)
    )
    mg.manual_seed(1)
    drawn = [init(shape) for shape in ((30, 40), (20, 40), (120, 40))]
    for layer, weight in zip((*layers, attention.qkv), drawn, strict=True):
        assert layer.weight.requires_grad
        assert layer.weight.tolist() == weight.tolist()
    assert layers[0].bias.tolist() == [0] * 30
    assert layers[0].bias.requires_grad
    assert attention.projection.weight.tolist() == [[0] * 40] * 40
    assert wide(drawn[0]).std() == pytest.approx(0.1, rel=0.05)


def test_embedding() -> None:
    layer = nn.Embedding(200, 50)
    close(layer(mg.tensor([[3, 199], [0, 3]])), wide(layer.weight)[[[3, 199], [0, 3]]])
    assert wide(layer.weight).std() == pytest.approx(1, rel=0.03)
    assert wide(layer.weight).mean() == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("residual", [False, True])
def test_norms(residual: bool, level: str) -> None:
    x, r = data(3, 33), data(3, 33, seed=1)
    total = (x + r if residual else x).astype(np.float64)
    for layer, plain in (
        (nn.LayerNorm(33, eps=1e-3), normed(total, 1e-3)),
        (nn.RMSNorm(33, eps=1e-3), total / np.sqrt((total**2).mean(-1, keepdims=True) + 1e-3)),
    ):
        shift = 0.0
        with mg.no_grad():
            layer.weight.copy_(data(33, seed=2))
            if isinstance(layer, nn.LayerNorm):
                assert layer.bias is not None
                layer.bias.copy_(data(33, seed=3))
                shift = wide(layer.bias)
        expected = plain * wide(layer.weight) + shift
        if residual:
            out, summed = layer(mg.tensor(x), mg.tensor(r))
            close(summed, x + r)
        else:
            out = layer(mg.tensor(x))
        close(out, expected)
    assert nn.LayerNorm(3, bias=False).bias is None


def test_dropout_drops_its_share_in_training_only() -> None:
    layer = nn.Dropout(0.25)
    x = mg.ones((400, 500))
    out = layer(x).numpy()
    assert set(np.unique(out).tolist()) == {0.0, np.float32(1 / 0.75)}
    assert (out == 0).mean() == pytest.approx(0.25, abs=0.005)
    assert (layer(x).numpy() != out).any()
    layer.eval()
    assert layer(x) is x
    own = nn.Dropout(0.25, mg.Generator(7))
    again = nn.Dropout(0.25, mg.Generator(7))
    assert (own(x).numpy() == again(x).numpy()).all()
    for p in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"Dropout: p must be in \[0, 1\)"):
            nn.Dropout(p)


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
def test_multihead_attention(n_kv_heads: int, causal: bool, level: str) -> None:
    layer = nn.MultiheadAttention(16, 4, n_kv_heads, causal=causal)
    x = data(2, 9, 16)
    qkv = x @ wide(layer.qkv.weight).T + wide(layer.qkv.bias)
    heads = np.split(qkv.reshape(2, 9, -1, 4).transpose(0, 2, 1, 3), [4, 4 + n_kv_heads], axis=1)
    joined = attention(*heads, causal=causal).transpose(0, 2, 1, 3).reshape(2, 9, 16)
    expected = joined @ wide(layer.projection.weight).T + wide(layer.projection.bias)
    close(layer(mg.tensor(x)), expected)


def test_multihead_attention_hides_what_the_mask_hides() -> None:
    layer = nn.MultiheadAttention(8, 2)
    x = data(1, 6, 8)
    mask = mg.tensor(np.arange(6)[None, None, None] < 4)
    out = layer(mg.tensor(x), mask=mask).numpy()
    x[:, 4:] = np.nan  # in the keys that are hidden, and in queries that nobody asks for
    close(layer(mg.tensor(x), mask=mask)[:, :4], out[:, :4])


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_attention_with_a_cache_is_attention_without(n_kv_heads: int, level: str) -> None:
    layer = nn.MultiheadAttention(16, 4, n_kv_heads, causal=True)
    x = mg.tensor(data(2, 10, 16))
    cache = nn.KVCache(11)
    for _ in range(2):
        assert cache.length == 0
        parts = [layer(x[:, a:b], cache=cache) for a, b in ((0, 4), (4, 5), (5, 10))]
        assert cache.length == 10
        close(mg.concat(parts, 1), layer(x).numpy(), 1e-5)
        assert cache.keys is not None
        memory = cache.keys.numpy().ctypes.data
        cache.reset()
    layer(x, cache=cache)
    assert cache.keys.numpy().ctypes.data == memory


def test_what_a_cache_refuses() -> None:
    layer, x = nn.MultiheadAttention(8, 2, dropout=0.1, causal=True), mg.tensor(data(1, 4, 8))
    with pytest.raises(ValueError, match=r"has no dropout; call eval\(\) first"):
        layer(x, cache=nn.KVCache(4))
    layer.eval()
    cache = nn.KVCache(7)
    layer(x, cache=cache)
    with pytest.raises(ValueError, match="4 tokens after 4 do not fit its capacity of 7"):
        layer(x, cache=cache)
    assert cache.length == 4
    with pytest.raises(NotImplementedError, match="a cache keeps no graph"):
        layer(x[:, :1], cache=cache).sum().backward()
    with pytest.raises(RuntimeError, match="let it see its first tokens before the captured step"):
        mg.capture(lambda x: layer(x, cache=nn.KVCache(4)))(x)


def test_layers_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    pairs = [
        (nn.Linear(12, 7), torch.nn.Linear(12, 7)),
        (nn.LayerNorm(12), torch.nn.LayerNorm(12)),
        (nn.RMSNorm(12), torch.nn.RMSNorm(12, eps=1e-6)),
    ]
    x = data(5, 12)
    for ours, theirs in pairs:
        for name, p in theirs.named_parameters():
            with torch.no_grad():
                p.copy_(torch.from_numpy(data(*p.shape, seed=len(name))))
        ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
        expected = theirs(torch.from_numpy(x)).detach().numpy()
        close(ours(mg.tensor(x)), expected, TORCH_TOLERANCE)


def test_named_activations() -> None:
    x = data(50)
    close(nn.Activation("relu")(mg.tensor(x)), np.maximum(x, 0))
    close(nn.Activation("leaky_relu", 0.2)(mg.tensor(x)), np.where(x > 0, x, 0.2 * x))


# ---- modules ----


class Tied(nn.Module):
    def __init__(self) -> None:
        self.embedding = nn.Embedding(4, 3)
        self.parts = [nn.Linear(3, 3), nn.Sequential(nn.LayerNorm(3), nn.Dropout(0.5))]
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", mg.tensor([2.0]))
        self.note = "no part of the state"

    def forward(self, tokens: mg.Tensor) -> mg.Tensor:
        return self.head(self.parts[1](self.parts[0](self.embedding(tokens)))) * self.scale


NAMES = [
    "embedding.weight", "parts.0.weight", "parts.0.bias", "parts.1.layers.0.weight",
    "parts.1.layers.0.bias",
]  # fmt: skip


def test_names_of_parameters_and_buffers() -> None:
    model = Tied()
    assert [name for name, _ in model.named_parameters()] == NAMES  # the tied one counts once
    assert [name for name, _ in model.named_buffers()] == ["scale"]
    assert model.n_parameters() == 12 + 9 + 3 + 3 + 3
    assert [p.shape for p in model.parameters()] == [(4, 3), (3, 3), (3,), (3,), (3,)]
    assert {name for name, _ in model.modules()} >= {"", "parts.1", "parts.1.layers.1", "head"}


def test_matrices_decay_and_vectors_do_not() -> None:
    model = Tied()
    matrices, vectors = model.parameter_groups(0.3)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    together = {id(p) for g in (matrices, vectors) for p in g["params"]}
    assert together == {id(p) for p in model.parameters()}
    before = model.state_dict()
    for p in model.parameters():
        p.grad = mg.zeros(p.shape)
    mg.optim.AdamW(model.parameter_groups(0.3), lr=0.1).step()
    for name, array in model.state_dict().items():
        shrunk = 1 - 0.1 * 0.3 if array.ndim == 2 else 1
        np.testing.assert_allclose(array, before[name] * shrunk, rtol=1e-6)


def test_state_comes_back_and_is_a_copy() -> None:
    model, other = Tied(), Tied()
    state = model.state_dict()
    assert list(state) == [*NAMES, "scale"]
    other.load_state_dict(state)
    model.eval()
    other.eval()
    tokens = mg.tensor([0, 3, 1])
    assert (model(tokens).numpy() == other(tokens).numpy()).all()
    assert other.head.weight is other.embedding.weight
    state["scale"][...] = 0
    state["embedding.weight"][...] = 0
    assert model.scale.tolist() == [2.0]
    assert np.abs(wide(model.embedding.weight)).min() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": None}, r"missing \['scale'\], unknown \[\]"),
        ({"extra": np.zeros(1)}, r"missing \[\], unknown \['extra'\]"),
        ({"scale": np.zeros(2)}, r"scale has shape \(2,\) in the state and \(1,\) here"),
        ({"scale": np.zeros(1, complex)}, "scale has dtype complex128 in the state"),
    ],
)
def test_a_state_that_does_not_fit_loads_nothing(change: dict[str, Array], message: str) -> None:
    model = Tied()
    before = model.state_dict()
    state = {k: v + 1 for k, v in before.items()} | change
    with pytest.raises(ValueError, match=message):
        model.load_state_dict({k: v for k, v in state.items() if v is not None})
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_loading_between_forward_and_backward_is_noticed() -> None:
    model = Tied()
    loss = model(mg.tensor([0, 1])).sum()
    model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_modes_gradients_and_apply_reach_every_module() -> None:
    model = Tied()
    dropout = model.parts[1][1]
    assert model.training
    assert model.eval() is model
    assert not dropout.training
    model.train()
    assert dropout.training
    model(mg.tensor([0])).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    seen: list[str] = []
    model.apply(lambda m: seen.append(type(m).__name__))
    assert sorted(seen) == sorted(
        ["Tied", "Embedding", "Linear", "Sequential", "LayerNorm", "Dropout", "Linear"]
    )


def test_sequential_and_modules_without_forward() -> None:
    layers = nn.Sequential(nn.Linear(3, 4), nn.Activation("relu"), nn.Linear(4, 2))
    x = mg.tensor(data(5, 3))
    assert len(layers) == 3
    close(layers(x), layers[2](layers[1](layers[0](x))).numpy(), 0)
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()(x)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: nn.Sequential(3), "Sequential: layer 0 must be a module or a function, got 3"),
    (lambda: nn.Sequential([nn.Dropout()]), r"Sequential: layer 0 .*; write nn\.Sequential\(\*"),
    (lambda: nn.Linear(-1, 3), "Linear: in_features must be at least 0, got -1"),
    (lambda: nn.Linear(3, "2"), "Linear: out_features must be an integer, got '2'"),
    (lambda: nn.Linear(3, 2, activation="foo"), "Linear: unknown activation 'foo'; expected None,"),
    (lambda: nn.Embedding(-1, 3), "Embedding: n_embeddings must be at least 0, got -1"),
    (lambda: nn.Embedding(3, -1), "Embedding: dim must be at least 0, got -1"),
    (lambda: nn.LayerNorm(-1), "LayerNorm: dim must be at least 0, got -1"),
    (lambda: nn.LayerNorm((2, 3)), r"LayerNorm: dim must be an integer, got \(2, 3\)"),
    (lambda: nn.LayerNorm(3, math.nan), "LayerNorm: eps must be at least 0, got nan"),
    (lambda: nn.RMSNorm(3.0), r"RMSNorm: dim must be an integer, got 3\.0"),
    (lambda: nn.RMSNorm(3, "a"), "RMSNorm: eps must be a number, got 'a'"),
    (lambda: nn.Dropout(1.0), r"Dropout: p must be in \[0, 1\), got 1\.0"),
    (lambda: nn.Dropout("a"), "Dropout: p must be a number, got 'a'"),
    (lambda: nn.Activation("sys"), "Activation: unknown function 'sys'; expected the name"),
    (lambda: nn.MultiheadAttention(16, 3), "dim 16 is no multiple of n_heads 3"),
    (lambda: nn.MultiheadAttention(8, 0), "MultiheadAttention: n_heads must be at least 1, got 0"),
    (lambda: nn.MultiheadAttention(0, 2), "MultiheadAttention: dim must be at least 1, got 0"),
    (lambda: nn.MultiheadAttention(8, 4, 3), "n_heads 4 is no multiple of n_kv_heads 3"),
    (lambda: nn.MultiheadAttention(8, 4, 0), "n_kv_heads must be at least 1, got 0"),
    (lambda: nn.MultiheadAttention(8, 4, dropout=1), r"Attention: dropout must be in \[0, 1\)"),
    (lambda: nn.MultiheadAttention(8, 4)(mg.ones((2, 8))), r"expected x \(B, T, dim\), got shape"),
    (lambda: nn.KVCache(0), "KVCache: capacity must be at least 1, got 0"),
    (lambda: nn.uniform((2,), "a"), "uniform: bound must be a number, got 'a'"),
    (lambda: nn.normal((2,), None), "normal: std must be a number, got None"),
    (lambda: nn.Module().register_buffer("a", 3), "register_buffer: a must be a tensor, got 3"),
    (lambda: nn.Module().load_state_dict(3), "load_state_dict: expected arrays by name, got 3"),
    (
        lambda: nn.LayerNorm(1).load_state_dict({"weight": [1], "bias": [0]}),
        r"load_state_dict: weight must be an array, got \[1\]; nothing was loaded",
    ),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_modules_that_cannot_be_are_refused_when_they_are_made(case: int) -> None:
    call, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
