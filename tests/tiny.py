"""What several tests train on: generated text and images, small enough for milliseconds a step."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.data import CharTokenizer, Images, split_tail
from minigrad.train.config import (
    AutoencoderTrainConfig,
    GANTrainConfig,
    GPTTrainConfig,
    TrainConfig,
)
from minigrad.train.gpt import make_task
from minigrad.train.images import autoencoder_task, gan_task
from minigrad.train.loop import Task

WORDS = [
    "the",
    "cat",
    "and",
    "a",
    "dog",
    "went",
    "over",
    "hills",
    "to",
    "see",
    "what",
    "then",
    ".\n",
]

GPT = GPTTrainConfig(
    steps=12, batch_size=4, seq_len=16, n_layers=2, n_heads=2, dim=16, dropout=0.1, lr=1e-2
)
AUTOENCODER = AutoencoderTrainConfig(steps=12, batch_size=8, hidden=12, codes=3)
GAN = GANTrainConfig(steps=12, batch_size=8, codes=3)


def text(n_words: int = 150, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), n_words))


def images(n: int = 60, side: int = 4, seed: int = 0) -> Images:
    rng = np.random.default_rng(seed)
    pixels = rng.random((n, side * side), dtype=np.float32)
    labels = rng.integers(0, 10, n)
    cut = n * 4 // 5
    return Images(pixels[:cut], pixels[cut:], labels[:cut], labels[cut:], side, side)


def make(config: TrainConfig) -> Task:
    """The task of a configuration, on the generated data."""
    if isinstance(config, GPTTrainConfig):
        tokenizer = CharTokenizer(text())
        return make_task(config, tokenizer, *split_tail(tokenizer.encode(text()), config.seq_len))
    if isinstance(config, AutoencoderTrainConfig):
        return autoencoder_task(config, images())
    assert isinstance(config, GANTrainConfig)
    return gan_task(config, images())


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def write_idx_folder(folder: Path, n: int = 60, side: int = 4) -> Path:
    """A folder with the four files of MNIST's format."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for stem, count in (("train", n), ("t10k", n // 4)):
        pixels = rng.integers(0, 256, (count, side, side))
        write_idx(folder / f"{stem}-images-idx3-ubyte", pixels)
        write_idx(folder / f"{stem}-labels-idx1-ubyte", rng.integers(0, 10, count))
    return folder


def command(*args: Any) -> list[str]:
    return [sys.executable, "-m", "minigrad", *map(str, args)]


def minigrad(*args: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a process of its own."""
    return subprocess.run(
        command(*args),
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )


def json_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What was printed, which is one object, on one line, in strict JSON."""
    assert done.stdout.count("\n") == 1

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(done.stdout, parse_constant=refuse)
