"""Planted faults: each is found, under its kind, at the line of the source that it stands in. And
the synchronisation of real kernels, deleted piece by piece."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptx_corpus import FOLDER, CudaStart, cuda_ptx, owned, parameters, program
from ptx_corpus.compare import outputs

from minigrad import gpu, ptx

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: pip install 'minigrad[gpu]'"
)
needs_nvrtc = pytest.mark.skipif(
    not gpu._nvidia("*/lib/libnvrtc.so.*"),
    reason="NVRTC is not installed: pip install 'minigrad[gpu]'",
)
STEPS = {"steps": 200_000}  # far more than any of these kernels needs


def marked_lines(path: Path, function: str) -> set[int]:
    """Lines with a fault mark between a function's name and the next function."""
    found: set[int] = set()
    inside = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if re.match(r"(extern|__device__|def )", line):
            inside = re.search(rf"\b{function}\(", line) is not None
        if inside and re.search(r"(//|#) fault", line):
            found.add(number)
    assert found, f"{path.name}: no line of {function} is marked"
    return found


def faults(start: Callable[[], Any], kinds: set[str], path: Path, lines: set[int]) -> ptx.PtxFault:
    """The fault that a start ends in, which must be one of these kinds at one of these lines."""
    with pytest.raises(ptx.PtxFault) as caught:
        start()
    fault = caught.value
    assert fault.kind in kinds, str(fault)
    assert Path(fault.file).name == path.name, str(fault)
    assert fault.line in lines, str(fault)
    assert fault.source_line.strip() == path.read_text().splitlines()[fault.line - 1].strip()
    assert path.name in str(fault)
    assert f"{fault.line}" in str(fault)
    assert fault.ptx_line > 0
    return fault


# ---- CUDA ----

OUTSIDE, SPIN = {"out_of_bounds"}, {"deadlock", "step_limit"}
CUDA_FAULTS: dict[str, set[str]] = {
    "read_outside": OUTSIDE,
    "read_before": OUTSIDE,
    "write_outside": OUTSIDE,
    "write_null": OUTSIDE,
    "atomic_outside": OUTSIDE,
    "write_read_only": {"read_only"},
    "misaligned_read": {"misaligned"},
    "misaligned_shared": {"misaligned"},
    "shared_outside": OUTSIDE,
    "dynamic_outside": OUTSIDE,
    "local_outside": OUTSIDE,
    "uninitialised": {"uninitialized"},
    "not_waited_for": {"pending"},
    "waited_for_too_few": {"pending"},
    "copies_outside": OUTSIDE,
    "divergent_barrier": {"divergent_barrier"},
    "half_at_barrier": {"divergent_barrier", "deadlock"},
    "barrier_counts": {"barrier_mismatch"},
    "nobody_arrives": {"deadlock"},
    "crossed_barriers": {"deadlock"},
    "waits_for_last": {"not_resident"},
    "lost_lock": SPIN,
    "endless": {"step_limit"},
    "read_after_write": {"race"},
    "write_after_read": {"race"},
    "write_after_write": {"race"},
    "within_a_warp": {"race"},
    "shuffle_absent": {"sync_mask", "deadlock"},
    "not_in_mask": {"sync_mask"},
    "asserts_false": {"assert"},
    "traps": {"trap"},
    "in_a_function": OUTSIDE,
}
HOPPER_FAULTS: dict[str, set[str]] = {
    "bulk_not_waited_for": {"pending"},
    "wrong_parity": {"pending"},
    "too_few_bytes": SPIN,
    "bulk_outside": OUTSIDE,
    "not_a_barrier": {"illegal", "uninitialized"},
}


def cuda_start(name: str, file: str, architecture: int, **options: Any) -> Callable[[], Any]:
    text = cuda_ptx(str(FOLDER / file), architecture, (), ())
    x = owned(np.random.default_rng(0).standard_normal(64).astype(np.float32))
    out = owned(np.zeros(64, np.float32))
    if name in ("waits_for_last", "lost_lock"):
        x = owned(np.zeros(64, np.int32))
    if name == "write_read_only":
        x.flags.writeable = False
    given = [x, None if name == "write_null" else out]
    grid = {"waits_for_last": 100_000, "write_outside": 2, "lost_lock": 2}.get(name, 1)
    shared = 128 if name == "dynamic_outside" else 0

    def start() -> Any:
        return ptx.run(
            text, name, (grid, 1, 1), (64, 1, 1), given, shared_bytes=shared, limits=STEPS,
            **options,
        )  # fmt: skip

    return start


@needs_nvrtc
@pytest.mark.parametrize("architecture", gpu.ARCHITECTURES)
@pytest.mark.parametrize("name", CUDA_FAULTS)
def test_cuda_fault(name: str, architecture: int) -> None:
    path = FOLDER / "faults.cu"
    lines = marked_lines(path, "deep" if name == "in_a_function" else name)
    fault = faults(cuda_start(name, path.name, architecture), CUDA_FAULTS[name], path, lines)
    assert fault.kernel == name
    # Whatever the order of warps.
    faults(cuda_start(name, path.name, architecture, seed=3), CUDA_FAULTS[name], path, lines)


@needs_nvrtc
@pytest.mark.parametrize("name", HOPPER_FAULTS)
def test_hopper_fault(name: str) -> None:
    path = FOLDER / "hopper_faults.cu"
    start = cuda_start(name, path.name, 90)
    faults(start, HOPPER_FAULTS[name], path, marked_lines(path, name))


@needs_nvrtc
def test_fault_says_who() -> None:
    """Block, warp and lane are the first that meet it."""
    path = FOLDER / "faults.cu"
    lines = marked_lines(path, "write_outside")
    fault = faults(cuda_start("write_outside", path.name, 80), OUTSIDE, path, lines)
    assert (fault.block, fault.warp, fault.lane) == ((1, 0, 0), 0, 0)
    lines = marked_lines(path, "read_outside")
    fault = faults(cuda_start("read_outside", path.name, 80), OUTSIDE, path, lines)
    assert (fault.block, fault.warp, fault.lane) == ((0, 0, 0), 1, 31)


# ---- Triton ----

N = 200


def triton_launch(name: str) -> gpu.TritonLaunch:
    from ptx_corpus import triton_faults as kernels

    kernel = getattr(kernels, name)
    x, out = owned(np.ones(N, np.float32)), owned(np.zeros(N, np.float32))
    if name in ("waits_for_last", "lost_lock"):
        grid = 100_000 if name == "waits_for_last" else 2
        out = owned(np.zeros(grid, np.int32))
        return gpu.TritonLaunch(kernel, (grid,), [owned(np.zeros(1, np.int32)), out], {})
    if name == "row_outside":
        x, out = owned(np.ones((30, 20), np.float32)), owned(np.zeros(30, np.float32))
        arguments = [x, out, 30, 20, 20]
        return gpu.TritonLaunch(kernel, (4,), arguments, {"ROWS": 8, "COLS": 32})
    if name == "copies_outside":
        x, y = (owned(np.ones((32, 64), np.float16)) for _ in range(2))
        arguments = [x, y, owned(np.zeros((32, 32), np.float32)), 64]
        return gpu.TritonLaunch(kernel, (1,), arguments, {"M": 32, "K": 32}, num_stages=3)
    if name == "endless":
        return gpu.TritonLaunch(kernel, (1,), [x, out], {})
    return gpu.TritonLaunch(kernel, (1,), [x, out, N], {"BLOCK": 512})


TRITON_FAULTS: dict[str, set[str]] = {
    "read_outside": OUTSIDE,
    "write_outside": OUTSIDE,
    "atomic_outside": OUTSIDE,
    "misaligned": {"misaligned"},
    "row_outside": OUTSIDE,
    "in_a_function": OUTSIDE,
    "copies_outside": OUTSIDE,
    "waits_for_last": {"not_resident"},
    "lost_lock": SPIN,
    "asserts": {"assert"},
    "endless": {"step_limit"},
}


@needs_triton
@pytest.mark.parametrize("architecture", gpu.ARCHITECTURES)
@pytest.mark.parametrize("name", TRITON_FAULTS)
def test_triton_fault(name: str, architecture: int) -> None:
    launch = triton_launch(name)
    compiled = program(launch, architecture, debug=name == "asserts")
    path = FOLDER / "triton_faults.py"
    lines = marked_lines(path, "_taken" if name == "in_a_function" else name)
    faults(starter(launch, compiled), TRITON_FAULTS[name], path, lines)


def starter(launch: gpu.TritonLaunch | CudaStart, compiled: Any, **options: Any) -> Any:
    grid = tuple(launch.grid) + (1,) * (3 - len(launch.grid))
    given = parameters(launch, compiled, grid)
    shared = options.pop("shared_bytes", compiled.shared_bytes)
    text = options.pop("text", compiled.text)
    options = {"limits": {"steps": 1_000_000}, **options}

    def start() -> Any:
        return ptx.run(
            text, compiled.kernel, grid, compiled.block, given, shared_bytes=shared, **options
        )

    return start


def attention() -> Any:
    """Triton's attention in a size that goes round its ring of tiles."""
    from ptx_corpus.triton_entries import attention_fwd

    return attention_fwd("float16", False, n=192)(0)


DIVERGENT = """{ .reg .b32 %planted; .reg .pred %odd;
mov.u32 %planted, %tid.x; setp.gt.u32 %odd, %planted, 5; @%odd bar.sync 0; }"""
MISMATCHED = """{ .reg .b32 %planted; .reg .pred %odd;
mov.u32 %planted, %tid.x; setp.gt.u32 %odd, %planted, 31;
@%odd bar.sync 0, 128; @!%odd bar.sync 0, 64; }"""
ABSENT = """{ .reg .b32 %planted; .reg .pred %odd;
mov.u32 %planted, %tid.x; setp.gt.u32 %odd, %planted, 31; bar.sync 0; @%odd bar.sync 3, 128; }"""


def replaced(pattern: str, by: str, count: int = 1) -> Callable[[str], str]:
    def edit(text: str) -> str:
        edited, found = re.subn(pattern, by, text, count=count)
        assert found
        return edited

    return edit


# What Triton's source cannot say is planted in the PTX that Triton makes of it.
EDITED: dict[str, tuple[set[str], Callable[[str], str]]] = {
    "shared bounds": (OUTSIDE, lambda text: text),
    "uninitialised": ({"uninitialized"}, replaced(r"(?m)^.*cp\.async\.cg\..*$", "", 0)),
    "not waited for": ({"pending"}, replaced(r"cp\.async\.wait_group\s+\S+", "", 0)),
    "no barrier": ({"race", "uninitialized"}, replaced(r"bar\.sync\s+0;", "", 0)),
    "divergent barrier": ({"divergent_barrier"}, replaced(r"bar\.sync\s+0;", DIVERGENT)),
    "barrier mismatch": ({"barrier_mismatch"}, replaced(r"bar\.sync\s+0;", MISMATCHED)),
    "deadlock": ({"deadlock"}, replaced(r"bar\.sync\s+0;", ABSENT)),
}


@needs_triton
@pytest.mark.parametrize("name", EDITED)
def test_fault_planted_in_triton_ptx(name: str) -> None:
    from ptx_corpus import triton_attention

    kinds, edit = EDITED[name]
    run = attention()
    compiled = program(run.launch, 80)
    path = FOLDER / "triton_attention.py"
    first = triton_attention.attention_fwd.starting_line_number
    length = len(triton_attention.attention_fwd.src.splitlines())
    options = {"shared_bytes": compiled.shared_bytes - 512} if name == "shared bounds" else {}
    start = starter(run.launch, compiled, text=edit(compiled.text), **options)
    faults(start, kinds, path, set(range(first, first + length + 2)))


SYNCHRONISATION = re.compile(r"^\s*(bar\.sync|cp\.async\.wait_group)\s[^;]*;")


@needs_triton
def test_every_synchronisation_deleted() -> None:
    """Without any one of them the machine reports, or the result is the same under 20 schedules."""
    run = attention()
    compiled = program(run.launch, 80)
    starter(run.launch, compiled)()
    want = outputs(run)
    lines = compiled.text.splitlines()
    places = [i for i, line in enumerate(lines) if SYNCHRONISATION.match(line)]
    assert len(places) >= 8
    flagged: dict[int, str] = {}
    for place in places:
        text = "\n".join([*lines[:place], "", *lines[place + 1 :]])
        try:
            for seed in (None, *range(1, 21)):
                again = attention()
                starter(again.launch, compiled, text=text, seed=seed)()
                assert outputs(again) == want, f"{lines[place]} (line {place + 1}) was missed"
        except ptx.PtxFault as fault:
            flagged[place] = fault.kind
    kinds = set(flagged.values())
    assert {"race", "pending"} <= kinds <= {"race", "pending", "uninitialized"}
    # Of those that were not flagged the result did not depend: redundant, and few.
    assert len(flagged) >= len(places) // 2


# ---- what the machine does not do ----

REFUSED = {
    "wmma": (
        'extern "C" __global__ void k(const unsigned* a, int* c) {\n    unsigned r[8];\n'
        '    asm volatile("wmma.load.c.sync.aligned.row.m16n16k16.global.f16 "\n'
        '                 "{%0,%1,%2,%3}, [%4];"\n'
        '                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "l"(a));\n'
        "    c[threadIdx.x] = r[0] + r[3];\n}\n",
        r"wmma\.load",
    ),
    "recursion": (
        "__device__ __noinline__ int f(int n) { return n < 2 ? n : f(n - 1) + f(n - 2); }\n"
        'extern "C" __global__ void k(const int* a, int* c) { c[0] = f(a[0]); }\n',
        r"(?i)recurs",
    ),
    "surface": (
        'extern "C" __global__ void k(const int* a, int* c) {\n    int v;\n'
        '    asm volatile("suld.b.1d.b32.trap {%0}, [%1, {%2}];" : "=r"(v) : "l"(a), "r"(0));\n'
        "    c[0] = v;\n}\n",
        r"suld",
    ),
}


@needs_nvrtc
@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_it_runs(name: str, tmp_path: Path) -> None:
    """An instruction that the machine does not know is named, with its line, and nothing runs."""
    source, says = REFUSED[name]
    file = tmp_path / f"{name}.cu"
    file.write_text(source)
    text = cuda_ptx(str(file), 80, (), ())
    a, c = owned(np.zeros(256, np.float16)), owned(np.zeros(256, np.float32))
    with pytest.raises(ptx.PtxError, match=says) as caught:
        ptx.run(text, "k", (1, 1, 1), (32, 1, 1), [a, c])
    line = text.splitlines()[caught.value.line - 1]
    assert re.search(says, line) or name == "recursion"
    assert caught.value.line > 0


def test_swizzled_box_ends_with_its_last_line() -> None:
    """A swizzle spreads a box over whole lines of 128 bytes: one that ends in the middle of the
    last line of shared memory would be written beyond it."""
    rows = 49  # of 16 bytes, after 128 bytes: the line at 0x380 has its chunks turned by 0x70
    fields = {
        "global_address": ("b64", "%data"), "rank": ("b32", "1"), "box_dim": ("b32", "0, 8"),
        "box_dim ": ("b32", f"1, {rows}"), "global_dim": ("b32", "0, 8"),
        "global_dim ": ("b32", f"1, {rows}"), "global_stride": ("b64", "0, 16"),
        "element_stride": ("b32", "0, 1"), "element_stride ": ("b32", "1, 1"),
        "elemtype": ("b32", "6"), "interleave_layout": ("b32", "0"), "swizzle_mode": ("b32", "3"),
        "fill_mode": ("b32", "0"),
    }  # fmt: skip
    replace = [
        f"tensormap.replace.tile.{name.strip()}.global.b1024.{width} [%map], {value};"
        for name, (width, value) in fields.items()
    ]
    text = "\n".join([
        ".version 8.3", ".target sm_90a", ".address_size 64",
        ".visible .entry k(.param .u64 map, .param .u64 data)", "{",
        ".shared .align 128 .b8 bar[128];", f".shared .align 128 .b8 box[{16 * rows}];",
        ".reg .b64 %map, %data;", ".reg .b32 %bar, %box;",
        "ld.param.u64 %map, [map];", "ld.param.u64 %data, [data];", *replace,
        "mov.u32 %bar, bar;", "mov.u32 %box, box;",
        "mbarrier.init.shared::cta.b64 [%bar], 1;",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%box], "
        "[%map, {0, 0}], [%bar];",
        "ret;", "}",
    ])  # fmt: skip
    given = [owned(np.zeros(128, np.uint8)), owned(np.zeros(8 * rows, np.float16))]
    with pytest.raises(ptx.PtxFault, match="896 bytes at 128 of shared memory") as caught:
        ptx.run(text, "k", 1, 1, given)
    assert caught.value.kind == "out_of_bounds"
