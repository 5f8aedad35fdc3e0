"""Checkpoints: the old one or the new one whenever the process dies, and resuming bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from minigrad import checkpoint
from minigrad.checkpoint import (
    CheckpointError,
    best,
    checkpoints,
    is_whole,
    latest,
    load_checkpoint,
    mark_best,
    prune,
    save_checkpoint,
)
from minigrad.optim import cosine_schedule
from minigrad.train.config import TrainConfig
from minigrad.train.loop import train

SYNC = checkpoint._sync
FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many checkpoints in little time; the test of what is synced when does without this."""
    monkeypatch.setattr(checkpoint, "_sync", lambda path: None)


def save(run: Path, step: int, value: float = 0.0) -> Path:
    """A checkpoint whose contents are a function of `step` and `value`."""
    arrays = {
        "model": {"w": np.full((3, 4), step + value), "b": np.zeros(2, np.float32)},
        "optimizer": {"0.0": np.full(2000, value, np.float32)},
    }
    return save_checkpoint(run, step, arrays, {"step": step, "value": value})


def contents(folder: Path | None) -> tuple[int, float]:
    """(step, value) of a checkpoint, after checking that all of it belongs together."""
    assert folder is not None
    arrays, state = load_checkpoint(folder)
    step, value = state["step"], state["value"]
    assert set(arrays) == {"model", "optimizer"}
    assert (arrays["model"]["w"] == step + value).all()
    assert (arrays["optimizer"]["0.0"] == np.float32(value)).all()
    return step, value


def in_child(work: Callable[[], Any]) -> int:
    """Runs `work` in a forked process; its exit code: 0 done, 1 for an exception."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except Exception as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.stderr.flush()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


KILLED = 9
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def killed_at(point: int, work: Callable[[], Any]) -> bool:
    """Runs `work` in a process that dies without a trace before its file operation number `point`;
    whether there were so many."""

    def dying() -> None:
        seen = 0

        def count(event: str, _: Any) -> None:
            nonlocal seen
            if event in FILE_EVENTS:
                if seen == point:
                    os._exit(KILLED)
                seen += 1

        os.fsync = lambda _: count("open", None)
        checkpoint._sync = SYNC
        sys.addaudithook(count)
        work()

    code = in_child(dying)
    assert code in (0, KILLED)
    return code == KILLED


def every_death(
    before: Callable[[Path], Any], work: Callable[[Path], Any], tmp: Path
) -> list[Path]:
    """The run's folder after `before`, and `work` dying at every file operation in turn."""
    folders = []
    while True:
        run = tmp / f"run-{len(folders)}"
        before(run)
        if not killed_at(len(folders), lambda run=run: work(run)):
            return folders
        folders.append(run)


def test_killed_anywhere_in_saving_leaves_the_old_one_or_the_new(tmp_path: Path) -> None:
    runs = every_death(lambda run: save(run, 1), lambda run: save(run, 2, 5.0), tmp_path)
    found = [contents(latest(run)) for run in runs]
    assert set(found) == {(1, 0.0), (2, 5.0)}
    assert found == sorted(found)  # new from the renaming on
    assert len(found) > 15
    for run in runs:  # and nothing is in the way of the next
        save(run, 3, 1.0)
        prune(run)
        assert contents(latest(run)) == (3, 1.0)
        assert not list(run.glob(".partial-*"))


def test_killed_anywhere_in_saving_a_step_again(tmp_path: Path) -> None:
    runs = every_death(lambda run: save(run, 1), lambda run: save(run, 1, 5.0), tmp_path)
    found = [contents(latest(run)) for run in runs]
    assert set(found) == {(1, 0.0), (1, 5.0)}
    assert found == sorted(found)
    for run in runs:
        assert contents(save(run, 1, 7.0)) == (1, 7.0)
        assert contents(latest(run)) == (1, 7.0)


def test_killed_anywhere_in_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    def before(run: Path) -> None:
        for step in range(1, 6):
            save(run, step)
        mark_best(run, run / "checkpoint-00000002", 1.0)

    runs = every_death(before, prune, tmp_path)
    assert len(runs) > 5
    for run in runs:
        assert contents(latest(run)) == (5, 0.0)
        assert contents(best(run)) == (2, 0.0)


def test_killed_anywhere_in_marking_the_best(tmp_path: Path) -> None:
    def before(run: Path) -> None:
        mark_best(run, save(run, 1), 2.0)
        save(run, 2)
        save(run, 3)

    runs = every_death(
        before, lambda run: mark_best(run, run / "checkpoint-00000002", 1.0), tmp_path
    )
    assert {contents(best(run))[0] for run in runs} == {1, 2}


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes as Linux has them")
def test_full_disk_leaves_the_old_one_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Writing fails in earnest, at every length up to the whole."""
    save(tmp_path, 1)

    def full(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            save(tmp_path, 2)
        except OSError:
            os._exit(KILLED)

    codes = []
    for limit in (0, 1, 64, 100, 200, 300, 400, 1000, 8000, 8040, 100_000):
        codes.append(in_child(lambda limit=limit: full(limit)))
        assert contents(latest(tmp_path)) == ((2, 0.0) if codes[-1] == 0 else (1, 0.0))
        assert not list(tmp_path.glob(".partial-*"))
    assert capfd.readouterr().err == ""
    assert codes == [KILLED] * 10 + [0]


def test_everything_is_on_the_disk_before_the_renaming_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut needs beyond what a killed process does."""
    done: list[str] = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append("rename"), rename(a, b)))
    monkeypatch.setattr(checkpoint, "_sync", lambda path: done.append(path.name))
    save(tmp_path, 1)
    at = done.index("rename")
    assert sorted(done[: at - 1]) == FILES
    assert done[at - 1].startswith(".partial-00000001")
    assert done[at + 1 :] == [tmp_path.name]
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    SYNC(tmp_path)
    assert len(synced) == 1


# ---- damage ----


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_newest_never_wins_over_a_whole_older_one(file: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    for cut in (0.0, 0.5, 0.999, None):
        newest = save(tmp_path, 2)
        assert contents(latest(tmp_path)) == (2, 0.0)
        path = newest / file
        if cut is None:
            path.unlink()
        else:
            os.truncate(path, int(path.stat().st_size * cut))
        with pytest.warns(UserWarning, match=r"00000002: damaged .*; going back to .*-00000001"):
            older = latest(tmp_path)
        assert contents(older) == (1, 0.0)
        with pytest.raises(CheckpointError, match=r"00000002: damaged or cut off"):
            load_checkpoint(newest)
        prune(tmp_path, keep=1)  # and pruning counts whole ones only
        assert contents(latest(tmp_path)) == (1, 0.0)


@pytest.mark.parametrize("file", FILES[1:])
def test_one_flipped_bit_is_damage(file: str, tmp_path: Path) -> None:
    path = save(tmp_path, 1) / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged or cut off is every checkpoint there"):
        latest(tmp_path)


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{}", "null", '{"sha256": {}}', '{"sha256": []}', '{"sha256": null}',
     '{"sha256": {"state.json": 7}}', '{"sha256": {"../state.json": "x", "state.json": "x"}}'],
)  # fmt: skip
def test_manifests_that_are_none(manifest: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / "manifest.json").write_text(manifest)
    assert not is_whole(folder)


def test_a_file_outside_the_folder_is_never_part_of_it(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    shutil.copy(folder / "state.json", tmp_path / "outside.json")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["../outside.json"] = manifest["sha256"]["state.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert not is_whole(folder)


@pytest.mark.parametrize("mark", ["", "[]", "{}", '{"checkpoint": "../x", "loss": 1}', "{"])
def test_a_damaged_mark_falls_back_to_the_newest(mark: str, tmp_path: Path) -> None:
    mark_best(tmp_path, save(tmp_path, 1), 1.0)
    save(tmp_path, 2)
    assert contents(best(tmp_path)) == (1, 0.0)
    (tmp_path / "best.json").write_text(mark)
    assert contents(best(tmp_path)) == (2, 0.0)


def test_missing_and_foreign_folders(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert best(tmp_path) is None
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "checkpoint-00000001")
    for name in ("checkpoint-", "checkpoint-1x", "checkpoint-notes"):
        (tmp_path / name).mkdir()
    assert checkpoints(tmp_path) == []
    steps = (9, 10, 99_999_999, 100_000_000)
    for step in steps:
        save(tmp_path, step)
    assert [contents(f)[0] for f in checkpoints(tmp_path)] == list(steps)


# ---- resume ----


def finished(config: TrainConfig, run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    train(config, tiny.make, run, quiet=True)
    folder = latest(run)
    assert folder is not None
    arrays, state = load_checkpoint(folder)
    assert state.pop("config")["steps"] == state["step"] == config.steps
    return arrays, state


def stop_after(step: int, number: int) -> Callable[[TrainConfig], Any]:
    """`tiny.make`, with a signal to this process in the middle of a step."""

    def make(config: TrainConfig) -> Any:
        task = tiny.make(config)
        inner = task.step

        def signalled(t: int) -> float:
            loss = inner(t)
            if t == step:
                os.kill(os.getpid(), number)
            return loss

        return dataclasses.replace(task, step=signalled)

    return make


CONFIGS = [tiny.GPT, tiny.AUTOENCODER, tiny.GAN]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_resume_after_any_step_has_the_bits_of_an_uninterrupted_run(
    config: TrainConfig, level: str, tmp_path: Path
) -> None:
    """Parameters, moments, generator and the data's place, in the middle of epochs, with
    dropout."""
    arrays, state = finished(config, tmp_path / "whole")
    assert state["batches"]["epoch"] >= 1
    for step in range(0, config.steps - 1, 5):
        run = tmp_path / f"stopped-{step}"
        number = signal.SIGINT if step % 2 else signal.SIGTERM
        result = train(config, stop_after(step, number), run, quiet=True)
        assert result.interrupted
        assert result.steps == step + 1  # the step was finished
        resumed, resumed_state = finished(dataclasses.replace(config, resume=True), run)
        assert resumed_state == state
        for file, tensors in arrays.items():
            assert set(resumed[file]) == set(tensors)
            for name, array in tensors.items():
                assert resumed[file][name].tobytes() == array.tobytes(), f"{file} {name}"
        assert metrics(run) == metrics(tmp_path / "whole")


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_of_a_constant_rate_made_longer_has_the_bits_of_a_long_one(
    stopped: bool, tmp_path: Path
) -> None:
    long = dataclasses.replace(tiny.GAN, steps=20, eval_every=4)
    arrays, state = finished(long, tmp_path / "long")
    first = dataclasses.replace(long, steps=12)
    make = stop_after(4, signal.SIGTERM) if stopped else tiny.make
    train(first, make, tmp_path / "run", quiet=True)
    resumed, resumed_state = finished(dataclasses.replace(long, resume=True), tmp_path / "run")
    assert resumed_state == state
    for file, tensors in arrays.items():
        for name, array in tensors.items():
            assert resumed[file][name].tobytes() == array.tobytes(), f"{file} {name}"
    assert metrics(tmp_path / "run") == metrics(tmp_path / "long")


@pytest.mark.parametrize(
    ("config", "warmup", "final"),
    [
        (dataclasses.replace(tiny.GPT, warmup=2), 2, 0.1),
        (tiny.AUTOENCODER, 0, 0.02),
    ],
    ids=["gpt", "autoencoder"],
)
def test_a_finished_run_goes_on_by_the_schedule_of_its_new_steps(
    config: TrainConfig, warmup: int, final: float, tmp_path: Path
) -> None:
    train(config, tiny.make, tmp_path, quiet=True)
    rates: dict[int, float] = {}

    def make(config: TrainConfig) -> Any:
        task = tiny.make(config)
        inner, optimizer = task.step, task.optimizers["model"]

        def noted(t: int) -> float:
            loss = inner(t)
            rates[t] = optimizer.lr
            return loss

        return dataclasses.replace(task, step=noted)

    longer = dataclasses.replace(config, steps=20, resume=True)
    assert train(longer, make, tmp_path, quiet=True).steps == 20
    schedule = cosine_schedule(warmup, 20, final)
    assert rates == {t: config.lr * schedule(t) for t in range(12, 20)}
    assert [step for step, *_ in metrics(tmp_path)] == list(range(1, 21))
    with pytest.raises(ValueError, match="began with --steps 20, not 12"):
        train(dataclasses.replace(longer, steps=12), make, tmp_path, quiet=True)


def metrics(run: Path) -> list[tuple[int, float, float | None]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"], row.get("held_out_loss")) for row in rows]


def test_resume_from_an_older_checkpoint_repeats_its_metrics_once(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny.GPT, eval_every=4)
    _, state = finished(config, tmp_path)
    told = metrics(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-00000012")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # cut off by a kill
    assert finished(dataclasses.replace(config, resume=True), tmp_path)[1] == state
    assert metrics(tmp_path) == told
    assert [step for step, *_ in told] == list(range(1, 13))


def test_a_best_one_killed_before_its_mark_is_marked_at_resume(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny.GPT, eval_every=3)
    finished(config, tmp_path)
    losses = {step: held for step, _, held in metrics(tmp_path) if held is not None}
    assert min(losses, key=lambda step: losses[step]) == 12
    (tmp_path / "best.json").write_text('{"checkpoint": "checkpoint-00000009", "loss": 99.0}')
    train(dataclasses.replace(config, resume=True), tiny.make, tmp_path, quiet=True)
    assert checkpoint.best_mark(tmp_path) == ("checkpoint-00000012", losses[12])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 5e-3}, r"began with --lr 0\.01, not 0\.005"),
        ({"batch_size": 5}, "began with --batch-size 4, not 5"),
        ({"seed": 1}, "began with --seed 0, not 1"),
        ({"dropout": 0.0}, r"began with --dropout 0\.1, not 0\.0"),
        ({"dim": 32}, "began with --dim 16, not 32"),
        ({"steps": 11}, "began with --steps 12, not 11; .*give --steps above 12 for a longer run"),
        ({"minutes": 1.0}, r"began with --minutes 0\.0, not 1\.0; .*give --steps above 12"),
    ],
)
def test_resume_with_other_settings_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny.GPT, resume=True)
    train(tiny.GPT, stop_after(3, signal.SIGTERM), tmp_path, quiet=True)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(config, **change), tiny.make, tmp_path, quiet=True)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert train(config, tiny.make, tmp_path, quiet=True).steps == 12


def test_resume_on_other_data_or_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny.GPT, stop_after(3, signal.SIGTERM), tmp_path, quiet=True)
    config = dataclasses.replace(tiny.AUTOENCODER, resume=True, batch_size=4, lr=1e-2)
    with pytest.raises(ValueError, match="holds a gpt, not a autoencoder"):
        train(config, tiny.make, tmp_path, quiet=True)
    other = tiny.text(seed=1)
    monkeypatch.setattr(tiny, "text", lambda: other)
    with pytest.raises(ValueError, match=r"the data is not what .* was trained on"):
        train(dataclasses.replace(tiny.GPT, resume=True), tiny.make, tmp_path, quiet=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_whose_checkpoints_are_all_damaged_is_never_written_over(
    resume: bool, tmp_path: Path
) -> None:
    finished(tiny.GPT, tmp_path)
    for folder in checkpoint.checkpoints(tmp_path):
        os.truncate(folder / "model.safetensors", 100)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=r"every checkpoint there .*name another --out"):
        train(dataclasses.replace(tiny.GPT, resume=resume), tiny.make, tmp_path, quiet=True)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("minutes", [0.0, 0.1])
def test_a_new_run_never_goes_over_an_old_one(minutes: float, tmp_path: Path) -> None:
    finished(tiny.GPT, tmp_path)
    config = dataclasses.replace(tiny.GPT, steps=0 if minutes else 12, minutes=minutes)
    with pytest.raises(ValueError, match="already holds a run; go on with --resume"):
        train(config, tiny.make, tmp_path, quiet=True)
    with pytest.raises(ValueError, match="no whole checkpoint in"):
        train(dataclasses.replace(tiny.GPT, resume=True), tiny.make, tmp_path / "x", quiet=True)
