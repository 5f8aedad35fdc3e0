"""The Triton kernels: through Triton's interpreter on NumPy arrays against the references, and
compiled for every architecture within budgets. Both need Triton, and no GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gpu_cases import ATTENTION, DTYPES, NORMS, SOFTMAX, compare, zeros

import minigrad as mg
from minigrad import gpu

pytest.importorskip("triton", reason="Triton is not installed: pip install 'minigrad[gpu]'")
INTERPRETING = gpu.interpreting()


def test_interpreted_kernels() -> None:
    """Runs this file's interpreted tests where they can run: Triton decides between interpreter and
    compiler when a kernel is defined, so each needs a process of its own."""
    if INTERPRETING:
        pytest.skip("this is that process")
    command = [sys.executable, "-m", "pytest", "-k", "interpreted_case", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1", "MINIGRAD_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) == len(SOFTMAX + NORMS + ATTENTION)


@pytest.mark.skipif(not INTERPRETING, reason="runs in test_interpreted_kernels's own process")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, about NaN and infinity
@pytest.mark.parametrize("case", SOFTMAX + NORMS + ATTENTION, ids=str)
def test_interpreted_case(case: Any) -> None:
    compare(case, "tl")


@pytest.mark.skipif(INTERPRETING, reason="the interpreter is on")
def test_says_what_is_missing() -> None:
    x = mg.ones((2, 3))
    with mg.use_kernels("tl"), pytest.raises(gpu.GpuUnavailable, match="TRITON_INTERPRET=1"):
        mg.softmax(x)


# Registers and shared bytes at most: what was measured with Triton 3.9, and a little room. Nothing
# may spill. A thread has at most 255 registers; a block 163 KiB on sm_80.
BUDGETS: dict[str, tuple[int, int]] = {
    "softmax": (40, 64),
    "softmax_wide": (80, 64),
    "layer_norm": (48, 64),
    "layer_norm_wide": (128, 64),
    "attention-64": (255, 48 * 1024),
    "attention-128": (255, 64 * 1024),
    "attention-64-everything": (255, 52 * 1024),
    "attention-128-everything": (255, 64 * 1024),
}


def launch(name: str, dtype: str) -> gpu.TritonLaunch:
    from minigrad.kernels.tl import attention, layer_norm, softmax

    stats = zeros("float32", 64)
    if name == "softmax":
        x = zeros(dtype, 64, 1024)
        return softmax.softmax_fwd(x, x)
    if name == "softmax_wide":
        x = zeros(dtype, 64, 16384)
        return softmax.softmax_fwd(x, x)
    if name.startswith("layer_norm"):
        n = 16384 if name.endswith("wide") else 1024
        x, w = zeros(dtype, 64, n), zeros(dtype, n)
        return layer_norm.layer_norm_fwd(x, x, w, w, x, x, stats, stats, 1e-5)
    dim, everything = int(name.split("-")[1]), name.endswith("everything")
    q, lse = zeros(dtype, 2, 4, 512, dim), zeros("float32", 2, 4, 512)
    if not everything:
        return attention.attention_fwd(q, q, q, None, None, q, lse, 0.125, True, -1, 0.0, None)
    mask, bias = zeros("bool", 2, 4, 512, 512), zeros(dtype, 2, 4, 512, 512)
    rng = zeros("uint64", 2)
    return attention.attention_fwd(q, q, q, mask, bias, q, lse, 0.125, True, 100, 0.1, rng)


@pytest.mark.skipif(INTERPRETING, reason="the interpreter is on")
@pytest.mark.parametrize("architecture", gpu.ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(BUDGETS))
def test_budget(name: str, dtype: str, architecture: int) -> None:
    if name.endswith("everything") and dtype == "float16":
        pytest.skip("compiles to the same as bfloat16")
    kernel = gpu.compile_triton(launch(name, dtype), architecture)
    assert f".target sm_{architecture}" in kernel.ptx
    registers, shared = BUDGETS[name]
    assert kernel.registers <= registers
    assert kernel.shared <= shared
    assert (kernel.spilled, kernel.stack, kernel.local) == (0, 0, 0)
    if not name.startswith("attention"):
        loads = set(re.findall(r"ld\.global[\w.:]*", kernel.ptx))
        assert all(".v4.b32" in load for load in loads), f"narrower than 16 bytes: {loads}"
        assert "st.global.v4.b32" in kernel.ptx
        return
    assert "cp.async.cg.shared.global" in kernel.ptx
    if dtype != "float32":
        matrix = "wgmma.mma_async" if architecture == 90 else "mma.sync.aligned.m16n8k16"
        assert matrix in kernel.ptx


@pytest.mark.skipif(INTERPRETING, reason="the interpreter is on")
def test_specialisation_is_the_launch_s() -> None:
    """A row length that is no multiple of 16 must not be promised to be one."""
    from minigrad.kernels.tl import softmax

    odd = zeros("float32", 64, 1023)
    kernel = gpu.compile_triton(softmax.softmax_fwd(odd, odd), 80)
    assert "ld.global.v4" not in kernel.ptx


@pytest.mark.skipif(INTERPRETING, reason="the interpreter is on")
def test_line_information_names_this_copy(tmp_path: Path) -> None:
    """Of two copies of one source, the second is not given the first one's compiled kernel."""
    source = (
        "import triton\nimport triton.language as tl\n\n\n"
        "@triton.jit\ndef fill(out):\n    tl.store(out, 1.0)\n"
    )
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        path = folder / "copied_kernel.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        start = gpu.TritonLaunch(module.fill, (1, 1, 1), [zeros("float32", 1)], {})
        assert f'"{path}"' in gpu.compile_triton(start, 80).ptx
