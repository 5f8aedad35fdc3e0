"""Extension modules: one core, and the kernels once per instruction-set level."""

import copy
import os
import platform
import sys
from glob import glob
from pathlib import Path

import numpy
from pybind11 import get_include
from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

CORE = ["csrc/core.cpp", "csrc/pool.cpp", "csrc/threads.cpp"]
KERNELS = sorted(set(glob("csrc/*.cpp")) - set(CORE))
EMULATOR = sorted(glob("csrc/ptx/*.cpp"))
HEADERS = sorted(glob("csrc/*.h") + glob("csrc/ptx/*.h"))

FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-MMD",  # beside each object file, what it was compiled from (needs_recompile)
    "-fvisibility=hidden",
    "-fwrapv",
    # Where a multiply-add is fused is written in the kernels, so that edges and main loops agree.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-ignored-attributes",
    "-Wno-maybe-uninitialized",  # these two are raised inside GCC's own AVX-512 headers
    "-Wno-uninitialized",
]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
AMX = ["-mamx-tile", "-mamx-bf16"]
LEVELS = {"generic": []}
MODELS = os.environ.get("MINIGRAD_LEVELS") == "models"
if MODELS:
    # For the tests only: levels that this machine may lack, on its AVX2 (tests/isa_model).
    HEADERS += sorted(glob("tests/isa_model/*.h"))
    MODEL = ["-Itests/isa_model", "-DMG_AVX512", *AVX2, "-O1"]  # at -O3 it compiles twice as long
    LEVELS = {"avx512_model": MODEL, "amx_model": ["-DMG_AMX", *MODEL]}
elif platform.machine() in ("x86_64", "AMD64"):
    LEVELS["generic"] = ["-O2"]  # here for tests and very old machines: compiled in half the time
    LEVELS["avx2"] = ["-DMG_AVX2", *AVX2]
    LEVELS["avx512"] = ["-DMG_AVX512", *AVX2, *AVX512]
    LEVELS["amx"] = ["-DMG_AVX512", "-DMG_AMX", *AVX2, *AVX512, *AMX]
    if os.environ.get("MINIGRAD_LEVELS") == "here" and os.path.exists("/proc/cpuinfo"):
        # For a checkout's own environment; wheels carry every level, for any machine.
        with open("/proc/cpuinfo") as info:
            can = set(info.read().split())
        LEVELS = {
            level: flags
            for level, flags in LEVELS.items()
            if can.issuperset(
                f[2:].replace("-", "_") for f in flags if f.startswith(("-mavx", "-mamx"))
            )
        }


def extension(name: str, sources: list[str], flags: list[str]) -> Extension:
    return Extension(
        f"minigrad.{name}",
        sources,
        depends=HEADERS,
        include_dirs=[numpy.get_include(), get_include()],
        extra_compile_args=FLAGS + flags,
        extra_link_args=["-pthread"] if sys.platform != "darwin" else [],
        language="c++",
    )


# Kept between builds of every kind (in place, editable, wheel), which would each compile afresh.
OBJECTS = f"build/{sys.implementation.cache_tag}-numpy{numpy.__version__}-{platform.machine()}"


class BuildLevels(build_ext):
    """Gives each level its own folder of object files: they share their sources."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if MODELS:  # wheels take all that lies in the usual folder
            self.build_lib = "build/models"
        # Two at once: while one compiles its last file or links, the other has work for all cores.
        self.parallel = self.parallel or 2

    def build_extension(self, ext: Extension) -> None:
        own = copy.copy(self)
        own.build_temp = os.path.join(OBJECTS, ext.name)
        super(BuildLevels, own).build_extension(ext)


def kernels(level: str) -> Extension:
    name = f"_kernels_{level}"
    return extension(name, KERNELS, [f"-DMG_MODULE_NAME={name}", *LEVELS[level]])


# Vector types of the compiler elsewhere; no x86-64 machine of interest lacks AVX2.
EMULATOR_LEVELS = [
    level for level in LEVELS if level in ("avx2", "avx512") or list(LEVELS) == ["generic"]
]


def emulator(level: str) -> Extension:
    name = f"_ptx_{level}"
    # Rows of registers are read as several types.
    flags = [f"-DPTX_MODULE_NAME={name}", "-fno-strict-aliasing", *LEVELS[level]]
    return extension(name, EMULATOR, flags)


def needs_recompile(obj: str, src: str) -> bool:
    listing = Path(obj).with_suffix(".d")  # "file.o: file.cpp header.h \", over several lines
    if not listing.exists():
        return True
    _, _, used = listing.read_text().partition(": ")
    return newer_group([src, __file__, *used.replace("\\\n", "").split()], obj, missing="newer")


# One file a core, and only what changed since the last build.
ParallelCompile("MINIGRAD_BUILD_JOBS", default=0, needs_recompile=needs_recompile).install()

setup(
    ext_modules=[
        extension("_core", CORE, []),
        *map(kernels, LEVELS),
        *map(emulator, EMULATOR_LEVELS),
    ],
    cmdclass={"build_ext": BuildLevels},
)
