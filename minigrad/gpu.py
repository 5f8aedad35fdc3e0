"""Compiling GPU kernels without a GPU, and running them: on the PTX machine, or Triton's through
its interpreter.

A launcher in `kernels/tl` or `kernels/cu` describes what it would start as a `TritonLaunch` or a
`CudaLaunch`: the kernel, its grid and its arguments. `compile_triton` and `compile_cuda` turn that
description into PTX and machine code for an architecture, specialised exactly as the launch would
be; `run` starts it. Nothing here is imported before a GPU kernel is asked for.

The arrays are NumPy's. On an emulated device (`mg.device("emulated:sm_80")`) a launch is compiled
to PTX once and the machine of `minigrad.ptx` executes it on them. Elsewhere Triton kernels run
where TRITON_INTERPRET=1 was set before the first one was used; it takes about a millisecond a
program, so it is for checking only.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import importlib.util
import inspect
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad import dispatch

if TYPE_CHECKING:
    from minigrad.ptx import Kernel, Result

ARCHITECTURES = (80, 90)  # those that the kernels are compiled and checked for


class GpuUnavailable(RuntimeError):
    """What a GPU kernel needs is not here; the message says what, and how to get it."""


# ---- what launchers describe ----


@dataclass
class TritonLaunch:
    """A start of a Triton kernel: `arguments` in the order of its parameters (arrays, numbers, None
    for an absent array), then `constants`, its `tl.constexpr` parameters by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: list[Any]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2


@dataclass
class CudaLaunch:
    """A start of a CUDA kernel: `entry` of a file, compiled with `defines`; arguments as passed to
    it (arrays as pointers, None as a null pointer, NumPy scalars and bytes by value)."""

    source: Path
    entry: str
    defines: dict[str, str | int]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: list[Any] = field(default_factory=list)


class Pointer:
    """An array as Triton takes it: an address and the name of a dtype. The other methods are what
    the interpreter asks of a tensor in order to copy it to the host, where it already is."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.dtype = "uint8" if array.dtype == np.bool_ else array.dtype.name

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> Pointer:
        return self

    def cpu(self) -> Pointer:
        return self

    def new_empty(self, *size: int, device: str) -> Pointer:
        return self

    def set_(self, *view: Any) -> None:
        pass

    def copy_(self, other: Pointer) -> None:
        pass

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return strides(self.array)


def strides(array: np.ndarray) -> tuple[int, ...]:
    """Strides in elements, as kernels take them."""
    return tuple(s // array.itemsize for s in array.strides)


FLOATS = ("float32", "float16", "bfloat16")


def check_floats(kernel: str, *arrays: np.ndarray | None) -> str:
    """The common dtype of the arrays' elements; TypeError for what GPU kernels do not take."""
    names = {a.dtype.name for a in arrays if a is not None}
    if len(names) != 1 or not names <= set(FLOATS):
        raise TypeError(
            f"{kernel}: the GPU kernel takes arrays of one dtype among {', '.join(FLOATS)}, got "
            f"{', '.join(sorted(names))}; the native set takes the others"
        )
    return names.pop()


def starter(launcher: Callable[..., TritonLaunch | CudaLaunch | None]) -> Callable[..., None]:
    """The kernel that a launcher of `kernels/tl` or `kernels/cu` stands for: it starts what the
    launcher describes, if there is anything to do."""

    def start(*args: Any) -> None:
        launch = launcher(*args)
        if launch is not None:
            run(launch)

    return start


def run(launch: TritonLaunch | CudaLaunch) -> None:
    """Starts a kernel; raises GpuUnavailable where nothing can run it."""
    if dispatch.active_device().startswith("emulated:"):
        emulate(launch, int(dispatch.active_device().removeprefix("emulated:sm_")))
        return
    if isinstance(launch, CudaLaunch):
        raise GpuUnavailable(
            f"{launch.entry}: CUDA kernels run on an emulated device, mg.device('emulated:sm_80'); "
            "minigrad.gpu.compile_cuda compiles one"
        )
    if os.environ.get("TRITON_INTERPRET") != "1" or hasattr(launch.kernel, "cache_key"):
        raise GpuUnavailable(
            f"{launch.kernel.__name__}: Triton kernels run on an emulated device, "
            "mg.device('emulated:sm_80'), or through Triton's interpreter: start Python with "
            "TRITON_INTERPRET=1"
        )
    given = [Pointer(a) if isinstance(a, np.ndarray) else a for a in launch.arguments]
    launch.kernel[launch.grid](*given, **launch.constants)


def interpreting() -> bool:
    """Whether Triton kernels are interpreted, where bfloat16 has no arithmetic."""
    return os.environ.get("TRITON_INTERPRET") == "1" and dispatch.active_device() == "cpu"


# ---- the emulated device ----


@dataclass(frozen=True)
class _Emulated:
    """A launch compiled for the PTX machine: sizes in bytes, scratch a block."""

    kernel: Kernel
    block: tuple[int, int, int]
    shared: int
    scratch: int
    passed: tuple[int, ...]  # which arguments are left after specialisation


_emulated: dict[Any, _Emulated] = {}
_counted: list[tuple[str, Result]] | None = None


@contextlib.contextmanager
def count() -> Iterator[list[tuple[str, Result]]]:
    """Within the block, launches on an emulated device are counted: the list that is given gets a
    pair of name and `minigrad.ptx.Result` for each."""
    global _counted
    before, _counted = _counted, []
    try:
        yield _counted
    finally:
        _counted = before


def emulate(
    launch: TritonLaunch | CudaLaunch, architecture: int, seed: int | None = None
) -> Result:
    """Compiles a launch for `architecture` (once) and runs its PTX on the arrays, in the order of
    warps and blocks that `seed` stands for. Raises `minigrad.ptx.PtxFault` for what the machine's
    checks find."""
    kernel, arguments, block, shared = emulated_arguments(launch, architecture)
    counts = _counted is not None
    result = kernel.launch(launch.grid, block, arguments, shared, seed, counts=counts)
    if _counted is not None:
        _counted.append((kernel.name, result))
    return result


def emulated_arguments(
    launch: TritonLaunch | CudaLaunch, architecture: int
) -> tuple[Kernel, list[Any], tuple[int, int, int], int]:
    """What the machine takes for a launch: kernel, arguments, block, bytes of shared memory."""
    triton = isinstance(launch, TritonLaunch)
    found = (_emulated_triton if triton else _emulated_cuda)(launch, architecture)  # type: ignore[arg-type]
    arguments = [launch.arguments[i] for i in found.passed]
    if triton:  # global and profile scratch
        size = found.scratch * math.prod(launch.grid)
        arguments += [np.zeros(size, np.uint8) if size else None, None]
    return found.kernel, arguments, found.block, found.shared


def _emulated_triton(launch: TritonLaunch, architecture: int) -> _Emulated:
    from minigrad.ptx import load

    if os.environ.get("TRITON_INTERPRET") == "1":
        raise GpuUnavailable(
            f"{launch.kernel.__name__}: Triton compiles nothing where TRITON_INTERPRET=1"
        )
    signature, constants, divisible = _specialised(launch)
    key = (
        launch.kernel, architecture, launch.num_warps, launch.num_stages, divisible,
        tuple(signature.items()), tuple(constants.items()),
    )  # fmt: skip
    if key not in _emulated:
        built = _build_triton(launch, architecture)
        kernel = load(built.asm["ptx"], built.metadata.name)
        # Warp specialisation adds warps to those asked for; the entry says how many there are.
        threads = kernel.decoded.directives.get("reqntid", (32 * launch.num_warps,))[0]
        passed = [
            i
            for i, name in enumerate(launch.kernel.arg_names[: len(launch.arguments)])
            if signature[name] != "constexpr"
        ]
        _emulated[key] = _Emulated(
            kernel, (threads, 1, 1), built.metadata.shared, built.metadata.global_scratch_size,
            tuple(passed),
        )  # fmt: skip
    return _emulated[key]


def _emulated_cuda(launch: CudaLaunch, architecture: int) -> _Emulated:
    from minigrad.ptx import load

    key = (launch.source, launch.entry, architecture, tuple(launch.defines.items()))
    if key not in _emulated:
        kernel = load(cuda_ptx(launch, architecture), launch.entry)
        _emulated[key] = _Emulated(kernel, launch.block, 0, 0, tuple(range(len(launch.arguments))))
    return dataclasses.replace(_emulated[key], block=launch.block)


# ---- what compilers give ----


@dataclass
class Compiled:
    """A kernel for one architecture. Sizes in bytes; `spilled` counts stores and loads."""

    name: str
    ptx: str
    cubin: bytes
    registers: int
    stack: int
    shared: int
    local: int
    spilled: int


def compile_triton(launch: TritonLaunch, architecture: int) -> Compiled:
    """Compiles what a launch would, for compute capability `architecture` (80 for 8.0)."""
    built = _build_triton(launch, architecture)
    return _examined(
        built.metadata.name, built.asm["ptx"], built.asm["cubin"], built.metadata.shared
    )


def _build_triton(launch: TritonLaunch, architecture: int) -> Any:
    """Triton's compiled kernel."""
    signature, constants, divisible = _specialised(launch)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    return build_triton(launch.kernel, signature, constants, divisible, architecture, **options)


def build_triton(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    divisible: Sequence[int],
    architecture: int,
    **options: Any,
) -> Any:
    """Triton's compiled kernel for types and constants by name; the arguments at the places
    `divisible` are multiples of 16."""
    _need("triton", "Triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible}
    source = ASTSource(kernel, signature, constants, attributes)
    # Triton's cache knows a source by its text. Line information names the file as well, and a copy
    # elsewhere (a second checkout, say) must not be given the first one's.
    known = f"{source.hash()}-{inspect.getsourcefile(kernel.fn)}"
    source.hash = lambda: hashlib.sha256(known.encode()).hexdigest()
    target = GPUTarget("cuda", architecture, 32)
    return compile(source, target, {"enable_fp_fusion": True, **options})


def _specialised(
    launch: TritonLaunch,
) -> tuple[dict[str, str], dict[str, Any], tuple[int, ...]]:
    """What Triton's launcher would make of the arguments: types by name, constants by name, and
    which arguments are multiples of 16."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible = []
    names = launch.kernel.arg_names
    for i, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        signature[name] = _type_of(value)
        if signature[name] == "constexpr":
            constants[name] = value
            continue
        number = value.ctypes.data if isinstance(value, np.ndarray) else value
        if isinstance(number, int) and number % 16 == 0:
            divisible.append(i)
    for name, value in launch.constants.items():
        signature[name], constants[name] = "constexpr", value
    return signature, constants, tuple(divisible)


_TRITON_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "bool": "u8",
                 "uint8": "u8", "int32": "i32", "int64": "i64", "uint64": "u64"}  # fmt: skip


def _type_of(value: Any) -> str:
    """The type a launch gives an argument; None and 1 become part of the kernel."""
    if isinstance(value, np.ndarray):
        return "*" + _TRITON_TYPES[value.dtype.name]
    if value is None or (isinstance(value, int) and value == 1):
        return "constexpr"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compile_cuda(launch: CudaLaunch, architecture: int) -> Compiled:
    """Compiles what a launch would with NVRTC, for compute capability `architecture`."""
    ptx, cubin = _build_cuda(launch, f"sm_{architecture}")
    return _examined(launch.entry, ptx.decode().rstrip("\0"), cubin, None)


def cuda_ptx(launch: CudaLaunch, architecture: int) -> str:
    """The PTX of all kernels in a launch's file, with the lines they come from."""
    # What belongs to one architecture alone (wgmma, TMA) is part of the "a" target.
    target = f"compute_{architecture}" + ("a" if architecture == 90 else "")
    return _build_cuda(launch, target)[0].decode().rstrip("\0")


def _build_cuda(launch: CudaLaunch, target: str) -> tuple[bytes, bytes]:
    """PTX and machine code; of a virtual target such as compute_80 PTX only."""
    options = [
        f"--gpu-architecture={target}",
        "--std=c++17",
        "--device-as-default-execution-space",
        "--generate-line-info",
        f"--include-path={launch.source.parent}",
        *(f"--include-path={folder}" for folder in _headers()),
        *(f"-D{name}={value}" for name, value in launch.defines.items()),
    ]
    return _nvrtc(launch.source.read_text(), str(launch.source), options)


def _need(module: str, what: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise GpuUnavailable(f"{what} is not installed: pip install 'minigrad[gpu]'")


def _nvidia(pattern: str) -> list[Path]:
    """What matches in the wheels' common folder `nvidia/`."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec else []
    return [path for root in roots for path in sorted(Path(root).glob(pattern))]


def _headers() -> list[Path]:
    return [path.parent for path in _nvidia("*/include/cuda_bf16.h")]


@cache
def _nvrtc_library() -> ctypes.CDLL:
    found = _nvidia("*/lib/libnvrtc.so.*")
    if not found or not _headers():
        raise GpuUnavailable(
            "NVRTC or CUDA's headers are not installed: pip install 'minigrad[gpu]'"
        )
    return ctypes.CDLL(str(found[0]))


def _nvrtc(source: str, name: str, options: list[str]) -> tuple[bytes, bytes]:
    library = _nvrtc_library()
    program = ctypes.c_void_p()

    def call(function: str, *arguments: Any) -> int:
        return getattr(library, function)(*arguments)

    def get(what: str) -> bytes:
        size = ctypes.c_size_t()
        call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    made = call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(), 0,
                None, None)  # fmt: skip
    if made != 0:
        raise RuntimeError(f"{name}: NVRTC could not create a program (error {made})")
    try:
        flags = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        if call("nvrtcCompileProgram", program, len(options), flags) != 0:
            log = get("ProgramLog").decode(errors="replace").rstrip("\0\n")
            raise ValueError(f"{name} does not compile with {' '.join(options)}:\n{log}")
        return get("PTX"), get("CUBIN")
    finally:
        call("nvrtcDestroyProgram", ctypes.byref(program))


def tool(name: str) -> Path:
    """A binary utility (ptxas, cuobjdump, nvdisasm) from Triton's wheel."""
    _need("triton", f"{name} comes with Triton, which")
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    return Path(str(spec.origin)).parent / "backends" / "nvidia" / "bin" / name


def disassemble(cubin: bytes) -> str:
    """The machine code (SASS) of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool("nvdisasm")), "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _examined(name: str, ptx: str, cubin: bytes, dynamic_shared: int | None) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool("cuobjdump")), "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = re.search(rf"Function {re.escape(name)}:\s*\n(.*)", said)
    if line is None:
        raise RuntimeError(f"cuobjdump does not list {name}: {said}")

    def figure(what: str) -> int:
        found = re.search(rf"{what}:(\d+)", line[1])
        return int(found[1]) if found else 0

    code = disassemble(cubin)
    return Compiled(
        name=name,
        ptx=ptx,
        cubin=cubin,
        registers=figure("REG"),
        stack=figure("STACK"),
        shared=figure("SHARED") if dynamic_shared is None else dynamic_shared,
        local=figure("LOCAL"),
        spilled=len(re.findall(r"\b(?:STL|LDL)\b", code)),
    )
