"""`minigrad ptx run`: a kernel from a file, with arguments described in a word each.

    f32[4,256]=normal     an array: a dtype, a shape, and what it holds: zeros (the default), ones,
                          arange, normal, uniform, a number, or @file.npy
    i32=7   f32=0.5       a number
    null                  a null pointer
    hex=0a000000          bytes, for a structure passed by value

dtypes: f16 bf16 f32 f64, i8 i16 i32 i64, u8 u16 u32 u64, bool.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from .errors import PtxError, PtxFault
from .machine import Result, load
from .parse import parse

DTYPES: dict[str, Any] = {
    "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64,
    "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "bool": np.bool_,
}  # fmt: skip
MAX_ARRAY_BYTES = 1 << 32


def argument(text: str, seed: int = 0) -> Any:
    """What a description stands for: an array, a NumPy scalar, None or bytes.

    >>> argument("f32[2,2]=1.5")
    array([[1.5, 1.5],
           [1.5, 1.5]], dtype=float32)
    >>> argument("i32=7"), argument("null"), argument("hex=0102")
    (np.int32(7), None, b'\\x01\\x02')
    """
    if text == "null":
        return None
    if text.startswith("hex="):
        return bytes.fromhex(text[4:])
    found = re.fullmatch(r"(\w+)(?:\[([\d,]*)\])?(?:=(.+))?", text)
    if found is None or found[1] not in DTYPES:
        raise ValueError(
            f"argument {text!r}; expected such as f32[4,256]=normal, i32=7, null or hex=00 with a "
            f"dtype of {', '.join(DTYPES)}"
        )
    kind, shape_text, value = DTYPES[found[1]], found[2], found[3]
    if shape_text is None:
        if value is None:
            raise ValueError(f"argument {text!r}: a number is missing, such as {text}=1")
        return np.dtype(kind).type(_number(value))
    shape = tuple(int(n) for n in shape_text.split(",") if n)
    if float(np.prod(shape, dtype=np.float64)) * np.dtype(kind).itemsize > MAX_ARRAY_BYTES:
        raise ValueError(f"argument {text!r} has more than {MAX_ARRAY_BYTES} bytes")
    return _filled(shape, kind, value or "zeros", seed)


def _filled(shape: tuple[int, ...], kind: Any, value: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if value.startswith("@"):
        loaded = np.load(value[1:], allow_pickle=False)
        if shape and loaded.shape != shape:
            raise ValueError(f"{value[1:]} has shape {loaded.shape}, {shape} was asked for")
        return np.ascontiguousarray(loaded.astype(kind))
    if value == "normal":
        return rng.standard_normal(shape).astype(kind)
    if value == "uniform":
        return rng.random(shape).astype(kind)
    if value == "arange":
        return np.arange(np.prod(shape, dtype=np.int64)).reshape(shape).astype(kind)
    number = {"zeros": 0, "ones": 1}.get(value)
    return np.full(shape, _number(value) if number is None else number, kind)


def _number(text: str) -> int | float:
    try:
        return int(text, 0)
    except ValueError:
        return float(text)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `minigrad ptx run`."""
    parser.add_argument("file", help="file.ptx, file.cu or file.py; file:kernel names a kernel")
    parser.add_argument("arguments", nargs="*", metavar="argument", help="f32[4,256]=normal, "
                        "i32=7, null or hex=00, in the order of the parameters")  # fmt: skip
    parser.add_argument("--grid", type=_sizes, default=(1,), help="blocks: x or x,y or x,y,z")
    parser.add_argument("--block", type=_sizes, default=(128,), help="threads (PTX and CUDA)")
    parser.add_argument("--shared", type=int, default=0, help="bytes of dynamic shared memory")
    parser.add_argument("--arch", choices=["sm_80", "sm_90"], default="sm_80",
                        help="what .cu and .py files are compiled for")  # fmt: skip
    parser.add_argument("--define", "-D", action="append", default=[], metavar="NAME=VALUE",
                        help="a macro (CUDA) or a tl.constexpr parameter (Triton)")  # fmt: skip
    parser.add_argument("--warps", type=int, default=4, help="num_warps (Triton)")
    parser.add_argument("--stages", type=int, default=2, help="num_stages (Triton)")
    parser.add_argument("--seed", type=int, help="another order of warps and blocks, and of data")
    parser.add_argument("--by", choices=["opcode", "class", "line", "instruction"],
                        default="line", help="what the table lists")  # fmt: skip
    parser.add_argument("--top", type=int, default=30, help="how many lines of it")
    parser.add_argument("--show", type=int, action="append", default=[], metavar="N",
                        help="print argument N (from 0) afterwards")  # fmt: skip
    parser.add_argument("--save", action="append", default=[], metavar="N=FILE",
                        help="write argument N to a .npy file afterwards")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_command(args: argparse.Namespace) -> int:
    """Runs the kernel and prints what it did; 1 where a check found something."""
    values = [argument(text, (args.seed or 0) + i) for i, text in enumerate(args.arguments)]
    try:
        result = _launch(args, values)
    except PtxFault as fault:
        if args.json:
            print(json.dumps({"fault": [report.to_dict() for report in fault.reports]}))
        else:
            print(fault.output, end="")
            print(fault, file=sys.stderr)
        return 1
    for item in args.save:
        number, _, name = item.partition("=")
        np.save(name, values[int(number)])
    if args.json:
        shown = {str(n): np.asarray(values[n], np.float64).tolist() for n in args.show}
        counted = result.counters.to_dict()
        print(json.dumps(counted | {"output": result.output, "arguments": shown}))
        return 0
    print(result.output, end="")
    print(result.table(args.by, args.top))
    for n in args.show:
        print(f"argument {n}:\n{values[n]}")
    return 0


def _launch(args: argparse.Namespace, values: list[Any]) -> Result:
    from minigrad import gpu

    name, _, kernel = args.file.rpartition(":")
    if not name:
        name, kernel = args.file, ""
    path = Path(name)
    defines: dict[str, Any] = dict(item.partition("=")[::2] for item in args.define)
    architecture = int(args.arch.removeprefix("sm_"))
    if path.suffix == ".py":
        constants = {key: _constant(value) for key, value in defines.items()}
        plain = [v.item() if isinstance(v, np.generic) else v for v in values]
        launch = gpu.TritonLaunch(
            _triton_kernel(path, kernel), args.grid, plain, constants, args.warps, args.stages
        )
        with gpu.count():
            return gpu.emulate(launch, architecture, args.seed)
    if path.suffix == ".cu":
        start = gpu.CudaLaunch(path.resolve(), kernel, defines, (1, 1, 1), (1, 1, 1))
        text = gpu.cuda_ptx(start, architecture)
    elif path.suffix == ".ptx":
        text = path.read_text()
    else:
        raise ValueError(f"{args.file}: a .ptx, .cu or .py file was expected")
    entry = load(text, _entry(text, kernel))
    return entry.launch(args.grid, args.block, values, args.shared, args.seed)


def _entry(text: str, name: str) -> str | None:
    """The entry that `name` stands for: itself, or part of one C++ name."""
    if not name:
        return None
    entries = [f.name for f in parse(text).functions.values() if f.is_entry]
    found = [entry for entry in entries if name == entry] or [e for e in entries if name in e]
    if len(found) != 1:
        raise PtxError(f"kernel {name!r}; the file has {', '.join(entries) or 'none'}")
    return found[0]


def _constant(text: str) -> Any:
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    try:
        return _number(text)
    except ValueError:
        return text


def _triton_kernel(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise ValueError(f"{path} cannot be read")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    kernels = [key for key, value in vars(module).items() if hasattr(value, "arg_names")]
    if not name and len(kernels) == 1:
        name = kernels[0]
    if name not in kernels:
        raise ValueError(f"{path}: kernel {name!r}; it has {', '.join(kernels) or 'none'}")
    return getattr(module, name)
