"""Training a character-level GPT, judging it on the held-out tail, and sampling from it."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import autograd, checkpoint, ops
from minigrad.data import (
    CharTokenizer,
    TokenBatches,
    held_out_windows,
    load_shakespeare,
    load_text,
    split_tail,
    witten_bell,
)
from minigrad.models import GPT, GPTConfig
from minigrad.optim import AdamW, clip_scale, cosine_schedule
from minigrad.random import Generator
from minigrad.tensor import Tensor
from minigrad.train import plots
from minigrad.train.config import GPTTrainConfig, TrainConfig
from minigrad.train.loop import Task, captured, check_config, digest, train

EVAL_BATCHES = 8  # of the tail, for the losses on the way; the last one is over all of it


def load_tokens(config: GPTTrainConfig) -> tuple[CharTokenizer, np.ndarray, np.ndarray]:
    text = load_shakespeare() if config.data == "shakespeare" else load_text(config.data)
    tokenizer = CharTokenizer(text)
    return tokenizer, *split_tail(tokenizer.encode(text), config.seq_len)


def held_out_loss(
    model: GPT, train_part: np.ndarray, tail: np.ndarray, batches: int | None = None
) -> float:
    """Mean nats a token over the tail, each with at least half a context; or over the first
    batches."""
    total = count = 0.0
    with autograd.no_grad():
        windows = held_out_windows(train_part, tail, model.config.seq_len, 32)
        for i, (inputs, targets) in enumerate(windows):
            if batches is not None and i == batches:
                break
            loss = model.loss(ops.tensor(inputs), ops.tensor(targets), reduction="sum")
            total += float(loss.item())
            count += float((targets != -100).sum())
    return total / count


def model_config(config: GPTTrainConfig, vocab_size: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=vocab_size,
        seq_len=config.seq_len,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        dim=config.dim,
        dropout=config.dropout,
    )


def make_task(
    config: GPTTrainConfig, tokenizer: CharTokenizer, train_part: np.ndarray, tail: np.ndarray
) -> Task:
    shape = model_config(config, tokenizer.vocab_size)
    model = GPT(shape, config.checkpoint_activations)
    optimizer = AdamW(model.parameter_groups(config.weight_decay), lr=config.lr, betas=(0.9, 0.99))
    batches = TokenBatches(train_part, config.seq_len, config.batch_size, config.seed)
    schedule = cosine_schedule(min(config.warmup, config.steps // 10 + 1), config.steps, 0.1)
    parameters = model.parameters()

    def update(*arrays: Tensor) -> list[Tensor]:
        """One step from inputs and targets of every batch in turn; a loss each."""
        optimizer.zero_grad()
        losses = []
        for inputs, targets in zip(arrays[::2], arrays[1::2], strict=True):
            loss = model.loss(inputs, targets)
            if config.accumulate > 1:
                loss = loss * (1 / config.accumulate)
            loss.backward()
            losses.append(loss)
        optimizer.step(clip_scale(parameters, config.clip) if config.clip > 0 else 1.0)
        return losses

    launch = captured(update, config)

    def step(t: int) -> float:
        optimizer.lr = config.lr * schedule(t)
        arrays = [array for _ in range(config.accumulate) for array in batches.next_batch()]
        return sum(float(loss.item()) for loss in launch(*arrays))

    return Task(
        name="gpt",
        model=model,
        optimizers={"model": optimizer},
        batches=batches,
        step=step,
        evaluate=lambda: held_out_loss(model, train_part, tail, EVAL_BATCHES),
        units=config.batch_size * config.seq_len * config.accumulate,
        unit="tokens",
        extra={
            "tokenizer": tokenizer.to_json(),
            "gpt": dataclasses.asdict(shape),
            "data": digest(train_part),
        },
    )


def train_gpt(config: GPTTrainConfig) -> dict[str, Any]:
    """Trains, prints the held-out loss beside the 5-gram's and a sample; returns the figures."""
    run = Path(config.out or "runs/gpt")
    say = (lambda *_: None) if config.json else print
    check_config(config)
    model_config(config, 1)  # refuses what does not fit together before the data is read

    @cache
    def data() -> tuple[CharTokenizer, np.ndarray, np.ndarray]:
        tokenizer, train_part, tail = load_tokens(config)
        say(
            f"{config.data}: {len(train_part):,} characters to train on, {len(tail):,} held out, "
            f"{tokenizer.vocab_size} different ones"
        )
        return tokenizer, train_part, tail

    def make(c: TrainConfig) -> Task:
        assert isinstance(c, GPTTrainConfig)
        return make_task(c, *data())

    result = train(config, make, run, quiet=config.json)
    figures: dict[str, Any] = dataclasses.asdict(result) | {"out": str(run)}
    if result.interrupted:
        say(f"saved in {run}; go on with --resume")
        return figures
    _, train_part, tail = data()
    model, tokenizer = load_gpt(run)
    figures["held_out_loss"] = held_out_loss(model, train_part, tail)
    figures["five_gram_loss"] = witten_bell(train_part, tail, tokenizer.vocab_size)
    say(
        f"held-out loss over the whole tail: {figures['held_out_loss']:.4f} nats a character "
        f"(Witten-Bell 5-gram on the same split: {figures['five_gram_loss']:.4f})"
    )
    drawn = plots.loss_curve(run, "nats a character")
    say(
        f"checkpoint and metrics in {run}"
        + (f", loss curve in {drawn}" if drawn else f"; {plots.MISSING}")
    )
    newline = "\n" if "\n" in tokenizer.characters else tokenizer.characters[0]
    prompt = tokenizer.encode(newline)
    sample = model.generate(
        prompt, 600, temperature=0.8, top_p=0.95, generator=Generator(config.seed)
    )
    figures["sample"] = tokenizer.decode(sample[1:])
    say(f"\n--- a sample ---\n{figures['sample']}")
    (run / "result.json").write_text(json.dumps(figures, indent=1))
    return figures


def load_gpt(run: str | Path) -> tuple[GPT, CharTokenizer]:
    """The best checkpoint of a run (or the checkpoint folder itself) as a model in eval mode."""
    path = Path(run)
    folder = path if (path / checkpoint.MANIFEST).exists() else checkpoint.best(path)
    if folder is None:
        raise checkpoint.CheckpointError(
            f"{path}: no whole checkpoint; train one with --out {path}"
        )
    arrays, state = checkpoint.load_checkpoint(folder)
    if state["task"] != "gpt":
        raise checkpoint.CheckpointError(f"{folder}: holds a {state['task']}, not a gpt")
    model = GPT(GPTConfig(**state["extra"]["gpt"]))
    model.load_state_dict(arrays["model"])
    model.eval()
    return model, CharTokenizer.from_json(state["extra"]["tokenizer"])
