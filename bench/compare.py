"""Every kernel, training step and generation against PyTorch: two processes timed in alternation.

    python bench/compare.py [--seconds 2] [--only step] [--json FILE]

About half an hour in all. Prints a table of milliseconds, ratios (PyTorch's minimum over ours) and
shares of this machine's limit, and for each part of it the geometric mean and the lowest of the
ratios. Captured steps are beside the fastest of PyTorch's forms: eager or compiled, and for ours in
bf16 also in either precision. bf16 is timed where the processor multiplies it. Says so where torch
is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from minigrad import bench, dispatch
from minigrad.bench.jobs import FP32_ONLY, LINEAR_LAYERS, MLP_STEPS, SHAPES, timed
from minigrad.train.config import SIZES

LAUNCHING = "optimizer and launching"
PARTS = {
    "attention": ("attention", "attention_varlen"),
    "norms, softmax, losses, GELU": ("layer_norm", "softmax", "cross_entropy", "gelu"),
    "products": ("matmul", "linear_cross_entropy"),
    LAUNCHING: FP32_ONLY,
}
ATTENTION_DROPOUT = 0.1


class Line(NamedTuple):
    part: str
    name: str
    job: argparse.Namespace


def _steps(precision: str) -> Iterator[Line]:
    for size in (*SIZES, *MLP_STEPS):
        for captured in (False, True):
            if precision == "bf16" and (size in MLP_STEPS or not captured):
                continue
            part = "captured steps" if captured else "steps, each launch from Python"
            job = argparse.Namespace(
                subject="step", size=size, precision=precision, captured=captured,
                checkpoint_activations=False,
                peer="torch-fastest" if captured and size in SIZES else "torch",
            )  # fmt: skip
            yield Line(
                LAUNCHING if size in MLP_STEPS else part,
                f"step {size} {precision}" + ", captured" * captured,
                job,
            )


def _generations(precision: str) -> Iterator[Line]:
    for batch in (1, 16):
        job = argparse.Namespace(
            subject="generate", size="small", precision=precision, batch=batch, prompt=32,
            tokens=128, peer="torch",
        )  # fmt: skip
        yield Line("generation", f"generate small {precision}, batch {batch}, 128 tokens", job)


def _kernel(
    part: str, name: str, kind: str, shape: tuple[int, ...], what: str, precision: str,
    dropout: float = 0.0,
) -> Line:  # fmt: skip
    numbers = ",".join(str(n) for n in shape)
    job = argparse.Namespace(
        subject="kernel", name=kind, shape=numbers, what=what, precision=precision,
        dropout=dropout, peer="torch",
    )  # fmt: skip
    return Line(part, f"{name} {numbers} {what} {precision}", job)


def _kernels(precision: str) -> Iterator[Line]:
    for part, kinds in PARTS.items():
        for kind in kinds:
            if precision == "bf16" and kind in FP32_ONLY:
                continue
            for shape in SHAPES[kind]:
                for what in timed(kind, shape):
                    yield _kernel(part, kind, kind, shape, what, precision)
    for shape in SHAPES["attention"][:2]:
        yield _kernel(
            "attention with dropout", "attention, dropout", "attention", shape, "fwd+bwd",
            precision, ATTENTION_DROPOUT,
        )  # fmt: skip
    for name, shape in LINEAR_LAYERS.items():
        for what in ("fwd", "dx", "dw"):
            yield _kernel("linear layers", f"linear {name}", "matmul", shape, what, precision)


def lines(precisions: tuple[str, ...]) -> list[Line]:
    """All lines, part by part, and in each the precisions in turn."""
    found = [
        line
        for precision in precisions
        for lines_of in (_steps, _generations, _kernels)
        for line in lines_of(precision)
    ]
    parts = list(dict.fromkeys(line.part for line in found))
    return sorted(found, key=lambda line: parts.index(line.part))


def summary(part: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The geometric mean and the lowest of a part's ratios, for each precision."""
    found = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        ratios = {row["name"]: row["ratio"] for row in rows if row["precision"] == precision}
        lowest = min(ratios, key=lambda name: ratios[name])
        found.append(
            {
                "name": f"{part} {precision}: geometric mean of {len(ratios)}",
                "ratio": math.exp(sum(map(math.log, ratios.values())) / len(ratios)),
                "lowest_ratio": ratios[lowest],
                "lowest": lowest,
            }
        )
    return found


def _measured(line: Line, options: argparse.Namespace, has_torch: bool) -> dict[str, Any]:
    job = line.job
    job.peer, job.peer_precision = job.peer if has_torch else None, None
    job.threads, job.seconds = options.threads, options.seconds
    figures = bench.run(job)
    other = f"{'–':>18}"
    if has_torch:
        other = f"{figures['peer_min_ms']:10.3f}{figures['ratio']:8.2f}"
    text = f"{line.name:54}{figures['min_ms']:10.3f}{other}{figures['share_of_limit']:10.0%}"
    if "peer_forms_ms" in figures:
        text += "  " + " ".join(figures["peer"].split(",")[0].split()[-2:])
    print(text, flush=True)
    return {"name": line.name, "part": line.part, "precision": job.precision, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description="Every kernel and step against PyTorch.")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line")
    parser.add_argument("--only", default="", help="lines whose name contains this")
    parser.add_argument("--threads", type=int, default=0, help="of both sides")
    parser.add_argument("--json", help="write the figures to this file, too")
    options = parser.parse_args()
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch:
        print("torch is not installed, so there is no ratio: pip install torch")
    precisions: tuple[str, ...] = ("fp32", "bf16")
    if dispatch.bf16_unit() is None:
        print("bf16 is left out: without AMX or AVX512-BF16, products convert it to float32")
        precisions = ("fp32",)
    chosen = [line for line in lines(precisions) if options.only in line.name]
    written: list[dict[str, Any]] = []
    for part, of_part in groupby(chosen, key=lambda line: line.part):
        print(f"\n{part:54}{'ms':>10}{'torch ms':>10}{'ratio':>8}{'of limit':>10}")
        rows = [_measured(line, options, has_torch) for line in of_part]
        written += rows
        for mean in summary(part, rows) if has_torch else []:
            written.append(mean)
            print(f"{mean['name']:74}{mean['ratio']:8.2f}")
            print(f"  lowest: {mean['lowest']:64}{mean['lowest_ratio']:8.2f}")
    if chosen:
        row = written[0]
        peer = f"; {row['peer']}" if has_torch else ""
        print(f"\n{row['kernels']}, bfloat16: {row['bfloat16']}, {row['threads']} threads{peer}")
    if options.json:
        Path(options.json).write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
