"""The training loop: steps, held-out losses, checkpoints, exact resume, and signals that save
first."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from minigrad import checkpoint, dispatch
from minigrad.capture import capture
from minigrad.nn import Module
from minigrad.ops import tensor
from minigrad.optim import Optimizer
from minigrad.precision import PRECISIONS, precision
from minigrad.random import default_generator, manual_seed
from minigrad.train.config import TrainConfig

EXIT_INTERRUPTED = 75  # saved after SIGINT or SIGTERM; run again with --resume


class Batches(Protocol):
    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...


@dataclass
class Task:
    """What a model brings to the loop. `step(t)` trains once and returns the loss; `evaluate()` the
    held-out loss by which checkpoints compete; `units` is what a step gets through (tokens,
    images)."""

    name: str
    model: Module
    optimizers: dict[str, Optimizer]
    batches: Batches
    step: Callable[[int], float]
    evaluate: Callable[[], float]
    units: int
    unit: str
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # kept in checkpoints


@dataclass
class Result:
    """How a training ended."""

    steps: int
    seconds: float
    train_loss: float
    best_loss: float
    interrupted: bool
    units_per_s: float


def captured(update: Callable[..., Any], config: TrainConfig) -> Callable[..., Any]:
    """`update` as a captured step, or as it is with --eager; either takes arrays."""
    if not config.eager:
        return capture(update)
    return lambda *arrays: update(*map(tensor, arrays))


def digest(data: np.ndarray) -> str:
    """What a task keeps of its data in `extra`, to know it again."""
    return hashlib.sha256(np.ascontiguousarray(data).data).hexdigest()


@contextmanager
def saving_signals() -> Iterator[Callable[[], bool]]:
    """Within the block, SIGINT and SIGTERM only set a flag, which the function given tells."""
    asked: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError):  # not in the main thread: signals are somebody else's
            before[number] = signal.signal(number, lambda n, _: asked.append(n))
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_config(config: TrainConfig) -> None:
    """Refuses what this version does not do, and numbers that make no sense."""
    for field in dataclasses.fields(config):
        value, least = getattr(config, field.name), field.metadata["least"]
        flag = "--" + field.name.replace("_", "-")
        if least is not None and not value >= least:
            raise ValueError(f"{flag} {value}: expected at least {least}")
        if value == math.inf:
            raise ValueError(f"{flag} {value}: expected a finite number")
    if config.precision not in PRECISIONS:
        raise ValueError(f"--precision {config.precision}: expected one of {', '.join(PRECISIONS)}")
    if config.device != "cpu":
        raise ValueError(f"--device {config.device}: this version trains on cpu")
    if config.steps <= 0 and config.minutes <= 0:
        raise ValueError(
            f"--steps {config.steps} and --minutes {config.minutes:g}: give --steps or --minutes "
            "above 0"
        )
    if not config.lr > 0:
        raise ValueError(f"--lr {config.lr}: expected a positive number")


def steps_for(minutes: float, make: Callable[[], Task]) -> int:
    """How many steps fit into `minutes` here: measured on a task that is thrown away."""
    task = make()
    for t in range(3):
        task.step(t)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - begin < 3 and len(times) < 200):
        start = time.perf_counter()
        task.step(3 + len(times))
        times.append(time.perf_counter() - start)
    return max(1, int(minutes * 60 / float(np.mean(times))))


# What may differ when a run goes on: none of it changes the numbers.
FREE = {"data", "out", "eval_every", "resume", "eager", "json", "checkpoint_activations"}


def check_same_run(config: TrainConfig, state: dict[str, Any], run: Path) -> None:
    """Refuses to go on with settings that differ from those the run began with, more steps
    aside."""
    for name, began in state["config"].items():
        value = getattr(config, name, began)
        settled = name in FREE or (name == "steps" and (value <= 0 or value > began))
        if not settled and value != began:
            flag = "--" + name.replace("_", "-")
            longer = f", give --steps above {state['config']['steps']} for a longer run"
            raise ValueError(
                f"--resume: {run} began with {flag} {began}, not {value}; leave {flag} out"
                f"{longer if name in ('steps', 'minutes') else ''}, or begin another run with "
                "another --out"
            )


def checkpoint_to_resume(run: Path) -> Path:
    """What a run goes on from."""
    folder = checkpoint.latest(run)
    if folder is None:
        raise ValueError(f"--resume: no whole checkpoint in {run}")
    return folder


def train(
    config: TrainConfig, make: Callable[[TrainConfig], Task], run: Path, quiet: bool
) -> Result:
    """Trains what `make(config)` builds until `config.steps`, writing into the folder `run`.

    `make` is called when all settings are known to be good: it is the place to read the data.
    """
    if run.exists() and not run.is_dir():
        raise ValueError(f"--out {run}: there is a file of that name; expected a folder")
    folder = checkpoint_to_resume(run) if config.resume else checkpoint.latest(run)
    check_config(config)
    if folder and not config.resume:
        raise ValueError(f"{run} already holds a run; go on with --resume, or name another --out")
    saved = checkpoint.load_checkpoint(folder) if folder else None
    if saved:
        check_same_run(config, saved[1], run)
        # Minutes were turned into steps when the run began: schedules depend on their number.
        steps = max(config.steps, saved[1]["config"]["steps"])
        config = dataclasses.replace(config, steps=steps)
        if saved[1]["step"] >= steps and not quiet:
            print(f"{run} has done its {steps} steps; go on with --resume --steps above {steps}")
    elif config.steps <= 0:

        def scratch() -> Task:
            manual_seed(config.seed)
            return make(dataclasses.replace(config, steps=1000))

        with precision(config.precision):
            config = dataclasses.replace(config, steps=steps_for(config.minutes, scratch))
        if not quiet:
            print(
                f"{config.minutes:g} minutes here are {config.steps} steps (--steps {config.steps})"
            )
    manual_seed(config.seed)
    loop = _Loop(config, make(config), run, quiet)
    if saved and folder:
        loop.restore(*saved, folder)
    with precision(config.precision):
        return loop.run_all()


class _Loop:
    def __init__(self, config: TrainConfig, task: Task, run: Path, quiet: bool) -> None:
        self.config, self.task, self.run, self.quiet = config, task, run, quiet
        self.step, self.best, self.loss = 0, math.inf, math.nan
        self.eval_every = config.eval_every or max(1, config.steps // 10)

    # ---- state ----

    def save(self) -> Path:
        arrays = {"model": self.task.model.state_dict()}
        state: dict[str, Any] = {
            "task": self.task.name,
            "step": self.step,
            "loss": self.loss,
            "best": self.best,
            "config": dataclasses.asdict(self.config),
            "generator": default_generator().state_dict(),
            "batches": self.task.batches.state_dict(),
            "kernels": list(dispatch.active()),
            "optimizers": {},
            "extra": self.task.extra,
        }
        for name, optimizer in self.task.optimizers.items():
            saved = optimizer.state_dict()
            arrays[f"optimizer-{name}"] = saved.pop("moments")
            state["optimizers"][name] = saved
        return checkpoint.save_checkpoint(self.run, self.step, arrays, state)

    def restore(self, arrays: dict[str, Any], state: dict[str, Any], folder: Path) -> None:
        if state["task"] != self.task.name:
            raise ValueError(f"--resume: {folder} holds a {state['task']}, not a {self.task.name}")
        if state["extra"] != self.task.extra:
            raise ValueError(f"--resume: the data is not what {self.run} was trained on")
        if state["kernels"] != list(dispatch.active()) and not self.quiet:
            was, now = ("/".join(map(str, k)) for k in (state["kernels"], dispatch.active()))
            print(f"saved with the kernels {was}, now {now}: close, but not bit for bit")
        self.task.model.load_state_dict(arrays["model"])
        for name, optimizer in self.task.optimizers.items():
            moments = arrays[f"optimizer-{name}"]
            optimizer.load_state_dict(state["optimizers"][name] | {"moments": moments})
        self.task.batches.load_state_dict(state["batches"])
        default_generator().load_state_dict(state["generator"])
        self.step, self.best, self.loss = state["step"], state["best"], state["loss"]
        mark = checkpoint.best_mark(self.run)
        if self.best < (mark[1] if mark else math.inf):  # stopped before it could be marked
            checkpoint.mark_best(self.run, folder, self.best)
        self._forget_later_metrics()

    def _forget_later_metrics(self) -> None:
        """Drops the records of steps that were done after the checkpoint and now come again."""
        path = self.run / "metrics.jsonl"
        kept = []
        for line in path.read_text().splitlines() if path.exists() else []:
            with suppress(ValueError):  # a last line that was cut off
                if json.loads(line)["step"] <= self.step:
                    kept.append(line + "\n")
        path.write_text("".join(kept))

    # ---- the loop ----

    def run_all(self) -> Result:
        self.run.mkdir(parents=True, exist_ok=True)
        start, first = time.perf_counter(), self.step
        interrupted = False
        metrics = (self.run / "metrics.jsonl").open("a" if first else "w")
        with saving_signals() as asked, metrics, self._bar() as bar:
            while self.step < self.config.steps:
                begin = time.perf_counter()
                self.loss = self.task.step(self.step)
                rate = self.task.units / (time.perf_counter() - begin)
                self.step += 1
                if not math.isfinite(self.loss):
                    kept = checkpoint.latest(self.run)
                    raise FloatingPointError(
                        f"the loss became {self.loss} at step {self.step}; lower --lr "
                        f"(now {self.config.lr}); "
                        + (f"the last checkpoint is {kept}" if kept else "no checkpoint yet")
                    )
                bar.update(1)
                bar.set_postfix_str(f"loss {self.loss:.3f}, {rate:,.0f} {self.task.unit}/s")
                record = {"step": self.step, "loss": self.loss, f"{self.task.unit}_per_s": rate}
                last = self.step == self.config.steps
                if self.step % self.eval_every == 0 or last:
                    record["held_out_loss"] = self._evaluate(bar)
                metrics.write(json.dumps(record) + "\n")
                metrics.flush()
                if asked() and not last:
                    self.save()
                    interrupted = True
                    break
        seconds = time.perf_counter() - start
        done = self.step - first
        return Result(
            self.step,
            seconds,
            self.loss,
            self.best,
            interrupted,
            done * self.task.units / seconds if seconds else 0.0,
        )

    def _evaluate(self, bar: Any) -> float:
        self.task.model.eval()
        held_out = self.task.evaluate()
        self.task.model.train()
        better = held_out < self.best
        self.best = min(self.best, held_out)
        folder = self.save()
        if better:
            checkpoint.mark_best(self.run, folder, held_out)
        checkpoint.prune(self.run)
        if not self.quiet:
            bar.write(f"step {self.step}: loss {self.loss:.4f}, held-out {held_out:.4f}")
        return held_out

    def _bar(self) -> Any:
        return tqdm(
            total=self.config.steps,
            initial=self.step,
            desc=self.task.name,
            unit="step",
            disable=True if self.quiet else None,
            dynamic_ncols=True,
        )
