"""One meaning, several ways: random functions on the CPU and on the PTX machine; kernels compiled
for sm_80 and for sm_90; Triton's interpreter and the machine."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptx_corpus import FOLDER, Entry, Run, cuda_ptx, entries, owned
from ptx_corpus.compare import check, outputs, start
from ptx_corpus.random_programs import source

from minigrad import gpu, ptx

needs_nvrtc = pytest.mark.skipif(
    not gpu._nvidia("*/lib/libnvrtc.so.*"),
    reason="NVRTC is not installed: pip install 'minigrad[gpu]'",
)
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: pip install 'minigrad[gpu]'"
)


def inputs(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random numbers of all magnitudes, and the special ones."""
    rng = np.random.default_rng(seed)
    u = rng.integers(0, 2**32, (n, 2), dtype=np.uint64).astype(np.uint32)
    u[: n // 2] >>= rng.integers(0, 32, (n // 2, 2)).astype(np.uint32)
    x = (rng.standard_normal(n) * 10.0 ** rng.integers(-12, 12, n)).astype(np.float32)
    z = rng.standard_normal(n) * 10.0 ** rng.integers(-30, 30, n)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38, 0.5, -1.5]
    x[: len(special)] = special
    z[3 : 3 + len(special)] = special
    return owned(u), owned(x), owned(z)


@needs_nvrtc
@pytest.mark.skipif(shutil.which("g++") is None, reason="the CPU's side needs g++")
@pytest.mark.parametrize("out_of_line", [False, True], ids=["inlined", "called"])
@pytest.mark.parametrize("seed", range(3))
def test_random_functions(seed: int, out_of_line: bool, tmp_path: Path) -> None:
    count, n = 20, 96
    file = tmp_path / f"random{seed}.cpp"
    file.write_text(source(seed, count))
    library = tmp_path / "host.so"
    # -frounding-math: without it GCC 12 makes 0 - float(int) a negation, which is -0 for 0.
    command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-frounding-math", "-w"]
    subprocess.run([*command, "-shared", "-fPIC", str(file), "-o", str(library)], check=True)
    u, x, z = inputs(seed, n)
    want, got = np.zeros((count, n), np.uint32), owned(np.zeros((count, n), np.uint32))
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (u, x, z, want)]
    ctypes.CDLL(str(library)).run_all(*pointers, n)
    text = cuda_ptx(str(file), 80, (("OUT_OF_LINE", "1"),) if out_of_line else (), ("-fmad=false",))
    ptx.run(text, "run_all", (2, 1, 1), (64, 1, 1), [u, x, z, got, np.int32(n)])
    wrong = np.argwhere(got != want)
    assert not len(wrong), f"{len(wrong)} differ; first function{wrong[0][0]}, input {wrong[0][1]}"


# Entries whose bits may depend on how the compiler shares work out: the order of float sums.
CUDA = [e for e in entries() if e.name.startswith("cu_") and e.architectures == gpu.ARCHITECTURES]


@needs_nvrtc
@pytest.mark.parametrize("entry", CUDA, ids=str)
def test_architectures_agree(entry: Entry) -> None:
    """CUDA kernels mean the same on both, to the bit."""
    results = []
    for architecture in gpu.ARCHITECTURES:
        run = entry.make(2)
        start(run, architecture)
        results.append(outputs(run))
    assert results[0] == results[1]


# bfloat16 is wrong in the interpreter; it has no printf; 1 ms a program.
INTERPRETED = (
    "tl_vector_add", "tl_softmax_float32", "tl_softmax_float16", "tl_layer_norm_fwd_float32",
    "tl_layer_norm_bwd_float16", "tl_column_sums", "tl_cross_entropy_float32", "tl_dropout",
    "tl_random_words", "tl_gelu", "tl_matmul_float16", "tl_matmul_ieee", "tl_matmul_odd",
    "tl_matmul_int8", "tl_matmul_descriptors", "tl_attention_fwd_float16",
    "tl_attention_fwd_float16_causal", "tl_attention_bwd_keys", "tl_attention_bwd_atomic",
    "tl_atomics", "tl_histogram", "tl_scans", "tl_sorts", "tl_reductions", "tl_gathers",
    "tl_functions", "tl_convolution", "tl_adam", "tl_embedding_bwd",
)  # fmt: skip
SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import numpy as np
from minigrad import gpu
from ptx_corpus import entries
found = {{}}
for entry in entries():
    if entry.name in {names!r}:
        run = entry.make(3)
        gpu.run(run.launch)
        found.update({{f"{{entry.name}}:{{k}}": run.launch.arguments[k] for k in run.expected}})
np.savez({target!r}, **found)
"""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What Triton's interpreter computes, in a process of its own."""
    target = str(tmp_path_factory.mktemp("interpreted") / "results.npz")
    paths = [str(FOLDER.parent), str(FOLDER.parents[1])]
    script = SCRIPT.format(paths=paths, names=INTERPRETED, target=target)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    return np.load(target)


@needs_triton
@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreter_agrees(name: str, interpreted: Any) -> None:
    entry = next(e for e in entries() if e.name == name)
    run = entry.make(3)
    result = start(run, 80)
    check(entry, Run(run.launch, {k: interpreted[f"{name}:{k}"] for k in run.expected}), result)
