"""A small GPT from equal weights and data: every loss of 32 steps, and the tokens that it generates
with a cache, are PyTorch's."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad.models import GPT, GPTConfig

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to train against")

N_STEPS, BATCH = 32, 8
RATE = 3e-4
TOLERANCE = 1e-5  # relative, of every loss; PyTorch's own fused and unfused forms differ by 1.6e-7
CONFIG = GPTConfig(vocab_size=65, seq_len=48, n_layers=3, n_heads=4, dim=64)


def batch(t: int) -> tuple[np.ndarray, np.ndarray]:
    """A walk over the alphabet with noise, so that there is something to learn."""
    rng = np.random.default_rng(t)
    steps = rng.integers(1, 4, (BATCH, CONFIG.seq_len + 1))
    tokens = np.cumsum(steps, axis=1) % CONFIG.vocab_size
    return tokens[:, :-1], tokens[:, 1:]


def model() -> GPT:
    mg.manual_seed(0)
    return GPT(CONFIG)


def their_name(name: str) -> str:
    name = re.sub(r"feed_forward\.projection", "contract", name)
    return re.sub(r"(attention|feed_forward)\.", "", name)


def their_model(ours: GPT) -> Any:
    from minigrad.bench import peer_torch

    config = {
        k: getattr(CONFIG, k) for k in ("vocab_size", "seq_len", "n_layers", "n_heads", "dim")
    }
    theirs: Any = peer_torch.GPT(**config)
    weights = {their_name(k): torch.from_numpy(v) for k, v in ours.state_dict().items()}
    theirs.load_state_dict(weights)  # strict: every name is there
    return theirs


@pytest.fixture(scope="module")
def their_losses() -> list[float]:
    theirs = their_model(model())
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    losses = []
    for t in range(N_STEPS):
        inputs, targets = (torch.from_numpy(a) for a in batch(t))
        optimizer.zero_grad()
        logits = theirs(inputs)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_every_loss_of_32_steps_is_that_of_torch(their_losses: list[float], level: str) -> None:
    ours = model()
    optimizer = mg.optim.AdamW(ours.parameter_groups(0.1), lr=RATE)
    losses = []
    for t in range(N_STEPS):
        inputs, targets = batch(t)
        optimizer.zero_grad()
        loss = ours.loss(mg.tensor(inputs), mg.tensor(targets))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, their_losses, rtol=TOLERANCE)
    assert losses[-1] < losses[0] - 0.2  # and something was learnt


def test_the_likeliest_tokens_are_those_of_torch(level: str) -> None:
    ours = model()
    with mg.no_grad():
        for p in ours.parameters():
            p *= 5.0  # so that logits differ
    prompt = batch(0)[0][:3, :7]
    with torch.inference_mode():
        expected = their_model(ours).generate(torch.tensor(prompt), 40).numpy()
    assert len({tuple(row) for row in expected[:, 7:].tolist()}) == 3
    assert np.array_equal(ours.generate(prompt, 40, temperature=0), expected)
