"""`minigrad bench`: ours and a peer as two resident processes, timed in alternation.

Two thread pools in one process spoil each other, so each side is a worker of its own that keeps its
data and answers "run n times" with the n durations. Rounds alternate between the sides.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from typing import Any

from minigrad import dispatch
from minigrad.bench.jobs import generation_job, parse_shape
from minigrad.limits import measure_limits
from minigrad.threads import num_threads

# What can be timed beside ours: the package it needs, its worker, and what the worker is told.
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "torch": ("torch", "peer_torch", {"compile": False}),
    "torch-compile": ("torch", "peer_torch", {"compile": True}),
    "jax": ("jax", "peer_jax", {}),
    "tinygrad": ("tinygrad", "peer_tinygrad", {}),
    "uncaptured": ("minigrad", "ours", {"captured": False}),
}

# Before each turn: the other side's threads go on spinning for some milliseconds after theirs.
_REST_S = 0.02


def check_peer(peer: str | None) -> None:
    """Raises ValueError where the peer's package is not installed."""
    if peer and importlib.util.find_spec(PEERS[peer][0]) is None:
        package = PEERS[peer][0]
        raise ValueError(f"--peer {peer}: {package} is not installed here; pip install {package}")


class Worker:
    """A resident process of one side."""

    def __init__(self, side: str, job: dict[str, Any], threads: int) -> None:
        environment = os.environ | {
            "MINIGRAD_NUM_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
        }
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                f"minigrad.bench.{side}",
                json.dumps(job | {"threads": threads}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended early (exit {self.process.wait()})")
        return json.loads(line)

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._read()

    def times_ms(self, repeats: int) -> list[float]:
        answer = self.ask(str(repeats))
        self.memory = {k: v for k, v in answer.items() if k != "ms"}
        return answer["ms"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


def job_of(args: argparse.Namespace) -> dict[str, Any]:
    if args.subject == "step":
        return {
            "kind": "step",
            "size": args.size,
            "precision": args.precision,
            "captured": args.captured,
            "checkpoint_activations": args.checkpoint_activations,
        }
    if args.subject == "generate":
        return generation_job(args.size, args.precision, args.batch, args.prompt, args.tokens)
    shape = parse_shape(args.name, args.shape)
    return {"kind": args.name, "shape": shape, "backward": args.what == "fwd+bwd"}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures what the command line asks for; the figures, in milliseconds."""
    check_peer(args.peer)
    threads = args.threads or num_threads()
    job = job_of(args)
    sides = {"ours": Worker("ours", job, threads)}
    if args.peer:
        _, module, told = PEERS[args.peer]
        sides["peer"] = Worker(module, job | told, threads)
    times: dict[str, list[float]] = {name: [] for name in sides}
    first = max(worker.times_ms(2)[1] for worker in sides.values())  # warm
    repeats = max(1, min(50, int(50 / max(first, 0.01))))
    until = time.perf_counter() + args.seconds
    while time.perf_counter() < until or len(times["ours"]) < 3:
        for name, worker in sides.items():
            time.sleep(_REST_S)
            times[name] += worker.times_ms(repeats)
    about = {name: worker.about for name, worker in sides.items()}
    errors = {}
    if job["kind"] == "linear_cross_entropy" and job["backward"]:
        errors = {name: worker.ask("error")["error"] for name, worker in sides.items()}
    for worker in sides.values():
        worker.close()
    is_kernel = args.subject == "kernel"
    limits = measure_limits(about["ours"]["bytes"]) if is_kernel else measure_limits()

    def median(values: list[float]) -> float:
        return sorted(values)[len(values) // 2]

    ours = about["ours"]
    best = min(times["ours"])
    figures: dict[str, Any] = {
        "what": ours["what"],
        "min_ms": best,
        "median_ms": median(times["ours"]),
        "gflop_per_s": ours["operations"] / best / 1e6,
        "gb_per_s": ours["bytes"] / best / 1e6,
        "limit_gflop_per_s": limits.gflop_per_s,
        "limit_gb_per_s": limits.copy_gb_per_s,
        "share_of_limit": max(
            ours["operations"] / limits.gflop_per_s, ours["bytes"] / limits.copy_gb_per_s
        )
        / best
        / 1e6,
        **sides["ours"].memory,
        "threads": threads,
        "kernels": "/".join(str(part) for part in dispatch.active()),
        "runs": len(times["ours"]),
    }
    if "peer" in times:
        figures |= {
            "peer": about["peer"]["what"],
            "peer_min_ms": min(times["peer"]),
            "peer_median_ms": median(times["peer"]),
            "ratio": min(times["peer"]) / best,
        }
        figures |= {f"peer_{k}": v for k, v in sides["peer"].memory.items()}
    if job["kind"] == "generate":
        n_tokens = job["batch"] * job["tokens"]
        figures["tokens_per_s"] = n_tokens / best * 1e3
        if "peer" in times:
            figures["peer_tokens_per_s"] = n_tokens / min(times["peer"]) * 1e3
    for name, error in errors.items():
        figures["gradient_error" if name == "ours" else "peer_gradient_error"] = error
    return figures
