"""`minigrad bench`: ours and a peer as two resident processes, timed in alternation.

Two thread pools in one process spoil each other, so each side is a worker of its own that keeps its
data and answers "run n times" with the n durations. Rounds alternate between the sides, and this
process measures the machine's limits at their ends.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from typing import Any

from minigrad import dispatch
from minigrad.bench.jobs import generation_job, kernel_job, parse_shape, step_job
from minigrad.limits import COPY_BYTES, best_of, measure_limits
from minigrad.threads import num_threads, set_num_threads

# What can be timed beside ours: the package it needs, its worker, and what the worker is told.
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "torch": ("torch", "peer_torch", {"compile": False}),
    "torch-compile": ("torch", "peer_torch", {"compile": True}),
    "torch-fastest": ("torch", "peer_torch", {}),  # of those two, and of the precisions
    "jax": ("jax", "peer_jax", {}),
    "tinygrad": ("tinygrad", "peer_tinygrad", {}),
    "uncaptured": ("minigrad", "ours", {"captured": False}),
}

# Before each turn: the other side's threads go on spinning for some milliseconds after theirs.
_REST_S = 0.02


# What holds PyTorch, oneDNN and MKL to AVX2 where ours is (MINIGRAD_ISA=avx2).
_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def check_peer(peer: str | None) -> None:
    """Raises ValueError where the peer's package is not installed."""
    if peer and importlib.util.find_spec(PEERS[peer][0]) is None:
        package = PEERS[peer][0]
        raise ValueError(f"--peer {peer}: {package} is not installed here; pip install {package}")


def environment(threads: int) -> dict[str, str]:
    """The variables of both sides' processes: this number of threads, and instruction sets that are
    the same where ours is held to AVX2."""
    held = _AVX2 if os.environ.get("MINIGRAD_ISA") == "avx2" else {}
    number = str(threads)
    return held | os.environ | {"MINIGRAD_NUM_THREADS": number, "OMP_NUM_THREADS": number}


class Worker:
    """A resident process of one side."""

    def __init__(self, side: str, job: dict[str, Any], threads: int) -> None:
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
            env=environment(threads),
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


def job_of(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """What one side does. Raises ValueError on arguments that do not go together."""
    if args.subject == "step":
        return step_job(args.size, precision, args.captured, args.checkpoint_activations)
    if args.subject == "generate":
        return generation_job(args.size, precision, args.batch, args.prompt, args.tokens)
    shape = parse_shape(args.name, args.shape)
    return kernel_job(args.name, shape, args.what, precision, args.dropout)


def _peer_jobs(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The peer's job by the name of its form: one, or those of which the fastest counts, which in
    bf16 may be in float32, too."""
    precisions = [args.peer_precision or args.precision]
    told = [PEERS[args.peer][2]]
    if args.peer == "torch-fastest":
        told = [{"compile": False}, {"compile": True}]
        if args.precision == "bf16" and not args.peer_precision:
            precisions = ["fp32", "bf16"]
    return {
        f"{'compiled' if t.get('compile') else 'eager'} {p}": job_of(args, p) | t
        for p in precisions
        for t in told
    }


def _peers(
    peer: str, jobs: dict[str, dict[str, Any]], threads: int
) -> tuple[dict[str, Worker], dict[str, float | None]]:
    """The peer's workers by the name of their form, warm, and the fastest run of each form. Of
    several, those are not kept that take more than twice as long as another, or that fail (None),
    as the compiled step in bf16 does in PyTorch 2.13 where it is held to AVX2."""
    workers: dict[str, Worker] = {}
    took: dict[str, float | None] = {}
    fastest = math.inf
    for form, job in jobs.items():
        try:
            worker = Worker(PEERS[peer][1], job, threads)
            best = min(worker.times_ms(3))
        except RuntimeError:
            if len(jobs) == 1:
                raise
            took[form] = None
            continue
        workers[form], took[form] = worker, best
        fastest = min(fastest, best)
        for slow in [name for name in workers if (took[name] or 0) > 2 * fastest]:
            workers.pop(slow).close()
    if jobs and not workers:
        raise RuntimeError(f"--peer {peer}: none of its forms ran: {', '.join(jobs)}")
    return workers, took


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures what the command line asks for; the figures, in milliseconds. Of several forms of
    the peer, the fastest counts."""
    check_peer(args.peer)
    threads = args.threads or num_threads()
    job = job_of(args, args.precision)
    peer_jobs = _peer_jobs(args) if args.peer else {}
    sides = {"ours": Worker("ours", job, threads)}
    ours = sides["ours"].about
    moved = ours["bytes"] if args.subject == "kernel" else COPY_BYTES
    set_num_threads(threads)
    peers, forms_ms = _peers(args.peer, peer_jobs, threads)
    sides |= peers
    first = max(worker.times_ms(2)[1] for worker in sides.values())  # warm
    memory = {name: worker.memory for name, worker in sides.items()}
    # Enough that a turn's first runs, with the caches full of another side's data, count little.
    repeats = max(2, min(50, int(200 / max(first, 0.01))))
    times: dict[str, list[float]] = {name: [] for name in sides}
    limits = []
    until = time.perf_counter() + args.seconds
    while time.perf_counter() < until or len(times["ours"]) < 3:
        for name, worker in sides.items():
            time.sleep(_REST_S)
            times[name] += worker.times_ms(repeats)
        time.sleep(_REST_S)
        limits.append(measure_limits(moved, repeats=3))
    peer = min(peers, key=lambda form: min(times[form])) if peers else ""
    forms_ms |= {form: min(times[form]) for form in peers}
    errors = {}
    if job["kind"] == "linear_cross_entropy" and job["what"] == "fwd+bwd":
        errors = {name: worker.ask("error")["error"] for name, worker in sides.items()}
    for worker in sides.values():
        worker.close()

    def median(values: list[float]) -> float:
        return sorted(values)[len(values) // 2]

    limit = best_of(limits)
    best = min(times["ours"])
    least = limit.least_ms(ours["bytes"], ours["operations"], ours["bf16_operations"])
    figures: dict[str, Any] = {
        "what": ours["what"],
        "min_ms": best,
        "median_ms": median(times["ours"]),
        "gflop_per_s": ours["operations"] / best / 1e6,
        "gb_per_s": ours["bytes"] / best / 1e6,
        "limit_gflop_per_s": limit.gflop_per_s,
        "limit_bf16_gflop_per_s": limit.bf16_gflop_per_s,
        "limit_gb_per_s": limit.copy_gb_per_s,
        "share_of_limit": least / best,
        **memory["ours"],
        "threads": threads,
        "kernels": "/".join(str(part) for part in dispatch.active()),
        "bfloat16": dispatch.bf16_unit() or "by conversion",
        "runs": len(times["ours"]),
    }
    if peer:
        figures |= {
            "peer": sides[peer].about["what"],
            "peer_min_ms": min(times[peer]),
            "peer_median_ms": median(times[peer]),
            "ratio": min(times[peer]) / best,
        }
        figures |= {f"peer_{k}": v for k, v in memory[peer].items()}
    if len(forms_ms) > 1:
        figures["peer_forms_ms"] = forms_ms
    if job["kind"] == "generate":
        n_tokens = job["batch"] * job["tokens"]
        figures["tokens_per_s"] = n_tokens / best * 1e3
        if peer:
            figures["peer_tokens_per_s"] = n_tokens / min(times[peer]) * 1e3
    for name, error in errors.items():
        figures["gradient_error" if name == "ours" else "peer_gradient_error"] = error
    return figures
