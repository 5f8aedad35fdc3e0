"""The CUDA kernels: compiled for every architecture within budgets, and run on the CPU by a header
that stands in for CUDA (`cuda_host/`), through dispatch, against the references."""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_cases import ATTENTION, DTYPES, NORMS, SOFTMAX, compare, zeros

import minigrad as mg
from minigrad import gpu

HOST = Path(__file__).parent / "cuda_host"

on_cpu = pytest.mark.skipif(
    shutil.which("g++") is None or platform.machine() != "x86_64",
    reason="running CUDA kernels on the CPU needs g++ on x86-64",
)
compiled = pytest.mark.skipif(
    not gpu._nvidia("*/lib/libnvrtc.so.*"),
    reason="NVRTC is not installed: pip install 'minigrad[gpu]'",
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Stands in for gpu.run: compiles a launch's source for the CPU, once, and calls it."""
    folder = tmp_path_factory.mktemp("cuda")

    @cache
    def library(source: Path, entry: str, defines: tuple[str, ...]) -> ctypes.CDLL:
        name = re.sub(r"\W", "_", "-".join((source.stem, *defines)))
        main = folder / f"{name}.cpp"
        main.write_text(f'#include "cuda_host.h"\n#include "{source}"\nHOST_ENTRY({entry})\n')
        command = ["g++", "-std=c++17", "-O1", "-mf16c", "-fPIC", "-shared", "-w", f"-I{HOST}"]
        shared = main.with_suffix(".so")
        subprocess.run([*command, *defines, str(main), "-o", str(shared)], check=True)
        return ctypes.CDLL(str(shared))

    def run(launch: gpu.CudaLaunch) -> None:
        defines = tuple(f"-D{k}={v}" for k, v in launch.defines.items())
        cells: list[Any] = []
        for value in launch.arguments:
            if value is None or isinstance(value, np.ndarray):
                cells.append(ctypes.c_void_p(None if value is None else value.ctypes.data))
            else:
                raw = value if isinstance(value, bytes) else value.tobytes()
                cells.append(ctypes.create_string_buffer(raw, len(raw)))
        pointers = (ctypes.c_void_p * len(cells))(*[ctypes.addressof(c) for c in cells])
        grid = (ctypes.c_uint * 3)(*launch.grid)
        library(launch.source, launch.entry, defines).host_launch(grid, launch.block[0], pointers)

    return run


@on_cpu
@pytest.mark.parametrize("case", SOFTMAX + NORMS + ATTENTION, ids=str)
def test_on_cpu(case: Any, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "run", host)
    compare(case, "cu")


def test_says_what_is_missing() -> None:
    x = mg.ones((2, 3))
    with (
        mg.use_kernels("cu"),
        pytest.raises(gpu.GpuUnavailable, match=r"softmax_fwd: CUDA kernels"),
    ):
        mg.softmax(x)
    wide = x.to("float64")
    with mg.use_kernels("cu"), pytest.raises(TypeError, match=r"softmax_fwd: .* got float64"):
        mg.softmax(wide)


# registers and static shared bytes at most: what was measured (NVRTC 13.5), and a little room
BUDGETS = {
    "softmax_fwd": (32, 1280),
    "layer_norm_fwd": (40, 1280),
    "attention_fwd-64": (64, 22 * 1024),
    "attention_fwd-128": (96, 42 * 1024),
}


def launches(dtype: str) -> dict[str, gpu.CudaLaunch]:
    from minigrad.kernels.cu import attention, layer_norm, softmax

    x, w, s = zeros(dtype, 64, 1024), zeros(dtype, 1024), zeros("float32", 64)
    found = {
        "softmax_fwd": softmax.softmax_fwd(x, x),
        "layer_norm_fwd": layer_norm.layer_norm_fwd(x, x, w, w, x, x, s, s, 1e-5),
    }
    for dim in (64, 128):
        q, lse = zeros(dtype, 2, 4, 512, dim), zeros("float32", 2, 4, 512)
        found[f"attention_fwd-{dim}"] = attention.attention_fwd(
            q, q, q, None, None, q, lse, 0.125, True, -1, 0.0, None
        )
    return found


@compiled
@pytest.mark.parametrize("architecture", gpu.ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(BUDGETS))
def test_budget(name: str, dtype: str, architecture: int) -> None:
    pytest.importorskip("triton", reason="cuobjdump comes with Triton")
    kernel = gpu.compile_cuda(launches(dtype)[name], architecture)
    assert f".target sm_{architecture}" in kernel.ptx
    registers, shared = BUDGETS[name]
    assert kernel.registers <= registers
    assert kernel.shared <= shared
    assert (kernel.spilled, kernel.stack, kernel.local) == (0, 0, 0)
    if name in ("softmax_fwd", "layer_norm_fwd"):
        code = gpu.disassemble(kernel.cubin)
        assert re.search(r"LDG\.E\.128", code), "no load of 16 bytes"
        assert re.search(r"STG\.E\.128", code), "no store of 16 bytes"


@compiled
def test_error_names_file_and_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.cu"
    bad.write_text('extern "C" __global__ void f() {\n    undefined_thing();\n}\n')
    with pytest.raises(ValueError, match=r"(?s)bad\.cu does not compile.*bad\.cu\(2\): error"):
        gpu.compile_cuda(gpu.CudaLaunch(bad, "f", {}, (1, 1, 1), (1, 1, 1)), 80)
