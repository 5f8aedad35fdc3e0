"""Training the autoencoder and the GAN, with their pictures."""

from __future__ import annotations

import dataclasses
import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import autograd, ops
from minigrad.data import ImageBatches, Images, load_images, pca_error
from minigrad.models import GAN, Autoencoder
from minigrad.optim import Nadam, RMSprop, cosine_schedule
from minigrad.random import Generator
from minigrad.tensor import Tensor
from minigrad.train import plots
from minigrad.train.config import AutoencoderTrainConfig, GANTrainConfig, TrainConfig
from minigrad.train.loop import Task, captured, digest, train


def autoencoder_task(config: AutoencoderTrainConfig, images: Images) -> Task:
    model = Autoencoder([images.train.shape[1], config.hidden, config.codes])
    optimizer = Nadam(model.parameters(), lr=config.lr)
    batches = ImageBatches(images.train, config.batch_size, config.seed)
    schedule = cosine_schedule(0, config.steps, 0.02)
    test = ops.tensor(images.test)

    def update(batch: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        return loss

    launch = captured(update, config)

    def step(t: int) -> float:
        optimizer.lr = config.lr * schedule(t)
        return float(launch(batches.next_batch()).item())

    def evaluate() -> float:
        with autograd.no_grad():
            return float(model.loss(test).item())

    return Task("autoencoder", model, {"model": optimizer}, batches, step, evaluate,
                config.batch_size, "images", {"data": digest(images.train)})  # fmt: skip


def train_autoencoder(config: AutoencoderTrainConfig) -> dict[str, Any]:
    """Trains, prints the error beside PCA's with as many codes, draws reconstructions."""
    run = Path(config.out or "runs/autoencoder")
    read = cache(partial(load_images, config.data))
    made: list[Task] = []

    def make(c: TrainConfig) -> Task:
        assert isinstance(c, AutoencoderTrainConfig)
        made.append(autoencoder_task(c, read()))
        return made[-1]

    result = train(config, make, run, quiet=config.json)
    figures: dict[str, Any] = dataclasses.asdict(result) | {"out": str(run)}
    if result.interrupted:
        return figures
    images = read()
    figures["pca_error"] = pca_error(images.train, images.test, config.codes)
    figures["test_error"] = made[-1].evaluate()
    shown = images.test[:20]
    with autograd.no_grad():
        rebuilt = made[-1].model(ops.tensor(shown)).numpy()
    pairs = np.concatenate([shown[:10], rebuilt[:10], shown[10:], rebuilt[10:]])
    grid = plots.image_grid(run / "reconstructions.png", pairs, images.height, images.width, 10)
    plots.loss_curve(run, "mean squared error")
    (run / "result.json").write_text(json.dumps(figures, indent=1))
    if not config.json:
        print(
            f"error on {len(images.test)} test images: {figures['test_error']:.5f} with "
            f"{config.codes} codes (PCA with as many: {figures['pca_error']:.5f})"
        )
        print(f"reconstructions under their originals: {grid}" if grid else plots.MISSING)
    return figures


def gan_task(config: GANTrainConfig, images: Images) -> Task:
    model = GAN(config.codes, [100, 150], images.train.shape[1])
    judge = RMSprop(model.discriminator.parameters(), lr=config.lr, alpha=0.9, eps=1e-7)
    maker = RMSprop(model.generator.parameters(), lr=config.lr, alpha=0.9, eps=1e-7)
    batches = ImageBatches(images.train, config.batch_size, config.seed)
    test = ops.tensor(images.test)

    def update(real: Tensor) -> tuple[Tensor, Tensor]:
        with autograd.no_grad():
            fake = model.generate(ops.randn((config.batch_size, config.codes)))
        judge.zero_grad()
        loss = model.discriminator_loss(real, fake)
        loss.backward()
        judge.step()
        maker.zero_grad()
        fooled = model.generator_loss(model.generate(ops.randn((config.batch_size, config.codes))))
        fooled.backward()
        maker.step()
        return loss, fooled

    launch = captured(update, config)

    def step(t: int) -> float:
        loss, fooled = launch(batches.next_batch())
        return float(loss.item() + fooled.item())

    def evaluate() -> float:
        """How far the generator is from fooling: its loss against the discriminator on new
        codes."""
        codes = ops.randn((len(images.test), config.codes), generator=Generator(config.seed))
        with autograd.no_grad():
            fake = model.generate(codes)
            return float((model.generator_loss(fake) + model.discriminator_loss(test, fake)).item())

    optimizers = {"discriminator": judge, "generator": maker}
    return Task("gan", model, optimizers, batches, step, evaluate,  # type: ignore[arg-type]
                config.batch_size, "images", {"data": digest(images.train)})  # fmt: skip


def train_gan(config: GANTrainConfig) -> dict[str, Any]:
    """Trains and draws samples."""
    run = Path(config.out or "runs/gan")
    read = cache(partial(load_images, config.data))
    made: list[Task] = []

    def make(c: TrainConfig) -> Task:
        assert isinstance(c, GANTrainConfig)
        made.append(gan_task(c, read()))
        return made[-1]

    result = train(config, make, run, quiet=config.json)
    figures: dict[str, Any] = dataclasses.asdict(result) | {"out": str(run)}
    if result.interrupted:
        return figures
    images, model = read(), made[-1].model
    assert isinstance(model, GAN)
    with autograd.no_grad():
        samples = model.generate(
            ops.randn((60, config.codes), generator=Generator(config.seed))
        ).numpy()
    grid = plots.image_grid(run / "samples.png", samples, images.height, images.width, 10)
    plots.loss_curve(run, "nats")
    (run / "result.json").write_text(json.dumps(figures, indent=1))
    if not config.json:
        print(f"samples: {grid}" if grid else plots.MISSING)
    return figures
