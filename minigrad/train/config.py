"""Typed configurations: their fields are the command line's flags."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


def option(default: Any, text: str, least: float | None = None) -> Any:
    """A field with its help text and the least value that makes sense."""
    return field(default=default, metadata={"help": text, "least": least})


@dataclass(frozen=True)
class TrainConfig:
    """What every training has."""

    data: str = option("", "the data (see each model)")
    out: str = option("", "folder of the run; runs/MODEL unless given")
    steps: int = option(0, "number of optimizer steps", 0)
    minutes: float = option(0.0, "train about this long: measured once, turned into --steps", 0)
    batch_size: int = option(32, "sequences or images a step", 1)
    lr: float = option(1e-3, "highest learning rate")
    seed: int = option(0, "of weights, data order and dropout", 0)
    precision: str = option("fp32", "fp32, or bf16: mixed precision, as mg.precision")
    device: str = option("cpu", "cpu, the one this version trains on")
    eval_every: int = option(0, "steps between held-out losses; a tenth of all unless given", 0)
    resume: bool = option(
        False,
        "go on from the newest whole checkpoint in --out, as it began; with more --steps, longer",
    )
    eager: bool = option(False, "launch every step from Python, not captured; the same numbers")
    json: bool = option(False, "print the result as one JSON object")


@dataclass(frozen=True)
class GPTTrainConfig(TrainConfig):
    """A character-level GPT."""

    data: str = option("shakespeare", "shakespeare, or a text file or folder")
    batch_size: int = option(16, "sequences a step", 1)
    seq_len: int = option(128, "context length", 1)
    n_layers: int = option(4, "blocks", 1)
    n_heads: int = option(4, "attention heads", 1)
    dim: int = option(128, "width", 1)
    dropout: float = option(0.0, "dropout", 0)
    weight_decay: float = option(0.1, "decay of matrices", 0)
    warmup: int = option(100, "steps of linear warm-up", 0)
    clip: float = option(1.0, "largest gradient norm", 0)
    accumulate: int = option(1, "batches summed into one step", 1)
    checkpoint_activations: bool = option(
        False, "less memory: blocks are computed again in backward; same bits"
    )


@dataclass(frozen=True)
class AutoencoderTrainConfig(TrainConfig):
    """A stacked dense autoencoder, trained with Nadam on the mean squared error."""

    data: str = option("mnist5k", "mnist5k, digits, or a folder of IDX files")
    hidden: int = option(100, "width of the hidden layers", 1)
    codes: int = option(30, "width of the code", 1)
    lr: float = option(2e-3, "highest learning rate")
    steps: int = option(6000, "number of optimizer steps", 0)


@dataclass(frozen=True)
class GANTrainConfig(TrainConfig):
    """A dense GAN, trained with RMSprop."""

    data: str = option("mnist5k", "mnist5k, digits, or a folder of IDX files")
    codes: int = option(30, "width of the code", 1)
    lr: float = option(1e-3, "learning rate")
    steps: int = option(8000, "number of optimizer steps", 0)


# the benchmark's sizes, vocabulary included; training takes the data's vocabulary instead
_FIELDS = ("vocab_size", "seq_len", "n_layers", "n_heads", "dim", "batch_size")
SIZES: dict[str, dict[str, int]] = {
    "tiny": dict(zip(_FIELDS, (65, 64, 4, 4, 128, 12), strict=True)),
    "small": dict(zip(_FIELDS, (65, 256, 6, 6, 384, 8), strict=True)),
    "mid": dict(zip(_FIELDS, (8192, 256, 8, 8, 512, 4), strict=True)),
    "gpt2": dict(zip(_FIELDS, (50257, 256, 12, 12, 768, 1), strict=True)),
}


def gpt_preset(name: str) -> GPTTrainConfig:
    """The configuration called `name`: demo, tiny, small, mid or gpt2."""
    if name == "demo":
        return GPTTrainConfig(
            seq_len=128, n_layers=4, n_heads=4, dim=128, batch_size=16, lr=3e-3, minutes=3.0
        )
    if name not in SIZES:
        raise ValueError(f"unknown preset {name!r}; expected demo, {', '.join(SIZES)}")
    size: dict[str, Any] = {k: v for k, v in SIZES[name].items() if k != "vocab_size"}
    rate = {"tiny": 3e-3, "small": 1e-3, "mid": 6e-4, "gpt2": 3e-4}[name]
    return replace(GPTTrainConfig(lr=rate, steps=2000), **size)
