"""The emulated device: the engine's GPU kernels, compiled to PTX and executed by the machine,
through dispatch, against the references."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from gpu_cases import ATTENTION, NORMS, SOFTMAX, TOLERANCE, GpuCase

import minigrad as mg
from minigrad import gpu, ptx
from minigrad.models import GPT, GPTConfig
from minigrad.profile import Profile

ARCHITECTURES = ("sm_80", "sm_90")
CASES = SOFTMAX + NORMS + ATTENTION

pytestmark = [
    pytest.mark.skipif(not ptx.levels(), reason="the PTX machine is not built"),
    pytest.mark.skipif(gpu.interpreting(), reason="the interpreter is on"),
]
COMPILERS = {
    "tl": pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
    "cu": pytest.mark.skipif(
        not gpu._nvidia("*/lib/libnvrtc.so.*"), reason="NVRTC is not installed"
    ),
}
SETS = [pytest.param(name, marks=mark) for name, mark in COMPILERS.items()]


def compare(case: GpuCase, kernels: str, architecture: str) -> Profile:
    """By the reference and on the device, from equal inputs and an equal random stream."""
    inputs = case.make(case.dtype)
    name = f"emulated:{architecture}"
    moved = [x.to(name) for x in inputs]
    options = {k: v.to(name) if isinstance(v, mg.Tensor) else v for k, v in case.options.items()}
    mg.manual_seed(7)
    with mg.no_grad(), mg.use_kernels("ref"):
        want = case.call(*inputs, **case.options)
    mg.manual_seed(7)
    with mg.no_grad(), mg.device(name), mg.use_kernels(kernels), mg.profile() as profile:
        got = case.call(*moved, **options)
    for w, g in zip(*[x if isinstance(x, tuple) else (x,) for x in (want, got)], strict=True):
        assert (g.dtype, g.device, w.device) == (w.dtype, name, "cpu")
        wide, result = w.numpy().astype(np.float64), g.numpy().astype(np.float64)
        finite = wide[np.isfinite(wide)]
        largest = np.abs(finite).max() if finite.size else 1.0
        np.testing.assert_allclose(result, wide, rtol=0, atol=TOLERANCE[case.dtype] * largest)
    return profile


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Any, kernels: str, architecture: str) -> None:
    profile = compare(case, kernels, architecture)
    assert any(not name.startswith("numpy:") for name in profile.rows)


@COMPILERS["tl"]
def test_profile_says_what_numpy_did() -> None:
    x = mg.randn((3, 8)).to("emulated:sm_80")
    with mg.profile() as p:
        mg.softmax(mg.exp(x))
    assert {"softmax_fwd", "numpy:exp"} <= set(p.rows)
    with (
        pytest.raises(ValueError, match="unknown device 'emulated:sm_70'"),
        mg.device("emulated:sm_70"),
    ):
        pass


@COMPILERS["tl"]
def test_faults_name_the_kernel_s_line() -> None:
    """A launcher that is told the wrong sizes."""
    from minigrad.kernels.tl import softmax

    x, out = np.zeros((4, 100), np.float32), np.zeros((4, 100), np.float32)
    launch = softmax.softmax_fwd(x, out)
    launch.grid = (5, *launch.grid[1:])
    launch.arguments = [5 if a == 4 else a for a in launch.arguments if not np.ndim(a)]
    launch.arguments = [x, out, *launch.arguments]
    with pytest.raises(ptx.PtxFault, match=r"(?s)argument \d.*softmax\.py:\d+") as caught:
        gpu.emulate(launch, 80)
    assert caught.value.kind == "out_of_bounds"
    assert caught.value.file.endswith("softmax.py")


def losses(dropout: float, device: str | None) -> list[float]:
    """By the references, or where the model is."""
    mg.manual_seed(3)
    config = GPTConfig(65, seq_len=64, n_layers=2, n_heads=2, dim=64, dropout=dropout)
    model = GPT(config)
    if device:
        model.to(device)
    optimizer = mg.optim.AdamW(model.parameter_groups(0.1), lr=3e-3)
    rng = np.random.default_rng(0)
    tokens, targets = (mg.tensor(rng.integers(0, 65, (2, 64)), device=device) for _ in range(2))
    found = []
    with contextlib.nullcontext() if device else mg.use_kernels("ref"):
        for _ in range(5):
            optimizer.zero_grad()
            loss = model.loss(tokens, targets)
            loss.backward()
            optimizer.step()
            found.append(float(loss.item()))
    return found


@COMPILERS["tl"]
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training(architecture: str, dropout: float) -> None:
    """Five steps of a GPT, those kernels that there are on the device; with the same elements
    dropped."""
    want = losses(dropout, None)
    got = losses(dropout, f"emulated:{architecture}")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert want[-1] < want[0]


def losses_in_halves(device: str) -> list[float]:
    """Three steps with dropout; parameters, activations and gradients in bfloat16, what the
    optimizer updates in float32."""
    mg.manual_seed(3)
    model = GPT(GPTConfig(65, seq_len=64, n_layers=2, n_heads=2, dim=64, dropout=0.1))
    masters = [mg.tensor(p.numpy(), None, device, True) for p in model.parameters()]
    parameters = model.to(device).to("bfloat16").parameters()
    optimizer = mg.optim.AdamW(masters, lr=3e-3)
    rng = np.random.default_rng(0)
    tokens, targets = (mg.tensor(rng.integers(0, 65, (2, 64)), device=device) for _ in range(2))
    found = []
    for _ in range(3):
        model.zero_grad()
        loss = model.loss(tokens, targets)
        loss.backward()
        for master, p in zip(masters, parameters, strict=True):
            assert p.grad is not None
            master.grad = p.grad.to("float32")
        optimizer.step()
        with mg.no_grad():
            for master, p in zip(masters, parameters, strict=True):
                p.copy_(master)
        found.append(float(loss.item()))
    return found


@COMPILERS["tl"]
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_in_halves(architecture: str) -> None:
    """A GPT in bfloat16 equals the CPU's, with the same elements dropped."""
    want = losses_in_halves("cpu")
    got = losses_in_halves(f"emulated:{architecture}")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-2)
    assert want[-1] < want[0]
