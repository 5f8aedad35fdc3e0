"""Kernels of the usual kinds, in Triton and in CUDA C++, as the PTX machine's tests start them.

An `Entry` makes, from a seed, a start (kernel, grid, arguments) and what its arrays must hold
afterwards, computed by NumPy in float64. `program` compiles it to PTX for an architecture, without
a GPU, as a launch would; `dump.py` writes all of it to a folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import gpu

FOLDER = Path(__file__).parent


@dataclass
class CudaStart:
    """A start of `entry` in the file `source` (of this folder, or a full path)."""

    source: str
    entry: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: list[Any]  # arrays, None, NumPy scalars, bytes (a structure by value)
    defines: dict[str, Any] = field(default_factory=dict)
    shared_bytes: int = 0  # dynamic
    options: tuple[str, ...] = ()

    @classmethod
    def of(cls, launch: gpu.CudaLaunch) -> CudaStart:
        return cls(
            str(launch.source),
            launch.entry,
            launch.grid,
            launch.block,
            launch.arguments,
            launch.defines,
        )


@dataclass
class Run:
    """A start, and what must be in its arguments afterwards, by their positions."""

    launch: gpu.TritonLaunch | CudaStart
    expected: dict[int, np.ndarray]


@dataclass(frozen=True)
class Entry:
    """A kernel of the corpus. `tolerance` is the largest error allowed, relative to the largest
    expected magnitude of an array; 0 asks for equality."""

    name: str
    make: Callable[[int], Run]
    tolerance: float = 0.0
    architectures: tuple[int, ...] = gpu.ARCHITECTURES
    prints: str | None = None  # what `printf` must have written
    slow: bool = False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Program:
    """PTX, and what a launch must know beyond grid and arguments. Sizes in bytes."""

    text: str
    kernel: str
    block: tuple[int, int, int]
    shared_bytes: int  # dynamic
    scratch_bytes: int | None = None  # Triton's global scratch, a block; None: CUDA has none


def program(
    launch: gpu.TritonLaunch | CudaStart, architecture: int, debug: bool = False
) -> Program:
    """Compiles what a launch would for compute capability `architecture`; `debug` keeps Triton's
    assertions."""
    if isinstance(launch, CudaStart):
        source = launch.source if "/" in launch.source else str(FOLDER / launch.source)
        defines = tuple(sorted((k, str(v)) for k, v in launch.defines.items()))
        text = cuda_ptx(source, architecture, defines, launch.options)
        block = tuple(launch.block) + (1,) * (3 - len(launch.block))
        return Program(text, launch.entry, block, launch.shared_bytes)  # type: ignore[arg-type]
    return _triton(launch, architecture, debug)


@cache
def cuda_ptx(
    source: str, architecture: int, defines: tuple[tuple[str, str], ...], options: tuple[str, ...]
) -> str:
    path = Path(source)
    # wgmma and TMA belong to the architecture-specific set of instructions.
    target = f"compute_{architecture}" + ("a" if architecture == 90 else "")
    command = [
        f"--gpu-architecture={target}",
        "--std=c++17",
        "--device-as-default-execution-space",
        "--generate-line-info",
        f"--include-path={path.parent}",
        *(f"--include-path={folder}" for folder in gpu._headers()),
        *(f"-D{name}={value}" for name, value in defines),
        *options,
    ]
    text, _ = gpu._nvrtc(path.read_text(), str(path), command)
    return text.decode().rstrip("\0")


def _triton(launch: gpu.TritonLaunch, architecture: int, debug: bool) -> Program:
    signature: dict[str, str] = {}
    constants: dict[Any, Any] = {}
    divisible = []
    for i, (name, value) in enumerate(zip(launch.kernel.arg_names, launch.arguments, strict=False)):
        signature[name] = type_of(value)
        if signature[name] == "constexpr":
            constants[name] = value
        elif isinstance(value, np.ndarray) or (isinstance(value, int) and value % 16 == 0):
            divisible.append(i)
    for name, value in launch.constants.items():
        signature[name], constants[name] = "constexpr", value
    built = gpu.build_triton(
        launch.kernel, signature, constants, divisible, architecture,
        num_warps=launch.num_warps, num_stages=launch.num_stages, debug=debug,
    )  # fmt: skip
    text = built.asm["ptx"]
    # Warp specialisation adds warps to those asked for; the entry says how many there are.
    threads = re.search(r"\.reqntid (\d+)", text)
    assert threads is not None
    meta = built.metadata
    return Program(text, meta.name, (int(threads[1]), 1, 1), meta.shared, meta.global_scratch_size)


def type_of(value: Any) -> str:
    """The type a launch gives an argument."""
    if isinstance(value, np.ndarray) and value.dtype == np.int8:
        return "*i8"
    return gpu._type_of(value)


def passed(launch: gpu.TritonLaunch | CudaStart) -> list[Any]:
    """The arguments that a compiled kernel has parameters for (the scratch pointers aside), as
    NumPy holds them: None is a null pointer."""
    if isinstance(launch, CudaStart):
        return list(launch.arguments)
    found: list[Any] = []
    for value in launch.arguments:
        kind = type_of(value)
        if kind == "constexpr":
            continue
        if kind == "fp32":
            value = np.float32(value)
        elif kind in ("i32", "i64"):
            value = (np.int32 if kind == "i32" else np.int64)(value)
        found.append(value)
    return found


def parameters(
    launch: gpu.TritonLaunch | CudaStart, compiled: Program, grid: tuple[int, ...]
) -> list[Any]:
    """All arguments in the order of the compiled kernel's parameters."""
    found = passed(launch)
    if compiled.scratch_bytes is not None:
        blocks = int(np.prod(grid))
        scratch = (
            owned(np.zeros(compiled.scratch_bytes * blocks, np.uint8))
            if compiled.scratch_bytes
            else None
        )
        found += [scratch, None]
    return found


def owned(array: np.ndarray) -> np.ndarray:
    """A copy that owns its memory, which the machine puts at a multiple of 256 bytes."""
    return np.array(array, order="C", copy=True)


def entries() -> list[Entry]:
    """All of the corpus that the compilers here can compile."""
    found: list[Entry] = []
    if find_spec("triton") is not None:
        from . import triton_entries

        found += triton_entries.ENTRIES
    if gpu._nvidia("*/lib/libnvrtc.so.*"):
        from . import cuda_entries

        found += cuda_entries.ENTRIES
    return found
