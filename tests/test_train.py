"""The training loop: metrics, held-out losses, the best checkpoint, pictures, and what it
refuses."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import minigrad as mg
from minigrad import checkpoint
from minigrad.checkpoint import checkpoints, latest, load_checkpoint
from minigrad.data import CharTokenizer, split_tail, witten_bell
from minigrad.train import plots
from minigrad.train.config import SIZES, GPTTrainConfig, TrainConfig, gpt_preset
from minigrad.train.gpt import held_out_loss, load_gpt, train_gpt
from minigrad.train.loop import Task, check_config, saving_signals, steps_for, train

DRAWS = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_sync", lambda path: None)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(tiny.text(600))
    return path


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scripted(losses: list[float], held_out: list[float]) -> Any:
    """A task that does nothing and reports these losses."""

    def make(config: TrainConfig) -> Task:
        left = list(held_out)
        task = tiny.make(tiny.GPT)
        return dataclasses.replace(
            task, step=lambda t: losses[t % len(losses)], evaluate=lambda: left.pop(0)
        )

    return make


# ---- the loop ----


def test_training_in_bf16_keeps_float32_weights_and_resumes(tmp_path: Path) -> None:
    """The losses stay within 0.02 nats of fp32's; what was stopped half-way goes on as it was."""
    losses = {}
    for precision in ("fp32", "bf16"):
        config = dataclasses.replace(tiny.GPT, precision=precision, eval_every=6)
        train(config, tiny.make, tmp_path / precision, quiet=True)
        losses[precision] = [m["loss"] for m in metrics(tmp_path / precision)]
    assert losses["bf16"] != losses["fp32"]
    np.testing.assert_allclose(losses["bf16"], losses["fp32"], rtol=0, atol=0.02)
    halfway = checkpoints(tmp_path / "bf16")[0]
    arrays, state = load_checkpoint(halfway)
    assert {a.dtype.name for part in arrays.values() for a in part.values()} == {"float32"}
    assert state["step"] == 6
    checkpoints(tmp_path / "bf16")[1].rename(tmp_path / "later")
    again = dataclasses.replace(config, resume=True)
    train(again, tiny.make, tmp_path / "bf16", quiet=True)
    assert [m["loss"] for m in metrics(tmp_path / "bf16")] == losses["bf16"]


def test_metrics_have_one_line_a_step_and_a_tenth_is_judged(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny.GPT, steps=23)
    result = train(config, tiny.make, tmp_path, quiet=True)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 24))
    assert [row["step"] for row in rows if "held_out_loss" in row] == [*range(2, 23, 2), 23]
    assert all(row["tokens_per_s"] > 0 for row in rows)
    assert (result.steps, result.interrupted) == (23, False)
    assert result.train_loss == rows[-1]["loss"]
    assert result.best_loss == min(row.get("held_out_loss", math.inf) for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_best_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny.GPT, steps=7, eval_every=1)
    held_out = [3.0, 1.0, 2.0, 1.5, 4.0, 1.0, 2.0]
    result = train(config, scripted([1.0], held_out), tmp_path, quiet=True)
    kept = [load_checkpoint(folder)[1]["step"] for folder in checkpoints(tmp_path)]
    assert kept == [2, 6, 7]
    best = checkpoint.best(tmp_path)
    assert best is not None
    assert load_checkpoint(best)[1]["step"] == 2  # an equal one later does not replace it
    assert result.best_loss == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    bad: float, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny.GPT, steps=7, eval_every=2)
    make = scripted([1.0, 1.0, 1.0, bad], [1.0] * 4)
    message = rf"the loss became {bad} at step 4; lower --lr .*checkpoint-00000002"
    with pytest.raises(FloatingPointError, match=message):
        train(config, make, tmp_path, quiet=True)
    folder = latest(tmp_path)
    assert folder is not None
    assert load_checkpoint(folder)[1]["step"] == 2
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3]
    with pytest.raises(FloatingPointError, match=r"at step 1; .*no checkpoint yet"):
        train(config, scripted([bad], [1.0]), tmp_path / "other", quiet=True)


def test_a_rate_that_is_too_high_ends_in_that_message(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny.GPT, steps=60, lr=1e30, clip=0.0)
    with pytest.raises(FloatingPointError, match=r"lower --lr \(now 1e\+30\)"):
        train(config, tiny.make, tmp_path, quiet=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_noted_within_and_what_they_were_after(number: int) -> None:
    before = signal.getsignal(number)
    with saving_signals() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
    assert signal.getsignal(number) is before


def test_minutes_become_the_steps_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("minigrad.train.loop.time.perf_counter", lambda: now[0])

    def step(t: int) -> float:
        now[0] += 0.25
        return 1.0

    task = dataclasses.replace(tiny.make(tiny.GPT), step=step)
    assert steps_for(2.0, lambda: task) == 480
    assert steps_for(1e-9, lambda: task) == 1


def test_measuring_leaves_no_trace_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has the bits of one that was given as many steps."""

    def measured(minutes: float, make: Any) -> int:
        assert minutes == 0.5
        task = make()
        for t in range(5):
            task.step(t)
        return 12

    monkeypatch.setattr("minigrad.train.loop.steps_for", measured)
    states = []
    for name, change in (("a", {}), ("b", {"steps": 0, "minutes": 0.5})):
        config = dataclasses.replace(tiny.GPT, **change)
        train(config, tiny.make, tmp_path / name, quiet=True)
        folder = latest(tmp_path / name)
        assert folder is not None
        arrays, state = load_checkpoint(folder)
        assert state["config"]["steps"] == 12
        states.append(arrays)
    for file, tensors in states[0].items():
        for name, array in tensors.items():
            assert array.tobytes() == states[1][file][name].tobytes()


def test_accumulated_batches_are_one_larger_batch(tmp_path: Path) -> None:
    losses = []
    for change in ({"batch_size": 8}, {"batch_size": 2, "accumulate": 4}):
        config = dataclasses.replace(tiny.GPT, dropout=0.0, **change)
        mg.manual_seed(0)
        task = tiny.make(config)
        assert task.units == 8 * config.seq_len
        losses.append([task.step(t) for t in range(6)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "give --steps or --minutes"),
        ({"steps": -1}, "--steps -1: expected at least 0"),
        ({"minutes": -1.0}, r"--minutes -1\.0: expected at least 0"),
        ({"batch_size": 0}, "--batch-size 0: expected at least 1"),
        ({"lr": 0.0}, r"--lr 0\.0: expected a positive number"),
        ({"lr": math.nan}, "--lr nan: expected a positive number"),
        ({"lr": math.inf}, "--lr inf: expected a finite number"),
        ({"seed": -1}, "--seed -1: expected at least 0"),
        ({"seq_len": 0}, "--seq-len 0: expected at least 1"),
        ({"n_layers": 0}, "--n-layers 0: expected at least 1"),
        ({"n_heads": 0}, "--n-heads 0: expected at least 1"),
        ({"dim": 0}, "--dim 0: expected at least 1"),
        ({"accumulate": 0}, "--accumulate 0: expected at least 1"),
        ({"dropout": -0.1}, r"--dropout -0\.1: expected at least 0"),
        ({"clip": math.nan}, "--clip nan: expected at least 0"),
        ({"minutes": math.inf}, "--minutes inf: expected a finite number"),
        ({"precision": "fp8"}, "--precision fp8: expected one of fp32, bf16"),
        ({"device": "cuda"}, "--device cuda: this version trains on cpu"),
    ],
)
def test_settings_that_make_no_sense_are_named(change: dict[str, Any], message: str) -> None:
    check_config(tiny.GPT)
    with pytest.raises(ValueError, match=message):
        check_config(dataclasses.replace(tiny.GPT, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 3}, "dim 16 is no multiple of n_heads 3"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
        ({"seq_len": 10_000}, "at least 22222 are needed for a context of 10000"),
    ],
)
def test_settings_that_do_not_fit_are_named_and_nothing_is_written(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny.GPT, **change)
    with pytest.raises(ValueError, match=message):
        train(config, tiny.make, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_presets_are_the_sizes() -> None:
    for name, size in SIZES.items():
        config = gpt_preset(name)
        check_config(config)
        for key in ("seq_len", "n_layers", "n_heads", "dim", "batch_size"):
            assert getattr(config, key) == size[key]
    demo = gpt_preset("demo")
    check_config(demo)
    assert (demo.steps, demo.minutes) == (0, 3.0)
    with pytest.raises(ValueError, match="unknown preset 'huge'; expected demo, tiny"):
        gpt_preset("huge")


# ---- GPT ----


def test_held_out_loss_is_the_mean_over_every_token_of_the_tail() -> None:
    """Against a window for each token alone, as long as the batched ones give it context."""
    tokenizer = CharTokenizer(tiny.text())
    part, tail = split_tail(tokenizer.encode(tiny.text()), 16)
    model = mg.models.GPT(
        mg.models.GPTConfig(tokenizer.vocab_size, seq_len=16, n_layers=1, n_heads=2, dim=16)
    )
    everything = np.concatenate([part, tail])
    logs = []
    with mg.no_grad():
        for i in range(len(tail)):
            at = len(part) + i
            begin = at - 9 - i % 8  # windows of 16 overlap by 8: the first of each sees 9 tokens
            logits = model(mg.tensor(everything[None, begin:at]))
            logs.append(mg.log_softmax(logits).numpy()[0, -1, everything[at]])
    assert held_out_loss(model, part, tail) == pytest.approx(-float(np.mean(logs)), rel=1e-5)
    assert held_out_loss(model, part, tail, 1) == pytest.approx(held_out_loss(model, part, tail))


def test_a_whole_training_tells_its_figures_and_draws(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = dataclasses.replace(tiny.GPT, data=str(text_file), out=str(run), steps=60)
    figures = train_gpt(config)
    said = capsys.readouterr().out
    assert json.loads((run / "result.json").read_text()) == figures
    assert f"{figures['held_out_loss']:.4f} nats a character" in said
    assert f"5-gram on the same split: {figures['five_gram_loss']:.4f}" in said
    assert figures["sample"] in said
    assert figures["held_out_loss"] < math.log(20)  # of about twenty characters
    assert (run / "loss.png").exists() == DRAWS
    model, tokenizer = load_gpt(run)
    assert not model.training
    part, tail = split_tail(tokenizer.encode(text_file.read_text()), 16)
    assert held_out_loss(model, part, tail) == figures["held_out_loss"]
    assert witten_bell(part, tail, tokenizer.vocab_size) == figures["five_gram_loss"]


def test_a_checkpoint_of_another_model_is_no_gpt(tmp_path: Path) -> None:
    train(tiny.GAN, tiny.make, tmp_path, quiet=True)
    with pytest.raises(checkpoint.CheckpointError, match="holds a gan, not a gpt"):
        load_gpt(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="no whole checkpoint; train one with"):
        load_gpt(tmp_path / "gone")


def test_a_configuration_never_names_code(tmp_path: Path) -> None:
    """An activation is one of three names; anything else is refused, whatever module has it."""
    train(tiny.GPT, tiny.make, tmp_path, quiet=True)
    folder = latest(tmp_path)
    assert folder is not None
    arrays, state = load_checkpoint(folder)
    for name in ("os.system", "__import__", "exp"):
        state["extra"]["gpt"]["activation"] = name
        changed = checkpoint.save_checkpoint(tmp_path / "changed", 1, arrays, state)
        with pytest.raises(ValueError, match="activation"):
            load_gpt(changed)[0](mg.tensor([[0]]))


# ---- pictures ----


def test_pictures_need_matplotlib_and_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"step": t, "loss": 3 / t} for t in range(1, 250)]
    rows[99]["held_out_loss"] = 1.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pixels = np.random.default_rng(0).random((7, 12), dtype=np.float32)
    grid = tmp_path / "grid.png"
    monkeypatch.setattr(plots, "can_draw", lambda: False)
    assert plots.loss_curve(tmp_path, "nats") is None
    assert plots.image_grid(grid, pixels, 3, 4, 5) is None
    assert not list(tmp_path.glob("*.png"))
    monkeypatch.undo()
    if not DRAWS:
        pytest.skip("matplotlib is not installed: no picture to look at")
    from matplotlib.image import imread

    assert plots.loss_curve(tmp_path, "nats") == tmp_path / "loss.png"
    assert imread(tmp_path / "loss.png").shape == (480, 840, 4)
    assert plots.image_grid(grid, pixels, 3, 4, 5) == grid
    picture = imread(grid)[..., 0]
    scale = 560 // (5 * 5 - 1)
    assert picture.shape == ((2 * 4 - 1) * scale, (5 * 5 - 1) * scale)
    at = picture[::scale, ::scale]
    np.testing.assert_allclose(at[4:7, 5:9], 1 - pixels[6].reshape(3, 4), atol=1 / 128)
    assert (at[4:7, 10:] == 1).all()


def test_the_default_configuration_is_one_that_trains() -> None:
    check_config(dataclasses.replace(GPTTrainConfig(), steps=1))
