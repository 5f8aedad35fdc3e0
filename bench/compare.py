"""Every kernel, training step and generation against PyTorch: two processes timed in alternation.

    python bench/compare.py [--seconds 10] [--only step] [--json FILE]

Prints a table of milliseconds, ratios (PyTorch's minimum over ours) and shares of this machine's
limit. Says so where torch is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from minigrad import bench
from minigrad.bench.jobs import MLP_STEPS, SHAPES
from minigrad.train.config import SIZES


def jobs() -> list[argparse.Namespace]:
    steps = [
        argparse.Namespace(
            subject="step",
            size=size,
            precision="fp32",
            captured=captured,
            checkpoint_activations=False,
        )
        for size in (*SIZES, *MLP_STEPS)
        for captured in (False, True)
    ]
    kernels = [
        argparse.Namespace(
            subject="kernel", name=kind, shape=",".join(str(n) for n in shape), what=what
        )
        for kind, shapes in SHAPES.items()
        for shape in shapes
        for what in (("fwd",) if kind == "adamw" else ("fwd", "fwd+bwd"))
    ]
    generations = [
        argparse.Namespace(
            subject="generate", size="small", precision="fp32", batch=batch, prompt=32, tokens=128
        )
        for batch in (1, 16)
    ]
    return steps + kernels + generations


def main() -> None:
    parser = argparse.ArgumentParser(description="Every kernel and step against PyTorch.")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each line")
    parser.add_argument("--only", default="", help="lines whose name contains this")
    parser.add_argument("--threads", type=int, default=0, help="of both sides")
    parser.add_argument("--json", help="write the figures to this file, too")
    options = parser.parse_args()
    peer = "torch" if importlib.util.find_spec("torch") else None
    if peer is None:
        print("torch is not installed, so there is no ratio: pip install torch")
    print(f"{'':44}{'ms':>10}{'torch ms':>10}{'ratio':>8}{'of limit':>10}")
    rows: list[dict[str, Any]] = []
    for job in jobs():
        if job.subject == "step":
            name = f"step {job.size}" + ", captured" * job.captured
        elif job.subject == "generate":
            name = f"generate {job.size}, batch {job.batch}, {job.tokens} tokens"
        else:
            name = f"{job.name} {job.shape} {job.what}"
        if options.only not in name:
            continue
        job.peer, job.threads, job.seconds = peer, options.threads, options.seconds
        figures = bench.run(job)
        rows.append({"name": name, **figures})
        other = f"{figures['peer_min_ms']:10.3f}{figures['ratio']:8.2f}" if peer else f"{'–':>18}"
        print(f"{name:44}{figures['min_ms']:10.3f}{other}{figures['share_of_limit']:10.0%}")
    if rows and peer:
        print(f"{rows[0]['kernels']}, {rows[0]['threads']} threads; {rows[0]['peer']}")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
