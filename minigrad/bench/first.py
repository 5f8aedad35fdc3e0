"""`minigrad bench first`: from the start of a process to the end of its first training step.

Every run is a process of its own, ours and the peer's in turn; the best run of each side counts.
The parts are the import (with the interpreter's own start), making the model, its data and
optimizer, and the step, with what a compiled peer compiles.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

from minigrad.bench import PEERS, check_peer, environment
from minigrad.threads import num_threads

PARTS = ("import_s", "build_s", "step_s")
_CHILD = """
import json, sys, time
from minigrad.bench.{module} import step
marks = [time.time()]
run = step({size!r}, {precision!r}, {argument})
marks.append(time.time())
run()
marks.append(time.time())
print(json.dumps(marks))
"""


def _run_once(module: str, size: str, precision: str, argument: bool, threads: int) -> list[float]:
    """Seconds of every part."""
    code = _CHILD.format(module=module, size=size, precision=precision, argument=argument)
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(threads),
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the process of {module} ended early (exit {done.returncode})")
    marks = [start, *json.loads(done.stdout)]
    return [after - before for before, after in pairwise(marks)]


def run_first(args: argparse.Namespace) -> dict[str, Any]:
    """The figures, in seconds."""
    check_peer(args.peer)
    threads = args.threads or num_threads()
    sides = {"": ("ours", False)}
    if args.peer:
        _, module, told = PEERS[args.peer]
        sides["peer_"] = (module, told["compile"])
    runs: dict[str, list[list[float]]] = {side: [] for side in sides}
    for _ in range(args.runs):
        for side, (module, argument) in sides.items():
            runs[side].append(_run_once(module, args.size, args.precision, argument, threads))
    figures: dict[str, Any] = {
        "what": f"first step {args.size} {args.precision}", "threads": threads, "runs": args.runs,
    }  # fmt: skip
    for side, times in runs.items():
        best = min(times, key=sum)
        figures |= {side + part: seconds for part, seconds in zip(PARTS, best, strict=True)}
        figures[side + "total_s"] = sum(best)
    if args.peer:
        figures |= {"peer": args.peer, "ratio": figures["peer_total_s"] / figures["total_s"]}
    return figures
