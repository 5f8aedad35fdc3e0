"""From the name of a kernel to the function that runs: the one hop that is by name.

`launch("softmax_fwd", x, out)` calls the symbol `softmax_fwd` of the active set of kernels:

* `native`: the C++ module of the best instruction-set level this machine runs (`csrc/softmax.cpp`);
* `ref`: the plain NumPy definition in the op file (`REFERENCE` in `minigrad/ops/softmax.py`);
* `tl`, `cu`: the Triton and CUDA launchers of that name in `kernels/tl` and `kernels/cu`.

A name is resolved once per set and cached. There is no fallback from one set to another: a kernel
that is not there is an error that says what is. Only on a device (`device("emulated:sm_80")`) does
the reference do what has no GPU kernel yet, and a profile shows it as `numpy:name`. Every launch
passes through `launch`, which is where a profile counts and times it.

A tensor has a device, and an operation runs where its tensors are: `Function.apply` and the few ops
beside it activate that device if it is not active. The context `device` says where new tensors are
made.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from minigrad import dtypes
from minigrad.shapes import broadcast_shape

Kernel = Callable[..., None]
Observer = Callable[[str, Kernel, tuple[Any, ...]], None]

try:
    from minigrad import _core  # type: ignore[attr-defined]
except ImportError:
    _core = None  # type: ignore[assignment]

SETS = ("native", "ref", "tl", "cu")


class KernelNotFound(NotImplementedError):
    """No kernel of this name in the active set; the message says where one exists."""


# ---- instruction-set levels ----

if _core is not None:
    _core.register_bfloat16(dtypes.bfloat16)
    empty = _core.empty
else:
    warnings.warn(
        "minigrad: the native kernels are not built, so the plain NumPy references run instead; "
        "install a C++ compiler and run `pip install .` in the source folder to have them",
        stacklevel=2,
    )

    def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return np.empty(shape, dtype)


def levels() -> list[str]:
    """The instruction-set levels that are built and that this machine can run, best last."""
    if _core is None:
        return []
    return [level for level in _core.supported_levels() if _find(level)]


def _find(level: str) -> bool:
    return importlib.util.find_spec(f"minigrad._kernels_{level}") is not None


def _default_level() -> str | None:
    available = levels()
    forced = os.environ.get("MINIGRAD_ISA")
    if forced is None:
        return available[-1] if available else None
    if forced not in available:
        raise ValueError(
            f"MINIGRAD_ISA={forced} cannot run here; this machine and build have "
            f"{', '.join(available) or 'none'}"
        )
    return forced


# ---- the active set ----

_level = _default_level()
_set = "native" if _level else "ref"
_device = "cpu"
elsewhere = False  # whether a tensor of this process may be on another device than the cpu
_tables: dict[tuple[str, str | None, str], dict[str, Kernel]] = {}
_table: dict[str, Kernel] = _tables.setdefault((_set, _level, _device), {})
_observer: Observer | None = None


def launch(name: str, *args: Any) -> None:
    """Runs the kernel `name` of the active set on arrays, numbers and None; outputs are
    arguments."""
    kernel = _table.get(name)
    if kernel is None:
        kernel = _table[name] = _resolve(name)
    if _observer is None:
        kernel(*args)
    elif isinstance(kernel, _ByNumpy):
        _observer(f"numpy:{name}", kernel, args)
    else:
        _observer(name, kernel, args)


def launch_made(name: str, *args: Any) -> np.ndarray:
    """`launch` of an elementwise kernel that makes its output, None among the arguments: a new
    array of the inputs' broadcast shape, in the dtype of the last of them."""
    if _observer is None and _set == "native":  # which makes it in the same call
        kernel: Any = _table.get(name)
        if kernel is None:
            kernel = _table[name] = _resolve(name)
        return kernel(*args)
    place = next(i for i, value in enumerate(args) if value is None)
    inputs = args[:place]
    out = empty(broadcast_shape(name, *[x.shape for x in inputs]), inputs[-1].dtype)
    launch(name, *inputs, out, *args[place + 1 :])
    return out


class _ByNumpy:
    """A reference in the place of a kernel that a device does not have yet."""

    def __init__(self, function: Kernel) -> None:
        self.function = function

    def __call__(self, *args: Any) -> None:
        self.function(*args)


def launch_numpy(name: str, function: Kernel, *args: Any) -> None:
    """Runs what an op by design leaves to NumPy, so that a profile shows it as `numpy:name`
    (its cost stands under that name, too)."""
    if _observer is None:
        function(*args)
    else:
        _observer(f"numpy:{name}", function, args)


def active() -> tuple[str, str | None]:
    """The active set of kernels and, for `native`, its instruction-set level."""
    return _set, (_level if _set == "native" else None)


@contextlib.contextmanager
def use_kernels(name: str) -> Iterator[None]:
    """Within the block, launches go to the set `name`: native, ref, tl or cu."""
    if name not in SETS:
        raise ValueError(f"use_kernels: unknown set {name!r}; expected one of {', '.join(SETS)}")
    if name == "native" and _level is None:
        raise RuntimeError("use_kernels: the native kernels are not built")
    with _activated(name, _level, _device):
        yield


DEVICES = ("cpu", "emulated:sm_80", "emulated:sm_90")


def check_device(op: str, name: str) -> str:
    """The name of a device, or ValueError."""
    if name not in DEVICES:
        raise ValueError(f"{op}: unknown device {name!r}; expected one of {', '.join(DEVICES)}")
    return name


@contextlib.contextmanager
def device(name: str) -> Iterator[None]:
    """Within the block, new tensors are made on the device `name`: "cpu", or "emulated:sm_80" and
    "emulated:sm_90", where the Triton kernels (or, in `use_kernels("cu")`, the CUDA kernels) are
    compiled for that architecture and the PTX is executed on the CPU, with every access checked
    (`docs/emulator.md`). Arrays stay NumPy's. What has no GPU kernel yet is done by the NumPy
    references. Operations run where their tensors are, in the block and outside of it."""
    check_device("device", name)
    kernels = "tl" if name != "cpu" else "native" if _level else "ref"
    with _activated(kernels, _level, name):
        yield


def bf16_unit() -> str | None:
    """What multiplies bfloat16 at the active level, "AMX" or "AVX512-BF16"; None where products
    convert it to float32."""
    if active() == ("native", "amx"):
        return "AMX"
    return "AVX512-BF16" if active() == ("native", "avx512") and _core.has_bf16_dot() else None


def configuration() -> tuple[str, str | None, str]:
    """Set, level and device: launches of one name and configuration go to one kernel."""
    return _set, _level, _device


def active_device() -> str:
    """The device whose kernels run, and on which new tensors are made."""
    return _device


@contextlib.contextmanager
def use_level(level: str) -> Iterator[None]:
    """Within the block, native kernels are those of this instruction-set level (see `levels()`)."""
    if level not in levels():
        raise ValueError(f"use_level: {level!r} cannot run here; available: {', '.join(levels())}")
    with _activated("native", level, _device):
        yield


@contextlib.contextmanager
def _activated(kernels: str, level: str | None, device: str) -> Iterator[None]:
    global _set, _level, _device, _table, elsewhere
    before = _set, _level, _device, _table
    _set, _level, _device = kernels, level, device
    elsewhere = elsewhere or device != "cpu"
    _table = _tables.setdefault((kernels, level, device), {})
    try:
        yield
    finally:
        _set, _level, _device, _table = before


def current_observer() -> Observer | None:
    """What runs launches in place of `launch`, if anything does."""
    return _observer


@contextlib.contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Within the block, `observer(name, kernel, args)` runs every launch in place of `launch`."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def _resolve(name: str) -> Kernel:
    found: Kernel | None = None
    if _set == "native":
        found = getattr(importlib.import_module(f"minigrad._kernels_{_level}"), name, None)
    elif _set == "ref":
        found = lookup("REFERENCE", name)
    else:
        stem = name.removesuffix("_fwd").removesuffix("_bwd")
        launcher = getattr(_gpu_module(stem), name, None)
        reference = lookup("REFERENCE", name)
        if launcher is not None:
            from minigrad.gpu import starter

            found = starter(launcher)
        elif reference is not None and _device != "cpu":
            found = _ByNumpy(reference)
    if found is None:
        raise KernelNotFound(f"{name}: the set {_set!r} has no such kernel; {_where(name)}")
    return found


def _gpu_module(stem: str) -> ModuleType | None:
    package = importlib.import_module(f"minigrad.kernels.{_set}")
    full = f"{package.__name__}.{stem}"
    return importlib.import_module(full) if importlib.util.find_spec(full) else None


def lookup(table: str, name: str) -> Any:
    """The entry `name` of the dictionaries called `table` that op files carry, or None."""
    from minigrad import limits, ops, optim

    for module in (*ops.MODULES, *optim.MODULES, limits):
        entries = getattr(module, table, None)
        if entries and name in entries:
            return entries[name]
    return None


def _where(name: str) -> str:
    have = [s for s in ("ref",) if lookup("REFERENCE", name)]
    if _level and hasattr(importlib.import_module(f"minigrad._kernels_{_level}"), name):
        have.insert(0, "native")
    if not have:
        return "no set has it"
    return f"it exists in {' and '.join(have)} (mg.use_kernels)"
