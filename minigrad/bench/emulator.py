"""`minigrad bench emulator`: how fast the PTX machine executes.

Two kernels: attention (Triton's, fp16, head_dim 64, 1024 keys, for sm_80), whose active lanes a
second count as `lane_instructions_per_s`, and a loop of nothing but `mma.sync.m16n8k16`, whose
multiply-adds (two operations each) a second are `mma_flops_per_s`. Compiling and decoding are not
timed. Both run with all default checks and counters, and with bounds only.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from minigrad import gpu, ptx
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


def run_emulator(runs: int = 5) -> dict[str, Any]:
    """The figures, one of each name for every instruction set and mode."""
    from minigrad.kernels.tl import attention

    rng = np.random.default_rng(0)
    q, k, v, out = rng.standard_normal((4, 1, 2, 1024, 64)).astype(np.float16)
    lse = np.zeros((1, 2, 1024), np.float32)
    start = attention.describe_attention_fwd(
        q, k, v, None, None, out, lse, 0.125, False, -1, 0.0, None
    )
    with gpu.count():
        lanes = gpu.emulate(start, 80).counters.lane_instructions
    kernel, args, block, shared = gpu.emulated_arguments(start, 80)
    products = ptx.load(_MMA, "products")
    grid, threads = 16, 128
    flops = 2 * 16 * 8 * 16 * LOOPS * PRODUCTS * grid * threads // 32
    figures: dict[str, Any] = {
        "kernel": kernel.name, "lane_instructions": lanes, "threads": num_threads(), "runs": runs,
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
