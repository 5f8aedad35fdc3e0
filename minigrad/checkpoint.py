"""Checkpoints: one folder a step, whole or not there at all.

A folder holds safetensors files, `state.json` and `manifest.json` with the SHA-256 of each. It is
written under a temporary name, synced, renamed, and its parent synced; so whenever the process is
killed, the newest whole checkpoint is still there, and `latest` skips, with a warning, any that
its manifest does not confirm. A folder of the same step steps aside (`.replaced`) until the new one
stands.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.weights import load_weights, save_weights

MANIFEST = "manifest.json"
STATE = "state.json"
BEST = "best.json"
_FOLDER = re.compile(r"checkpoint-([0-9]+)(\.replaced)?")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or does not fit; the message says which."""


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(
    run: Path, step: int, arrays: dict[str, dict[str, np.ndarray]], state: dict[str, Any]
) -> Path:
    """Writes `run/checkpoint-STEP` with a safetensors file for each entry of `arrays`."""
    run.mkdir(parents=True, exist_ok=True)
    final = run / f"checkpoint-{step:08d}"
    aside = run / f"{final.name}.replaced"
    partial = run / f".partial-{step:08d}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for name, tensors in arrays.items():
            save_weights(partial / f"{name}.safetensors", tensors)
        (partial / STATE).write_text(json.dumps(state, indent=1))
        hashes = {p.name: _digest(p) for p in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps({"step": step, "sha256": hashes}, indent=1))
        for path in partial.iterdir():
            _sync(path)
        _sync(partial)
        if is_whole(final):  # the same step again, after a resume
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(final, aside)
        elif final.exists():
            shutil.rmtree(final)
        os.rename(partial, final)
        _sync(run)
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def is_whole(folder: Path) -> bool:
    """Whether every file of the manifest is there with its hash."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())["sha256"]
        return STATE in hashes and all(
            Path(name).name == name and _digest(folder / name) == digest
            for name, digest in hashes.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def checkpoints(run: Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first, whole or not."""
    found = []
    for path in run.glob("checkpoint-*"):
        if match := _FOLDER.fullmatch(path.name):
            found.append((int(match[1]), match[2] is None, path))
    return [path for *_, path in sorted(found)]


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint, None where the run has none at all. Warns where a newer one is
    damaged; raises CheckpointError where all are, so that nobody takes the folder for an empty
    one."""
    there = checkpoints(run)
    for i, folder in enumerate(reversed(there)):
        if is_whole(folder):
            if i:
                warnings.warn(
                    f"{there[-1]}: damaged or cut off; going back to {folder.name}", stacklevel=2
                )
            return folder
    if there:
        raise CheckpointError(
            f"{run}: damaged or cut off is every checkpoint there ({len(there)}: their manifests "
            "do not match); restore one, or name another --out"
        )
    return None


def best_mark(run: Path) -> tuple[str, float] | None:
    """The folder's name and the loss that `mark_best` wrote; None where missing or damaged."""
    try:
        mark = json.loads((run / BEST).read_text())
        name, loss = mark["checkpoint"], float(mark["loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (name, loss) if isinstance(name, str) and _FOLDER.fullmatch(name) else None


def best(run: Path) -> Path | None:
    """The checkpoint with the lowest held-out loss so far, else the newest whole one."""
    mark = best_mark(run)
    if mark and is_whole(run / mark[0]):
        return run / mark[0]
    return latest(run)


def mark_best(run: Path, folder: Path, loss: float) -> None:
    """Remembers `folder` as the best so far; the mark changes whole, as checkpoints do."""
    temporary = run / f".{BEST}"
    temporary.write_text(json.dumps({"checkpoint": folder.name, "loss": loss}))
    _sync(temporary)
    os.replace(temporary, run / BEST)
    _sync(run)


def prune(run: Path, keep: int = 2) -> None:
    """Deletes all but the newest `keep` whole checkpoints and the best one, and what killed
    processes left half written."""
    mark = best_mark(run)
    whole = (folder for folder in reversed(checkpoints(run)) if is_whole(folder))
    spared = {*itertools.islice(whole, keep), run / mark[0] if mark else None}
    for folder in [*checkpoints(run), *run.glob(".partial-*")]:
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
    return arrays, json.loads((folder / STATE).read_text())
