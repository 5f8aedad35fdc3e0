"""Running PTX on NumPy arrays: the face of the machine.

    result = minigrad.ptx.run(ptx_text, "saxpy", grid=4, block=128, args=[x, y, np.float32(2), n])

Arrays are passed as pointers and written in place. Every array that is passed is a range of device
memory of its own, far from the others, so an access outside of it is found; the first byte of an
array that owns its memory is aligned to 256 bytes.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import linecache
import math
import os
from collections.abc import Sequence
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from . import isa
from .counters import Counters
from .decode import Decoded, decode
from .errors import PtxError, PtxFault, Report
from .layout import GAP
from .parse import parse
from .syntax import Module, Variable

ARRAYS_BASE = 0x20_0000_0000  # device addresses of the arrays that are passed
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
SHARED_LIMITS = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
LARGEST_SHARED = 227 << 10
LEVELS = ("generic", "avx2", "avx512")

Dimensions = int | Sequence[int]


class Result:
    """A finished launch: `counters`, and `output`, the text that the kernel printed."""

    def __init__(self, counters: Counters, output: str) -> None:
        self.counters, self.output = counters, output

    def table(self, by: str = "opcode", top: int = 30) -> str:
        """The counters as text; see Counters.table."""
        return self.counters.table(by, top)

    def to_json(self) -> str:
        """The counters and the output as a JSON object."""
        return json.dumps(self.counters.to_dict() | {"output": self.output})


def levels() -> list[str]:
    """The instruction sets whose executor is built and runs here, best last."""
    from minigrad import dispatch

    core = dispatch._core
    runs = core.supported_levels() if core is not None else ["generic"]
    return [x for x in LEVELS if x in runs and importlib.util.find_spec(f"minigrad._ptx_{x}")]


@cache
def _module(level: str | None) -> ModuleType:
    available = levels()
    if level is None:
        level = os.environ.get("MINIGRAD_ISA") or (available[-1] if available else "generic")
        if level == "amx":  # a level of the kernels only: beside tiles it is avx512
            level = "avx512"
    if level not in available:
        raise RuntimeError(
            f"the PTX machine for {level} is not here; built and able to run: "
            f"{', '.join(available) or 'none (pip install . with a C++ compiler builds it)'}"
        )
    return importlib.import_module(f"minigrad._ptx_{level}")


class Kernel:
    """An entry of a PTX text, decoded and ready to launch."""

    def __init__(self, decoded: Decoded) -> None:
        self.decoded = decoded
        self.name = decoded.kernel
        self._programs: dict[str | None, Any] = {}

    def program(self, level: str | None = None) -> Any:
        """The executor's program; PtxError where the executor does not know an instruction."""
        found = self._programs.get(level)
        if found is None:
            d = self.decoded
            try:
                found = _module(level).Program(
                    d.instructions, d.operands, d.constants, d.n_rows, d.n_preds, d.entry,
                    d.static_shared, d.local_bytes, d.param_bytes,
                )  # fmt: skip
            except ValueError as error:
                raise self._refused(error) from None
            self._programs[level] = found
        return found

    def _refused(self, error: ValueError) -> PtxError:
        at = getattr(error, "instruction", -1)
        message = getattr(error, "message", str(error))
        if not 0 <= at < len(self.decoded.origin):
            return PtxError(f"{self.name}: {message}")
        written = int(self.decoded.origin[at])
        if written < 0:
            return PtxError(f"{self.name}: {message}")
        opcode = self.decoded.written[written].op
        return PtxError(f"{self.name}: {opcode}: {message}", self.decoded.lines[written])

    def launch(
        self,
        grid: Dimensions,
        block: Dimensions,
        args: Sequence[Any],
        shared_bytes: int = 0,
        seed: int | None = None,
        *,
        checks: bool = True,
        counts: bool = True,
        level: str | None = None,
        threads: int = 0,
        limits: dict[str, int] | None = None,
    ) -> Result:
        """Runs the kernel; see `run`."""
        grid3 = _dimensions("grid", grid, MAX_GRID, self.name)
        block3 = _dimensions("block", block, MAX_BLOCK, self.name)
        self._check_launch(block3, shared_bytes)
        memory = _Memory(self.decoded)
        params = self._pack(args, memory)
        raw = self.program(level).launch(
            grid=grid3, block=block3, params=params, dynamic_shared=shared_bytes,
            ranges=memory.table(), seed=seed or 0,
            checks=sum(isa.CHECKS.values()) if checks else isa.CHECKS["BOUNDS"],
            counts=sum(isa.COUNTS.values()) if counts else 0,
            limits=limits or {}, threads=threads,
        )  # fmt: skip
        if raw["reports"]:
            reports = [self._report(found, args, memory) for found in raw["reports"]]
            raise PtxFault(reports, raw["printed"])
        return Result(Counters(self.decoded, raw), raw["printed"])

    def _check_launch(self, block: tuple[int, int, int], shared_bytes: int) -> None:
        threads = math.prod(block)
        if threads > 1024:
            raise PtxError(f"{self.name}: a block of {threads} threads; at most 1024 fit")
        wanted = self.decoded.directives.get("reqntid")
        if wanted is not None and (*wanted, 1, 1)[:3] != block:
            raise PtxError(f"{self.name} asks for blocks of {wanted} (.reqntid), given {block}")
        most = self.decoded.directives.get("maxntid")
        if most is not None and threads > math.prod(most):
            raise PtxError(f"{self.name} takes blocks of up to {most} (.maxntid), given {block}")
        target = self.decoded.module.target
        digits = "".join(c for c in target.partition("_")[2] if c.isdigit())
        limit = SHARED_LIMITS.get(int(digits), LARGEST_SHARED) if digits else LARGEST_SHARED
        total = self.decoded.static_shared + shared_bytes
        if shared_bytes < 0 or total > limit:
            raise PtxError(
                f"{self.name}: {total} bytes of shared memory; {target or 'the target'} has {limit}"
            )

    def _pack(self, args: Sequence[Any], memory: _Memory) -> bytes:
        params = self.decoded.params
        if len(args) != len(params):
            raise PtxError(f"{self.name} takes {len(params)} arguments, given {len(args)}")
        packed = bytearray(self.decoded.param_bytes)
        for i, ((variable, at), arg) in enumerate(zip(params, args, strict=True)):
            data = self._bytes(i, variable, arg, memory)
            if len(data) != variable.size:
                raise PtxError(
                    f"{self.name}: argument {i} has {len(data)} bytes, the parameter "
                    f"{variable.name} has {variable.size}"
                )
            packed[at : at + len(data)] = data
        return bytes(packed)

    def _bytes(self, i: int, variable: Variable, arg: Any, memory: _Memory) -> bytes:
        if arg is None:
            return bytes(8)
        if isinstance(arg, np.ndarray):
            return memory.pointer(arg, i).to_bytes(8, "little")
        if isinstance(arg, bytes | bytearray):
            return bytes(arg)
        if isinstance(arg, np.generic):
            return arg.tobytes()
        if isinstance(arg, float):
            kinds: dict[int, Any] = {2: np.float16, 4: np.float32, 8: np.float64}
            if variable.size in kinds:
                return kinds[variable.size](arg).tobytes()
        if isinstance(arg, int):
            bits = 8 * variable.size
            if bits <= 64 and -(1 << (bits - 1)) <= arg < 1 << bits:
                return (arg & ((1 << bits) - 1)).to_bytes(variable.size, "little")
            raise PtxError(f"{self.name}: argument {i}, {arg}, does not fit {bits} bits")
        raise PtxError(
            f"{self.name}: argument {i} is a {type(arg).__name__}; arrays, None, numbers, NumPy "
            "scalars and bytes can be passed"
        )

    def _report(self, found: dict[str, Any], args: Sequence[Any], memory: _Memory) -> Report:
        decoded = self.decoded
        at = found["instruction"]
        written = self._written(at)
        instruction = decoded.written[written] if written >= 0 else None
        place = instruction.place if instruction else 0
        source = decoded.module.source(place)
        message = found["message"]
        if found["kind"] in ("out_of_bounds", "misaligned", "read_only"):
            where = memory.describe(found["address"])
            message = message.split(": ")[0] + where if where else message
        other_line = 0
        other = self._written(found.get("other", -1))
        if other >= 0:
            other_source = decoded.module.source(decoded.written[other].place)
            other_line = other_source.line if other_source else decoded.lines[other]
        return Report(
            kind=found["kind"],
            message=message,
            kernel=self.name,
            ptx_line=decoded.lines[written] if written >= 0 else 0,
            opcode=instruction.op if instruction else "",
            file=source.file if source else "",
            line=source.line if source else 0,
            source_line=linecache.getline(source.file, source.line).strip() if source else "",
            stack=decoded.module.stack(place),
            block=tuple(found["block"]),
            warp=found["warp"],
            lane=found["lane"],
            address=found["address"],
            other_line=other_line,
        )

    def _written(self, at: int) -> int:
        """The written instruction of a decoded one: its own, or of an added one the next."""
        origin = self.decoded.origin
        while 0 <= at < len(origin) and origin[at] < 0:
            at += 1
        return int(origin[at]) if 0 <= at < len(origin) else -1


class _Memory:
    """The device memory of one launch: which addresses stand for which bytes of the host."""

    def __init__(self, decoded: Decoded) -> None:
        self.next = ARRAYS_BASE
        self.kept: list[Any] = []  # what must live as long as the launch
        self.known: dict[tuple[int, int], int] = {}
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.arguments: list[tuple[int, int, str]] = []
        self._variables(decoded)

    def _variables(self, decoded: Decoded) -> None:
        for variable, base in decoded.variables:
            data = np.zeros(max(1, variable.size), np.uint8)
            data[: len(variable.initial)] = np.frombuffer(variable.initial, np.uint8)
            for at, width, name, addend, _ in variable.addresses:
                value = (decoded.addresses[name] + addend) & ((1 << 8 * width) - 1)
                data[at : at + width] = np.frombuffer(value.to_bytes(width, "little"), np.uint8)
            flags = isa.READ_ONLY if variable.space == "const" else 0
            self._add(base, variable.size, data, data.ctypes.data, flags, variable.name)

    def _add(self, base: int, size: int, keep: Any, host: int, flags: int, name: str) -> None:
        self.kept.append(keep)
        self.rows.append((base, size, host, flags, len(self.rows)))
        self.arguments.append((base, size, name))

    def pointer(self, array: np.ndarray, i: int) -> int:
        """The device address of an array's first element."""
        if array.dtype.hasobject:
            raise PtxError(f"argument {i} is an array of Python objects")
        start, end = np.lib.array_utils.byte_bounds(array)
        here = array.ctypes.data
        if array.size == 0:
            start = end = here
        base = self.known.get((start, end))
        if base is None:
            owner = array
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            first = owner.ctypes.data
            # As if the owner's memory began at a multiple of 256, or as far from one of 16 as it
            # does, so that what a launcher concluded from the host's address holds.
            offset = (start - first + first % 16) % 256
            base = self.known[start, end] = -(-self.next // 256) * 256 + offset
            self.next = base + (end - start) + GAP
            flags = 0 if array.flags.writeable else isa.READ_ONLY
            name = f"argument {i} ({array.dtype}, shape {array.shape}"
            self._add(base, end - start, array, start, flags, f"{name}, {end - start} bytes)")
        return base + (here - start)

    def table(self) -> np.ndarray:
        rows = [row for row in self.rows if row[1]]
        return np.array(sorted(rows), isa.RANGE)

    def describe(self, address: int) -> str:
        """Where an address lies relative to the nearest array."""
        if address < 1 << 16:
            return "; the address is (nearly) null"
        if not self.arguments or address >= isa.SHARED_WINDOW:
            return ""

        def distance(known: tuple[int, int, str]) -> int:
            base, size, _ = known
            return max(base - address, address - (base + size) + 1, 0)

        base, size, name = min(self.arguments, key=distance)
        if distance((base, size, name)) > GAP:
            return "; no array is near"
        if address < base:
            return f"; {base - address} bytes before {name}"
        if address >= base + size:
            return f"; {address - base - size} bytes past the end of {name}"
        return f"; at byte {address - base} of {name}"


def _dimensions(
    what: str, given: Dimensions, most: tuple[int, int, int], kernel: str
) -> tuple[int, int, int]:
    sizes = tuple(given) if isinstance(given, Sequence | np.ndarray) else (given,)
    if not 1 <= len(sizes) <= 3 or not all(isinstance(n, int | np.integer) for n in sizes):
        raise PtxError(f"{kernel}: {what} {given!r}; one to three whole numbers were expected")
    x, y, z = (*(int(n) for n in sizes), 1, 1)[:3]
    for n, limit in zip((x, y, z), most, strict=True):
        if not 1 <= n <= limit:
            raise PtxError(f"{kernel}: {what} {given}; each size from 1 to {most}")
    return x, y, z


@lru_cache(maxsize=16)
def _parsed(text: str) -> Module:
    return parse(text)


@lru_cache(maxsize=256)
def load(ptx_text: str, kernel: str | None = None) -> Kernel:
    """An entry of a PTX text, decoded; the only one where `kernel` is None. Kernels are kept by
    text. Raises PtxError, with the line, for text that the machine cannot run."""
    module = _parsed(ptx_text)
    if kernel is None:
        entries = [f.name for f in module.functions.values() if f.is_entry and f.has_body]
        if len(entries) != 1:
            raise PtxError(f"say which kernel: the text has {', '.join(entries) or 'none'}")
        kernel = entries[0]
    return Kernel(decode(module, kernel))


def run(
    ptx_text: str,
    kernel: str | None,
    grid: Dimensions,
    block: Dimensions,
    args: Sequence[Any],
    shared_bytes: int = 0,
    seed: int | None = None,
    *,
    checks: bool = True,
    counts: bool = True,
    level: str | None = None,
    threads: int = 0,
    limits: dict[str, int] | None = None,
) -> Result:
    """Runs an entry of a PTX text on NumPy arrays and counts what it does.

    grid, block: one to three sizes. args, in the order of the entry's parameters: an array is
    passed as the address of its first element and written in place, None as a null pointer, NumPy
    scalars and bytes (a structure) by value, Python numbers as the parameter's size asks.
    shared_bytes: dynamic shared memory. seed: None for the fixed schedule; a number chooses another
    order of warps and blocks.

    checks: False leaves only those that protect the process (bounds and alignment of every access).
    counts: False counts nothing. level: the instruction set of the executor ("avx2", …; the best by
    default). threads: 0 for as many as the machine has. limits: "steps" (instructions a warp),
    "print_bytes" and others, over the defaults.

    Raises PtxError before anything runs, for text or a launch the machine cannot run, and PtxFault,
    with reports, for what a check finds.
    """
    return load(ptx_text, kernel).launch(
        grid, block, args, shared_bytes, seed,
        checks=checks, counts=counts, level=level, threads=threads, limits=limits,
    )  # fmt: skip
