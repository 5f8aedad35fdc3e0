"""Checkpoints: one folder a step, whole or not there at all.

A folder holds safetensors files, `state.json` and `manifest.json` with the SHA-256 of each. It is
written under a temporary name, synced, renamed, and its parent synced; so whenever the process is
killed, the newest whole checkpoint is still there, and `latest` skips any that its manifest does
not confirm.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.weights import load_weights, save_weights

MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or does not fit; the message says which."""


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_checkpoint(
    run: Path, step: int, arrays: dict[str, dict[str, np.ndarray]], state: dict[str, Any]
) -> Path:
    """Writes `run/checkpoint-STEP` with a safetensors file for each entry of `arrays`."""
    run.mkdir(parents=True, exist_ok=True)
    final = run / f"checkpoint-{step:08d}"
    partial = run / f".partial-{step:08d}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for name, tensors in arrays.items():
            save_weights(partial / f"{name}.safetensors", tensors)
        (partial / "state.json").write_text(json.dumps(state, indent=1))
        hashes = {p.name: _digest(p) for p in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps({"step": step, "sha256": hashes}, indent=1))
        for path in partial.iterdir():
            _sync(path)
        _sync(partial)
        if final.exists():  # the same step again, after a resume
            shutil.rmtree(final)
        os.rename(partial, final)
        _sync(run)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def is_whole(folder: Path) -> bool:
    """Whether every file of the manifest is there with its hash."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())["sha256"]
        return all(_digest(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def checkpoints(run: Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first, whole or not."""
    return sorted(run.glob("checkpoint-[0-9]*"))


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint."""
    for folder in reversed(checkpoints(run)):
        if is_whole(folder):
            return folder
    return None


def best(run: Path) -> Path | None:
    """The checkpoint with the lowest held-out loss so far, else the newest whole one."""
    mark = run / "best.json"
    if mark.exists():
        folder = run / str(json.loads(mark.read_text())["checkpoint"])
        if is_whole(folder):
            return folder
    return latest(run)


def mark_best(run: Path, folder: Path, loss: float) -> None:
    temporary = run / ".best.json"
    temporary.write_text(json.dumps({"checkpoint": folder.name, "loss": loss}))
    os.replace(temporary, run / "best.json")


def prune(run: Path, keep: int = 2) -> None:
    """Deletes all but the newest `keep` checkpoints and the best one."""
    spared = {*checkpoints(run)[-keep:], best(run)}
    for folder in checkpoints(run):
        if folder not in spared:
            shutil.rmtree(folder)


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """(arrays, state) as given to `save_checkpoint`. Raises CheckpointError unless it is whole."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint")
    if not is_whole(folder):
        raise CheckpointError(f"{folder}: damaged or cut off (its manifest does not match)")
    names = json.loads((folder / MANIFEST).read_text())["sha256"]
    arrays = {
        Path(name).stem: load_weights(folder / name)
        for name in names
        if name.endswith(".safetensors")
    }
    return arrays, json.loads((folder / "state.json").read_text())
