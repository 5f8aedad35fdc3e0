"""Pictures of a run: the loss curve, and grids of images. They need matplotlib (`pip install
minigrad[plot]`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

MISSING = "no pictures drawn: matplotlib is not installed (pip install 'minigrad[plot]')"


def can_draw() -> bool:
    """Whether matplotlib is there."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def loss_curve(run: Path, unit: str) -> Path | None:
    """Draws `loss.png` from `metrics.jsonl`; None without matplotlib."""
    if not can_draw():
        return None
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = np.array([r["step"] for r in rows])
    losses = np.array([r["loss"] for r in rows])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    window = max(1, len(rows) // 100)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    axes.plot(steps, losses, color="0.85", linewidth=0.8)
    axes.plot(steps[window - 1 :], smooth, label=f"training (mean of {window})")
    held = [(r["step"], r["held_out_loss"]) for r in rows if "held_out_loss" in r]
    if held:
        axes.plot(*zip(*held, strict=True), "o-", label="held out")
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss ({unit})")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(run / "loss.png", dpi=120)
    return run / "loss.png"


def image_grid(
    path: Path, images: np.ndarray, height: int, width: int, columns: int
) -> Path | None:
    """Draws images (n, height · width) in [0, 1] side by side, dark on white; None without
    matplotlib."""
    if not can_draw():
        return None
    from matplotlib.image import imsave

    rows = -(-len(images) // columns)
    canvas = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1), np.float32)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        canvas[top : top + height, left : left + width] = image.reshape(height, width)
    scale = max(1, 560 // canvas.shape[1])
    imsave(path, 1 - np.kron(canvas, np.ones((scale, scale))), cmap="gray", vmin=0, vmax=1)
    return path
