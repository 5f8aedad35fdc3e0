"""The command line, as a process of its own: what it prints, writes and returns."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

from minigrad import checkpoint
from minigrad.cli import main

SMALL = ("--seq-len", 16, "--n-layers", 1, "--n-heads", 2, "--dim", 16, "--batch-size", 4,
         "--dropout", 0.1)  # fmt: skip
LONG = ("--steps", 500, "--eval-every", 450, *SMALL)  # a second or two: time to be stopped in
INTERRUPTED = 75


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(tiny.text(600))
    return path


@pytest.fixture(scope="module")
def trained(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of 40 steps, and the process that trained it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    done = tiny.minigrad("train", "gpt", "--data", text_file, "--steps", 40, "--out", run, *SMALL)
    return run, done


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def newest(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = checkpoint.latest(run)
    assert folder is not None
    arrays, state = checkpoint.load_checkpoint(folder)
    state.pop("config")
    bits = {f"{file} {k}": a.tobytes() for file, ts in arrays.items() for k, a in ts.items()}
    return bits, state


# ---- train ----


def test_training_says_what_it_did_and_leaves_it_in_its_folder(trained: tuple[Path, Any]) -> None:
    run, done = trained
    assert done.returncode == 0, done.stderr
    assert "characters to train on" in done.stdout
    assert "held-out loss over the whole tail: " in done.stdout
    assert "Witten-Bell 5-gram on the same split: " in done.stdout
    assert "--- a sample ---" in done.stdout
    assert [row["step"] for row in rows(run)] == list(range(1, 41))
    result = json.loads((run / "result.json").read_text())
    assert result["best_loss"] < rows(run)[0]["loss"]
    assert (run / "loss.png").exists() == (importlib.util.find_spec("matplotlib") is not None)
    assert len(checkpoint.checkpoints(run)) in (2, 3)
    best = checkpoint.best(run)
    assert best is not None
    assert json.loads((run / "best.json").read_text()) == {
        "checkpoint": best.name,
        "loss": result["best_loss"],
    }


def test_json_is_one_object(text_file: Path, tmp_path: Path) -> None:
    done = tiny.minigrad(
        *("train", "gpt", "--data", text_file, "--steps", 5, "--out", tmp_path / "run"),
        *(*SMALL, "--json"),
    )
    assert done.returncode == 0, done.stderr
    figures = tiny.json_of(done)
    assert {"steps", "seconds", "train_loss", "best_loss", "interrupted", "units_per_s", "out",
            "held_out_loss", "five_gram_loss", "sample"} == set(figures)  # fmt: skip
    assert (figures["steps"], figures["interrupted"]) == (5, False)
    assert done.stderr == ""


def test_minutes_are_turned_into_steps_that_are_printed_and_kept(
    text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = tiny.minigrad(
        "train", "gpt", "--data", text_file, "--minutes", 0.0015, "--out", run, *SMALL
    )
    assert done.returncode == 0, done.stderr
    line = next(x for x in done.stdout.splitlines() if "minutes here are" in x)
    steps = int(line.split("--steps ")[1].rstrip(")"))
    assert line == f"0.0015 minutes here are {steps} steps (--steps {steps})"
    assert rows(run)[-1]["step"] == steps
    folder = checkpoint.latest(run)
    assert folder is not None
    assert checkpoint.load_checkpoint(folder)[1]["config"]["steps"] == steps


@pytest.fixture(scope="module")
def uninterrupted(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "long"
    assert main([str(a) for a in ("train", "gpt", "--data", text_file, *LONG, "--out", run)]) == 0
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_saves_and_resuming_has_the_bits_of_a_whole_run(
    number: int, text_file: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """The run is stopped wherever the signal meets it."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        tiny.command("train", "gpt", "--data", text_file, *LONG, "--out", run, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not ((run / "metrics.jsonl").exists() and len(rows_so_far(run)) >= 3):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, err
    figures = tiny.json_of(subprocess.CompletedProcess([], 0, out, err))
    assert figures["interrupted"]
    assert 3 <= figures["steps"] < 450
    assert figures["best_loss"] is None  # none was judged yet
    assert rows(run)[-1]["step"] == figures["steps"]
    resumed = tiny.minigrad("train", "gpt", "--out", run, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert newest(run) == newest(uninterrupted)
    assert [(r["step"], r["loss"]) for r in rows(run)] == [
        (r["step"], r["loss"]) for r in rows(uninterrupted)
    ]


def rows_so_far(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


def test_resuming_a_finished_run_changes_nothing(trained: tuple[Path, Any]) -> None:
    run, _ = trained
    before = newest(run), rows(run)
    done = tiny.minigrad("train", "gpt", "--out", run, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    assert tiny.json_of(done)["train_loss"] == rows(run)[-1]["loss"]
    assert (newest(run), rows(run)) == before


def test_a_finished_run_says_how_it_goes_on_and_does(
    trained: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    flags = ("train", "gpt", "--out", run, "--resume")
    _, out, _ = in_process(capsys, *flags)
    assert f"{run} has done its 40 steps; go on with --resume --steps above 40" in out
    code, out, _ = in_process(capsys, *flags, "--steps", 50)
    assert code == 0
    assert "has done its" not in out
    assert [row["step"] for row in rows(run)] == list(range(1, 51))
    assert rows(run)[:40] == rows(trained[0])
    assert json.loads((run / "result.json").read_text())["steps"] == 50


def test_a_full_disk_ends_with_a_message(text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("train", "gpt", "--data", text_file, "--steps", 5, "--out", run, *SMALL)
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 16; exec "$@"', "bash", *tiny.command(*flags)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert checkpoint.checkpoints(run) == []
    assert not list(run.glob(".partial-*"))


REFUSED = {
    "no such data": (("--data", "/gone", "--steps", 3), "--data /gone: no such file or folder"),
    "neither steps nor minutes": ((), "--steps 0 and --minutes 0: give --steps or --minutes"),
    "size that does not fit": (("--steps", 3, "--n-heads", 3), "no multiple of n_heads 3"),
    "text too short": (("--steps", 3, "--seq-len", 4000), "are needed for a context of 4000"),
    "precision": (("--steps", 3, "--precision", "fp8"), "--precision fp8: expected one of"),
    "nothing to resume": (("--resume", "--out", "/gone"), "no whole checkpoint in /gone"),
    "rate": (("--steps", 3, "--lr", -1), "--lr -1.0: expected a positive number"),
    "not finite": (("--steps", 60, "--lr", 1e30, "--clip", 0), "; lower --lr (now 1e+30)"),
}


def in_process(capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    """The command line without a process of its own: exit code, stdout, stderr."""
    code = main([str(a) for a in args])
    out, err = capsys.readouterr()
    return code, out, err


UNREAD = {
    "rate": (("gpt", "--steps", 3, "--lr", -1), "--lr -1.0: expected a positive number"),
    "heads": (("gpt", "--steps", 3, "--n-heads", 3), "dim 128 is no multiple of n_heads 3"),
    "dropout": (("gpt", "--steps", 3, "--dropout", 1), "dropout must be in [0, 1), got 1.0"),
    "seed": (("gpt", "--steps", 3, "--seed", 2**64), "expected a seed in [0, 2^64)"),
    "no steps": (("gan", "--steps", 0), "give --steps or --minutes"),
    "minutes": (("gan", "--steps", 0, "--minutes", "inf"), "--minutes inf: expected a finite"),
    "width": (("autoencoder", "--hidden", 0), "--hidden 0: expected at least 1"),
    "a file": (("gan", "--out", __file__), f"--out {__file__}: there is a file of that name"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_flags_are_refused_before_the_data_is_read(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data named is not there, which would be the error."""
    flags, message = UNREAD[case]
    standard = ("train", flags[0], "--data", tmp_path / "gone", "--out", tmp_path / "run")
    code, out, err = in_process(capsys, *standard, *flags[1:])
    assert (code, out) == (1, "")
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_run_is_recognised_before_the_data_is_read(
    trained: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("train", "gpt", "--data", tmp_path / "gone", "--out", trained[0])
    code, _, err = in_process(capsys, *flags, "--steps", 3)
    assert code == 1
    assert "already holds a run; go on with --resume" in err
    code, _, err = in_process(capsys, *flags, "--resume", "--lr", 0.5)
    assert code == 1
    assert "began with --lr 0.001, not 0.5" in err


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_ends_with_1_and_a_message(
    case: str, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, message = REFUSED[case]
    standard = ("train", "gpt", "--data", text_file, "--out", tmp_path / "run", *SMALL)
    code, _, err = in_process(capsys, *standard, *flags)
    assert code == 1
    assert err.startswith("minigrad: ")
    assert message in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps", 99, *SMALL), "already holds a run; go on with --resume, or name another"),
        (("--minutes", 1, *SMALL), "already holds a run; go on with --resume, or name another"),
        (("--resume", "--lr", 0.5), "began with --lr 0.001, not 0.5; leave --lr out"),
        (("--resume", "--dim", 32), "began with --dim 16, not 32"),
        (
            ("--resume", "--steps", 30),
            "began with --steps 40, not 30; leave --steps out, give --steps",
        ),
        (("--resume", "--minutes", 1), "not 1.0; leave --minutes out, give --steps above 40 for"),
    ],
)
def test_a_run_is_never_written_over(
    flags: tuple[Any, ...], message: str, trained: tuple[Path, Any], text_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, _ = trained
    before = files(run)
    data = () if "--resume" in flags else ("--data", text_file)
    code, _, err = in_process(capsys, "train", "gpt", "--out", run, *data, *flags)
    assert code == 1
    assert message in err
    assert files(run) == before


def test_a_run_of_another_model_or_with_a_damaged_checkpoint_is_told(
    trained: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    code, _, err = in_process(capsys, "train", "autoencoder", "--out", run, "--resume")
    assert (code, err) == (1, f"minigrad: --resume: {run} holds a gpt, not a autoencoder\n")
    (run / checkpoint.BEST).unlink()
    folders = checkpoint.checkpoints(run)
    assert len(folders) > 1
    os.truncate(folders[-1] / "model.safetensors", 100)
    sample = ("sample", "--run", run, "--tokens", 3)
    code, _, err = in_process(capsys, *sample)
    assert code == 0
    older = folders[-2].name
    assert err == f"minigrad: {folders[-1]}: damaged or cut off; going back to {older}\n"
    for folder in folders:
        os.truncate(folder / "model.safetensors", 100)
    code, _, err = in_process(capsys, *sample)
    assert code == 1
    assert "damaged or cut off is every checkpoint there" in err


@pytest.mark.parametrize(
    "args",
    [("train", "gpt", "--stesp", 3), ("train", "gpt", "--steps", "many"), ("train", "rnn"), (),
     ("train", "gpt", "--preset", "huge"), ("bench", "kernel", "convolution")],
)  # fmt: skip
def test_flags_that_do_not_parse_end_with_2_and_the_usage(
    args: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in args])
    assert ended.value.code == 2
    assert "usage: minigrad" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["autoencoder", "gan"])
def test_images_are_trained_on_and_drawn(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = tiny.write_idx_folder(tmp_path / "idx"), tmp_path / "run"
    flags = ("--data", folder, "--steps", 20, "--codes", 3, "--batch-size", 8)
    code, out, _ = in_process(capsys, "train", model, *flags, "--out", run, "--json")
    assert code == 0
    figures = json.loads(out)
    assert figures == json.loads((run / "result.json").read_text())
    assert figures["steps"] == 20
    picture = {"autoencoder": "reconstructions.png", "gan": "samples.png"}[model]
    draws = importlib.util.find_spec("matplotlib") is not None
    assert (run / picture).exists() == (run / "loss.png").exists() == draws
    if model == "autoencoder":
        assert 0 < figures["pca_error"] < 0.2
        assert 0 < figures["test_error"] < 0.2


# ---- sample ----


def test_samples_come_from_the_run(
    trained: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = trained
    flags = ("sample", "--run", run, "--tokens", 30, "--prompt", "the ")
    code, out, _ = in_process(capsys, *flags)
    assert code == 0
    assert out.startswith("the ")
    assert len(out) == 35  # the prompt, 30 characters, a newline
    code, printed, _ = in_process(capsys, *flags, "--json")
    assert json.loads(printed) == {"text": out[:-1]}
    seeds = [in_process(capsys, *flags, "--seed", seed)[1] for seed in (0, 1)]
    assert seeds[0] == out != seeds[1]
    likeliest = [
        in_process(capsys, *flags, *choice)[1]
        for choice in (("--temperature", 0), ("--top-k", 1), ("--top-p", 1e-9))
    ]
    assert likeliest[0] == likeliest[1] == likeliest[2]
    several = in_process(capsys, *flags, "--samples", 3)[1]
    assert several.startswith(out + "---\nthe ")  # the first is drawn as one alone
    lines = in_process(capsys, *flags, "--samples", 3, "--json")[1].splitlines()
    assert "\n---\n".join(json.loads(line)["text"] for line in lines) == several[:-1]
    best = checkpoint.best(run)
    assert best is not None
    assert in_process(capsys, "sample", "--run", best, *flags[3:])[1] == out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--run", "/gone"), "/gone: no whole checkpoint; train one with --out /gone"),
        (("--prompt", "€"), "character '€' at position 0 was not in the training text"),
        (("--prompt", ""), "the prompt needs at least one token"),
        (("--temperature", -1), "generate: temperature must be at least 0, got -1.0"),
        (("--top-k", 0), "generate: top_k must be at least 1, got 0"),
        (("--top-p", 1.5), "expected top_p in (0, 1], got 1.5"),
        (("--tokens", -1), "generate: n_tokens must be at least 0, got -1"),
        (("--temperature", "nan"), "generate: temperature must be at least 0, got nan"),
        (("--seed", -1), "Generator: expected a seed in [0, 2^64), got -1"),
        (("--samples", 0), "--samples: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_sampled_is_told(
    flags: tuple[Any, ...], message: str, trained: tuple[Path, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code, _, err = in_process(capsys, "sample", "--run", trained[0], *flags)
    assert code == 1
    assert message in err


# ---- doctor ----


def test_doctor_says_what_runs_and_why() -> None:
    done = tiny.minigrad("doctor", "--json", MINIGRAD_NUM_THREADS="1", MINIGRAD_ISA="generic")
    assert done.returncode == 0, done.stderr
    findings = tiny.json_of(done)
    topics = {"minigrad", "machine", "kernels", "threads", "gpu", "triton", "matplotlib", "torch"}
    assert topics <= set(findings)
    for finding in findings.values():
        assert set(finding) == {"value", "why"}
        assert finding["why"]
    assert findings["threads"] == {"value": "1", "why": "MINIGRAD_NUM_THREADS asks for it"}
    assert findings["kernels"]["value"] == "generic"
    assert findings["kernels"]["why"].startswith("MINIGRAD_ISA asks for it")
    assert findings["bfloat16"]["value"] == "by conversion"
    missing = importlib.util.find_spec("triton") is None
    assert ("pip install" in findings["triton"]["why"]) == missing
    assert (findings["triton"]["value"] == "not installed") == missing


def test_doctor_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = in_process(capsys, "doctor")
    assert code == 0
    assert out.splitlines()[0].startswith("minigrad  ")
