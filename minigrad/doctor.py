"""What was chosen on this machine and why, what is missing and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib import metadata

from minigrad import dispatch
from minigrad.ptx import levels
from minigrad.threads import num_threads

Findings = dict[str, dict[str, str]]


def _package(name: str, purpose: str, extra: str) -> dict[str, str]:
    if importlib.util.find_spec(name) is None:
        return {"value": "not installed", "why": f"{purpose}: pip install 'minigrad[{extra}]'"}
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = "unknown version"
    return {"value": version, "why": purpose}


def _instructions() -> dict[str, str]:
    kernels, level = dispatch.active()
    if kernels != "native":
        return {
            "value": "none: NumPy references",
            "why": "the native kernels are not built; install a C++ compiler, then pip install .",
        }
    runs = ", ".join(dispatch.levels())
    why = f"the best of what this processor and build have ({runs}); MINIGRAD_ISA chooses another"
    if "MINIGRAD_ISA" in os.environ:
        why = f"MINIGRAD_ISA asks for it; there are {runs}"
    return {"value": level or "", "why": why}


def _bfloat16() -> dict[str, str]:
    unit = dispatch.bf16_unit()
    if unit is None:
        return {
            "value": "by conversion",
            "why": "products convert it to float32, so --precision bf16 is no faster here; it is "
            "with AMX or AVX512-BF16",
        }
    multiplies = {"AMX": "the tile unit multiplies", "AVX512-BF16": "vdpbf16ps multiplies"}[unit]
    return {"value": unit, "why": f"{multiplies} it: --precision bf16 trains so"}


def _gpu() -> dict[str, str]:
    if not os.path.exists("/dev/nvidiactl"):
        return {"value": "none", "why": "no NVIDIA driver here; this version trains on the CPU"}
    return {"value": "present", "why": "not used by this version, which trains on the CPU"}


def _emulator() -> dict[str, str]:
    available = levels()
    if not available:
        return {"value": "none", "why": "the PTX machine is not built; see kernels"}
    return {"value": available[-1], "why": "runs GPU kernels here: mg.device('emulated:sm_80')"}


def examine() -> Findings:
    """One finding a topic: its value, and why or what to do."""
    threads = "MINIGRAD_NUM_THREADS" in os.environ
    return {
        "minigrad": {"value": metadata_version(), "why": f"Python {sys.version.split()[0]}"},
        "machine": {"value": platform.machine(), "why": platform.platform()},
        "kernels": _instructions(),
        "bfloat16": _bfloat16(),
        "threads": {
            "value": str(num_threads()),
            "why": "MINIGRAD_NUM_THREADS asks for it"
            if threads
            else "processors of this process, within the container's limit; MINIGRAD_NUM_THREADS "
            "chooses another number",
        },
        "gpu": _gpu(),
        "emulator": _emulator(),
        "triton": _package("triton", "compiles the Triton kernels, without a GPU too", "gpu"),
        "matplotlib": _package("matplotlib", "draws loss curves and image grids", "plot"),
        "torch": {
            "value": "present" if importlib.util.find_spec("torch") else "not installed",
            "why": "only a reference in tests and a peer in benchmarks; never imported otherwise",
        },
    }


def metadata_version() -> str:
    import minigrad

    return minigrad.__version__
