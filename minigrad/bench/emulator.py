"""`minigrad bench emulator`: how fast the PTX machine executes.

Two kernels: attention (Triton's, fp16, head_dim 64, 1024 keys, for sm_80), whose active lanes a
second count as `lane_instructions_per_s`, and a loop of nothing but `mma.sync.m16n8k16`, whose
multiply-adds (two operations each) a second are `mma_flops_per_s`. Compiling and decoding are not
timed. Both run with all default checks and counters, and with bounds only.

`training_step_cold_s` is a GPT's first step on `emulated:sm_80` (2 layers, width 64, context 64,
batch 2) in a process that has compiled nothing: Triton compiles, the machine decodes.
`training_step_warm_s` is the best of later ones.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from typing import Any

import numpy as np

import minigrad as mg
from minigrad import gpu, ops, ptx
from minigrad.models import GPT, GPTConfig
from minigrad.threads import num_threads

MODES: dict[str, dict[str, Any]] = {
    "checked_and_counted": {},
    "bounds_only": {"checks": False, "counts": False},
}
LOOPS, PRODUCTS = 500, 8

_PRODUCT = """
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
        {%a0, %a1, %a2, %a3}, {%x0, %x1, %x2, %x3}, {%y0, %y1}, {%a0, %a1, %a2, %a3};"""
_MMA = f""".version 8.0
.target sm_80
.address_size 64
.visible .entry products(.param .u64 out)
{{
    .reg .pred %p;
    .reg .b32 %a<4>, %x<4>, %y<2>, %i;
    mov.b32 %i, {LOOPS};
LOOP:{_PRODUCT * PRODUCTS}
    sub.s32 %i, %i, 1;
    setp.ne.s32 %p, %i, 0;
    @%p bra LOOP;
    ret;
}}
"""


def _best_s(launch: Any, runs: int) -> float:
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        launch()
        best = min(best, time.perf_counter() - start)
    return best


def _training_step_s(runs: int) -> tuple[float, float]:
    """Seconds of the first step, compilation included, and of the fastest of `runs` more."""
    device = "emulated:sm_80"
    model = GPT(GPTConfig(65, seq_len=64, n_layers=2, n_heads=2, dim=64))
    model.to(device)
    optimizer = mg.optim.AdamW(model.parameter_groups(0.1), lr=3e-4)
    rng = np.random.default_rng(0)
    tokens, targets = (ops.tensor(rng.integers(0, 65, (2, 64)), device=device) for _ in range(2))

    def step() -> None:
        optimizer.zero_grad()
        model.loss(tokens, targets).backward()
        optimizer.step()

    cache = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # an empty one
        cold = _best_s(step, 1)
    os.environ.pop("TRITON_CACHE_DIR")
    if cache is not None:
        os.environ["TRITON_CACHE_DIR"] = cache
    return cold, _best_s(step, runs)


def run_emulator(runs: int = 5) -> dict[str, Any]:
    """The figures, one of each name for every instruction set and mode."""
    if importlib.util.find_spec("triton") is None:
        raise ValueError(
            "bench emulator: triton, which compiles what is run, is not installed; "
            "pip install 'minigrad[gpu]'"
        )
    from minigrad.kernels.tl import attention

    cold, warm = _training_step_s(runs)
    rng = np.random.default_rng(0)
    q, k, v, out = rng.standard_normal((4, 1, 2, 1024, 64)).astype(np.float16)
    lse = np.zeros((1, 2, 1024), np.float32)
    start = attention.attention_fwd(q, k, v, None, None, out, lse, 0.125, False, -1, 0.0, None)
    with gpu.count():
        lanes = gpu.emulate(start, 80).counters.lane_instructions
    kernel, args, block, shared = gpu.emulated_arguments(start, 80)
    products = ptx.load(_MMA, "products")
    grid, threads = 16, 128
    flops = 2 * 16 * 8 * 16 * LOOPS * PRODUCTS * grid * threads // 32
    figures: dict[str, Any] = {
        "kernel": kernel.name, "lane_instructions": lanes, "threads": num_threads(), "runs": runs,
        "training_step_cold_s": cold, "training_step_warm_s": warm,
    }  # fmt: skip
    for level in ptx.levels():
        for mode, options in MODES.items():
            options = options | {"level": level}
            seconds = _best_s(
                lambda o=options: kernel.launch(start.grid, block, args, shared, **o), runs
            )
            figures[f"{level}.{mode}.lane_instructions_per_s"] = lanes / seconds
            seconds = _best_s(lambda o=options: products.launch(grid, threads, [None], **o), runs)
            figures[f"{level}.{mode}.mma_flops_per_s"] = flops / seconds
    best = ptx.levels()[-1]
    figures["lane_instructions_per_s"] = figures[
        f"{best}.checked_and_counted.lane_instructions_per_s"
    ]
    figures["mma_flops_per_s"] = figures[f"{best}.checked_and_counted.mma_flops_per_s"]
    return figures
