"""The command line: train, sample, doctor, ptx, bench."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.bench import PEERS
from minigrad.bench.jobs import MLP_STEPS, SHAPES, WHATS
from minigrad.precision import PRECISIONS
from minigrad.ptx import command as ptx_command
from minigrad.train import config as configs

MODELS = {
    "gpt": configs.GPTTrainConfig,
    "autoencoder": configs.AutoencoderTrainConfig,
    "gan": configs.GANTrainConfig,
}


def _add_fields(parser: argparse.ArgumentParser, kind: type) -> None:
    """One flag a field; those not given stay unset, so that a preset's value holds."""
    for field in dataclasses.fields(kind):
        flag = "--" + field.name.replace("_", "-")
        text = field.metadata["help"]
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
        else:
            shown = f"{text} (default: {field.default})" if field.default else text
            parser.add_argument(
                flag, type=type(field.default), default=argparse.SUPPRESS, help=shown
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minigrad", description="A small numerical engine with its own kernels."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train a model").add_subparsers(
        dest="model", required=True
    )
    for name, kind in MODELS.items():
        one = train.add_parser(name, help=kind.__doc__, description=kind.__doc__)
        if name == "gpt":
            one.add_argument(
                "--preset",
                choices=["demo", *configs.SIZES],
                help="where the other flags start from",
            )
        _add_fields(one, kind)

    sample = commands.add_parser("sample", help="text from a trained GPT")
    sample.add_argument(
        "--run", default="runs/gpt", help="folder of the run, or a checkpoint in it"
    )
    sample.add_argument("--prompt", default="\n", help="what the text begins with")
    sample.add_argument("--tokens", type=int, default=500, help="how many to add")
    sample.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest")
    sample.add_argument("--top-k", type=int, help="keep the k likeliest")
    sample.add_argument("--top-p", type=float, help="keep the likeliest up to this probability")
    sample.add_argument("--samples", type=int, default=1, help="texts, written side by side")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--json", action="store_true", help="print one JSON object a text")

    doctor = commands.add_parser("doctor", help="what runs here, and why")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")

    ptx = commands.add_parser("ptx", help="run compiled GPU kernels on the CPU").add_subparsers(
        dest="action", required=True
    )
    one = ptx.add_parser("run", help="run a kernel from a .ptx, .cu or .py file, check and count")
    ptx_command.add_arguments(one)

    bench = commands.add_parser(
        "bench", help="time a training step, generation or a kernel"
    ).add_subparsers(dest="subject", required=True)
    step = bench.add_parser("step", help="a GPT training step (forward, backward, AdamW)")
    step.add_argument("--size", choices=[*configs.SIZES, *MLP_STEPS], default="tiny")
    step.add_argument("--captured", action="store_true", help="ours as a captured step")
    step.add_argument(
        "--checkpoint-activations", action="store_true", help="ours: recompute blocks in backward"
    )
    kernel = bench.add_parser("kernel", help="one kernel")
    kernel.add_argument(
        "name",
        choices=list(SHAPES),
    )
    kernel.add_argument("--shape", help="comma-separated; each kernel has a default")
    kernel.add_argument(
        "--what", choices=WHATS, default="fwd", help="dx and dw: matmul's, each gradient alone"
    )
    kernel.add_argument("--dropout", type=float, default=0.0, help="of attention, on both sides")
    generate = bench.add_parser("generate", help="tokens a second of a GPT with its cache")
    generate.add_argument("--size", choices=list(configs.SIZES), default="small")
    generate.add_argument("--batch", type=int, default=1, help="prompts side by side")
    generate.add_argument("--prompt", type=int, default=32, help="tokens to begin with")
    generate.add_argument("--tokens", type=int, help="how many to add (128, or what fits)")
    for one, peers in (
        (step, list(PEERS)),
        (kernel, [peer for peer in PEERS if peer != "torch-fastest"]),
        (generate, ["torch"]),
    ):
        one.add_argument(
            "--precision", "--dtype", dest="precision", choices=PRECISIONS, default="fp32"
        )
        one.add_argument(
            "--peer-precision", choices=PRECISIONS, help="the peer's; ours unless given"
        )
        one.add_argument("--peer", choices=peers, help="time this, too, in alternation")
        one.add_argument("--threads", type=int, default=0, help="of both sides")
        one.add_argument("--seconds", type=float, default=10.0, help="about how long to measure")
        one.add_argument("--json", action="store_true", help="print one JSON object")
    first = bench.add_parser("first", help="a process up to the end of its first training step")
    first.add_argument("--size", choices=list(configs.SIZES), default="tiny")
    first.add_argument(
        "--precision", "--dtype", dest="precision", choices=PRECISIONS, default="fp32"
    )
    first.add_argument("--peer", choices=["torch", "torch-compile"], help="time this, too, in turn")
    first.add_argument("--threads", type=int, default=0, help="of both sides")
    first.add_argument("--runs", type=int, default=5, help="of which the best counts")
    first.add_argument("--json", action="store_true", help="print one JSON object")
    emulator = bench.add_parser("emulator", help="the PTX machine: instructions a second")
    emulator.add_argument("--json", action="store_true", help="print one JSON object")
    emulator.add_argument("--runs", type=int, default=5, help="of which the best counts")
    return parser


def _stored_config(model: str, run: str) -> Any:
    """What the run began with, so that `--out RUN --resume` is enough to go on."""
    from minigrad import checkpoint
    from minigrad.train.loop import checkpoint_to_resume

    state = checkpoint.load_checkpoint(checkpoint_to_resume(Path(run)))[1]
    if state["task"] != model:
        raise ValueError(f"--resume: {run} holds a {state['task']}, not a {model}")
    stored = state["config"]
    known = {field.name for field in dataclasses.fields(MODELS[model])}
    return MODELS[model](**{k: v for k, v in stored.items() if k in known} | {"json": False})


def _print_json(figures: dict[str, Any]) -> None:
    """One object a line; what is not finite is null, which JSON has no number for."""
    unknown = {k: None for k, v in figures.items() if isinstance(v, float) and not math.isfinite(v)}
    print(json.dumps(figures | unknown))


def _train(args: argparse.Namespace) -> int:
    given = {k: v for k, v in vars(args).items() if k not in ("command", "model", "preset")}
    preset = getattr(args, "preset", None)
    config: Any
    if given.get("resume"):
        config = _stored_config(args.model, given.get("out") or f"runs/{args.model}")
    elif preset:
        config = configs.gpt_preset(preset)
        if given.get("steps"):
            given.setdefault("minutes", 0.0)
    else:
        config = MODELS[args.model]()
    config = dataclasses.replace(config, **given)
    from minigrad.train.gpt import train_gpt
    from minigrad.train.images import train_autoencoder, train_gan
    from minigrad.train.loop import EXIT_INTERRUPTED

    run: dict[str, Any] = {"gpt": train_gpt, "autoencoder": train_autoencoder, "gan": train_gan}
    figures = run[args.model](config)
    if config.json:
        _print_json(figures)
    return EXIT_INTERRUPTED if figures["interrupted"] else 0


def _sample(args: argparse.Namespace) -> int:
    from minigrad.random import Generator
    from minigrad.train.gpt import load_gpt

    if args.samples < 1:
        raise ValueError(f"--samples: expected at least 1, got {args.samples}")
    model, tokenizer = load_gpt(args.run)
    prompts = np.tile(tokenizer.encode(args.prompt), (args.samples, 1))
    shown = args.samples == 1 and not args.json  # as it is written

    def show(token: np.ndarray) -> None:
        if shown:
            print(tokenizer.decode(token), end="", flush=True)

    generator = Generator(args.seed)
    if shown:
        print(args.prompt, end="", flush=True)
    rows = model.generate(
        prompts, args.tokens, args.temperature, args.top_k, args.top_p, generator, show
    )
    texts = [tokenizer.decode(row) for row in rows]
    if args.json:
        for text in texts:
            print(json.dumps({"text": text}))
    else:
        print("" if shown else "\n---\n".join(texts))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from minigrad.doctor import examine

    findings = examine()
    if args.json:
        _print_json(findings)
    else:
        for name, finding in findings.items():
            print(f"{name:22} {finding['value']}\n{'':22}   {finding['why']}")
    return 0


def _ptx(args: argparse.Namespace) -> int:
    return ptx_command.run_command(args)


def _bench(args: argparse.Namespace) -> int:
    if getattr(args, "runs", 1) < 1:
        raise ValueError(f"--runs: expected at least 1, got {args.runs}")
    if args.subject == "emulator":
        from minigrad.bench.emulator import run_emulator

        figures = run_emulator(args.runs)
    elif args.subject == "first":
        from minigrad.bench.first import run_first

        figures = run_first(args)
    else:
        from minigrad.bench import run

        figures = run(args)
    if args.json:
        _print_json(figures)
    else:
        for name, value in figures.items():
            print(f"{name:22} {value:.4g}" if isinstance(value, float) else f"{name:22} {value}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code (0, 1 for errors, 75 for a saved interruption;
    flags that do not parse end with argparse's 2)."""
    args = _parser().parse_args(argv)
    commands = {
        "train": _train, "sample": _sample, "doctor": _doctor, "ptx": _ptx, "bench": _bench,
    }  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(
                f"minigrad: {message}", file=sys.stderr
            )
            return commands[args.command](args)
    except (ValueError, RuntimeError, OSError, FloatingPointError, MemoryError) as error:
        print(f"minigrad: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
