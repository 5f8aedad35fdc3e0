"""`minigrad bench`: what it prints, that both sides do the same, and what it refuses."""

from __future__ import annotations

import argparse
import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import tiny

import minigrad as mg
from minigrad import bench, cost, dtypes
from minigrad.bench import ours
from minigrad.bench.jobs import FP32_ONLY, LINEAR_LAYERS, SHAPES, generation_job, kernel_job
from minigrad.cli import main

TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}  # relative, L2

# Small ones of every kernel.
TINY: dict[str, tuple[int, ...]] = {
    "attention": (2, 2, 40, 16),
    "layer_norm": (5, 40),
    "softmax": (5, 40),
    "cross_entropy": (5, 40),
    "gelu": (5, 40),
    "matmul": (40, 24, 33),
    "adamw": (50,),
    "linear_cross_entropy": (40, 24, 33),
    "attention_varlen": (3, 2, 24, 16),
    "add": (10,),
    "chain": (10,),
}


def jobs(kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every form of these kernels."""
    return [
        kernel_job(kind, TINY[kind], what, precision)
        for kind in kinds
        for precision in (("fp32",) if kind in FP32_ONLY else ("fp32", "bf16"))
        for what in ("fwd", "fwd+bwd", *(("dx", "dw") if kind == "matmul" else ()))
    ]


def name_of(job: dict[str, Any]) -> str:
    return f"{job['kind']} {job['what']} {job['precision']}"


def measured(*args: Any, **environment: str) -> dict[str, Any]:
    """The figures of `minigrad bench`, briefly and with one thread."""
    shortly = ("--seconds", 0.1, "--threads", 1, "--json")
    done = tiny.minigrad("bench", *args, *shortly, **environment)
    assert done.returncode == 0, done.stderr
    return tiny.json_of(done)


# ---- figures ----


FIGURES = {"what", "min_ms", "median_ms", "gflop_per_s", "gb_per_s", "limit_gflop_per_s",
           "limit_bf16_gflop_per_s", "limit_gb_per_s", "share_of_limit", "threads", "kernels",
           "bfloat16", "runs", "peak_mb", "peak_above_start_mb"}  # fmt: skip
PEER_FIGURES = {"peer", "peer_min_ms", "peer_median_ms", "ratio", "peer_peak_mb",
                "peer_peak_above_start_mb"}  # fmt: skip


def test_bench_kernel_has_the_figures_it_promises() -> None:
    shape = ("--shape", "2,2,64,16")
    figures = measured("kernel", "attention", *shape, "--dtype", "fp32", "--what", "fwd+bwd")
    assert set(figures) == FIGURES
    assert figures["what"] == "attention [2, 2, 64, 16] fwd+bwd fp32"
    assert 0 < figures["min_ms"] <= figures["median_ms"]
    assert figures["threads"] == 1
    for name in ("gflop_per_s", "gb_per_s", "limit_gflop_per_s", "limit_gb_per_s"):
        assert figures[name] > 0
    assert figures["runs"] >= 3


def test_bench_of_the_fused_loss_tells_memory_and_gradient_error_too() -> None:
    flags = ("--shape", "300,16,500", "--what", "fwd+bwd")
    figures = measured("kernel", "linear_cross_entropy", *flags)
    assert set(figures) == FIGURES | {"gradient_error"}
    assert 0 < figures["gradient_error"] < 1e-6
    assert 0 < figures["peak_above_start_mb"] < figures["peak_mb"]


def test_bench_step_in_bf16_says_so() -> None:
    assert measured("step", "--precision", "bf16")["what"] == "step tiny bf16"


@pytest.mark.parametrize(
    ("flags", "what", "precision"),
    [
        (("attention", "--shape", "2,2,40,16", "--dropout", 0.1, "--precision", "bf16"),
         "attention [2, 2, 40, 16] fwd bf16, dropout 0.1", "bf16"),
        (("matmul", "--shape", "40,24,33", "--what", "dw"), "matmul [40, 24, 33] dw fp32", "fp32"),
    ],
)  # fmt: skip
def test_bench_kernel_with_its_options_and_a_peer(
    flags: tuple[Any, ...], what: str, precision: str
) -> None:
    peer = importlib.util.find_spec("torch") is not None
    figures = measured("kernel", *flags, *(("--peer", "torch") if peer else ()))
    assert set(figures) == FIGURES | (PEER_FIGURES if peer else set())
    assert figures["what"] == what
    if peer:
        assert f"eager {precision}" in figures["peer"]


def test_bench_step_times_a_peer_too() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: no peer to time")
    peer = ("--peer", "torch", "--peer-precision", "fp32")
    figures = measured("step", "--size", "tiny", "--precision", "bf16", *peer)
    assert set(figures) == FIGURES | PEER_FIGURES
    assert figures["what"] == "step tiny bf16"
    assert "eager fp32" in figures["peer"]
    assert figures["ratio"] == pytest.approx(figures["peer_min_ms"] / figures["min_ms"])


@pytest.mark.skipif("avx2" not in mg.levels(), reason="this machine or build has no AVX2")
def test_both_sides_are_held_to_avx2() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: no peer to hold")
    figures = measured("kernel", "add", "--peer", "torch", MINIGRAD_ISA="avx2")
    assert figures["kernels"] == "native/avx2"
    assert figures["bfloat16"] == "by conversion"
    assert figures["peer"].endswith("AVX2, oneDNN at most AVX2, MKL at most AVX2")


def test_bench_generate_times_tokens() -> None:
    peer = importlib.util.find_spec("torch") is not None
    done = tiny.minigrad(
        *("bench", "generate", "--size", "tiny", "--batch", 2, "--prompt", 4, "--tokens", 6),
        *(("--peer", "torch") if peer else ()),
        *("--seconds", 0.1, "--threads", 1, "--json"),
    )
    assert done.returncode == 0, done.stderr
    figures = tiny.json_of(done)
    names = FIGURES | {"tokens_per_s"} | (PEER_FIGURES | {"peer_tokens_per_s"} if peer else set())
    assert set(figures) == names
    assert figures["what"] == "generate tiny fp32, batch 2, 6 tokens after 4"
    assert figures["tokens_per_s"] == pytest.approx(12e3 / figures["min_ms"])


@pytest.mark.parametrize(
    "flags", [("--tokens", 33), ("--batch", 0), ("--prompt", 0), ("--tokens", -1)], ids=str
)
def test_bench_of_what_cannot_be_generated(
    flags: tuple[Any, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "generate", "--size", "tiny", *map(str, flags)]) == 1
    assert "expected numbers above 0, and a prompt that fits" in capfd.readouterr().err


def test_bench_first_has_the_figures_it_promises() -> None:
    done = tiny.minigrad("bench", "first", "--precision", "bf16", "--runs", 1, "--json")
    assert done.returncode == 0, done.stderr
    figures = tiny.json_of(done)
    parts = [figures[name] for name in ("import_s", "build_s", "step_s")]
    assert set(figures) == {"what", "threads", "runs", "import_s", "build_s", "step_s", "total_s"}
    assert min(parts) > 0
    assert figures["total_s"] == pytest.approx(sum(parts))


@pytest.mark.parametrize("peer", ["torch", "jax", "tinygrad"])
@pytest.mark.parametrize("job", [("step", "--size", "mlp-sgd"), ("kernel", "add")], ids=str)
def test_bench_of_what_is_small(peer: str, job: tuple[str, ...]) -> None:
    """The cost of launching, beside each peer that is installed; the others are named."""
    done = tiny.minigrad("bench", *job, "--peer", peer, "--seconds", 0.1, "--threads", 1, "--json")
    if importlib.util.find_spec(peer) is None:
        assert done.returncode == 1
        assert done.stderr.startswith(f"minigrad: --peer {peer}: {peer} is not installed here")
        return
    assert done.returncode == 0, done.stderr
    assert tiny.json_of(done)["peer"].startswith(peer)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("2,3,4", "--shape for softmax: expected 2 numbers above 0, got 2,3,4"),
        ("2,x", "--shape for softmax: expected 2 numbers above 0, got 2,x"),
        ("2,0", "--shape for softmax: expected 2 numbers above 0, got 2,0"),
    ],
)
def test_bench_of_a_shape_that_does_not_fit(
    shape: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "kernel", "softmax", "--shape", shape, "--json"]) == 1
    assert capfd.readouterr().err == f"minigrad: {message}\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("kernel", "softmax", "--what", "dx"), "--what dx: only of matmul, a linear layer"),
        (("kernel", "gelu", "--dropout", 0.1), "--dropout 0.1: only of attention and attention_"),
        (("kernel", "attention", "--dropout", 1.5), "expected a number from 0 to below 1, got 1.5"),
        (("kernel", "adamw", "--dtype", "bf16"), "--precision bf16: adamw is timed in fp32 only"),
        (("step", "--size", "mlp-sgd", "--precision", "bf16"), "mlp-sgd is timed in fp32 only"),
        (("kernel", "add", "--peer", "uncaptured", "--peer-precision", "bf16"),
         "--precision bf16: add is timed in fp32 only"),
        (("first", "--runs", 0), "--runs: expected at least 1, got 0"),
        (("emulator", "--runs", -1), "--runs: expected at least 1, got -1"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told(
    flags: tuple[Any, ...], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *map(str, flags), "--json"]) == 1
    assert message in capfd.readouterr().err


# ---- what is timed ----


@pytest.mark.parametrize("job", jobs(tuple(SHAPES)), ids=name_of)
def test_every_job_runs(job: dict[str, Any]) -> None:
    out = ours.kernel(job)()
    if job["kind"] == "adamw":
        return
    form = {"fp32": dtypes.float32, "bf16": dtypes.bfloat16}[job["precision"]]
    if job["what"] != "fwd":
        # A weight's gradient is float32, as in training.
        product = job["kind"] in ("matmul", "linear_cross_entropy")
        kinds = [form, dtypes.float32] if product else [form] * len(out)
        assert [g.dtype for g in out] == (kinds[1:] if job["what"] == "dw" else kinds[: len(out)])
    elif job["kind"] in ("cross_entropy", "linear_cross_entropy"):
        assert out.dtype == dtypes.float32
    else:
        assert out.dtype == form


@pytest.mark.parametrize("what", ["fwd", "dx", "dw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_part_of_a_linear_layer_is_one_product(what: str, precision: str) -> None:
    run = ours.kernel(kernel_job("matmul", TINY["matmul"], what, precision))
    run()  # packs the weight
    with mg.profile() as p:
        run()
    rows = set(p.rows) - {"pack_bf16"}  # of the rows, for the gradient of the weight
    assert rows == {"matmul" if precision == "fp32" else "matmul_packed"}
    assert sum(row.operations for row in p.rows.values()) >= 2 * math.prod(TINY["matmul"])
    assert ("pack_bf16" in p.rows) == (what == "dw" and precision == "bf16")


def test_dropout_is_drawn() -> None:
    plain, dropped = (
        ours.kernel(kernel_job("attention", TINY["attention"], dropout=p))().numpy()
        for p in (0.0, 0.4)
    )
    assert np.abs(plain - dropped).max() > 0.1


SAME = tuple(k for k in SHAPES if k not in ("adamw", "attention_varlen"))  # padded: other arrays


@pytest.mark.parametrize("job", jobs(SAME), ids=name_of)
def test_both_sides_do_the_same(job: dict[str, Any]) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    from minigrad.bench import peer_torch

    mine, theirs = ours.kernel(job)(), peer_torch.kernel(job, compiled=False)()
    if job["what"] == "fwd":
        mine, theirs = [mine], [theirs]
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        x, y = a.numpy().astype(np.float64), b.detach().double().numpy()
        assert x.shape == y.shape
        assert np.linalg.norm(x - y) <= TOLERANCE[job["precision"]] * np.linalg.norm(y)


def test_linear_layers_are_those_of_the_presets() -> None:
    assert len(LINEAR_LAYERS) == 20
    assert LINEAR_LAYERS["small expand"] == (8 * 256, 384, 4 * 384)
    assert LINEAR_LAYERS["mid qkv"] == (4 * 256, 512, 3 * 512)
    assert LINEAR_LAYERS["gpt2 head"] == (256, 768, 50257)


def test_generation_adds_by_itself_what_fits_into_the_context() -> None:
    assert generation_job("tiny", "fp32", 1, 32, None)["tokens"] == 32
    assert generation_job("small", "fp32", 1, 32, None)["tokens"] == 128
    with pytest.raises(ValueError, match="a prompt that fits with its tokens into the 64 of tiny"):
        generation_job("tiny", "fp32", 1, 64, None)


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="triton is here")
def test_the_speed_of_the_ptx_machine_says_what_it_lacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "emulator"]) == 1
    assert "triton, which compiles what is run, is not installed" in capsys.readouterr().err


def test_rows_are_judged_at_all_their_sizes() -> None:
    rows = {(64, 50257), (2048, 384), (8192, 768), (8192, 4096)}
    for kind in ("layer_norm", "softmax", "cross_entropy", "gelu"):
        assert rows <= set(SHAPES[kind])
    for kind in ("layer_norm", "softmax"):
        assert (16384, 4096) in SHAPES[kind]


def test_products_of_bfloat16_cost_bfloat16_operations() -> None:
    assert cost.product_cost(8, 6, dtypes.float32) == cost.Cost(8, 6, 0)
    for kind in ("attention", "attention_varlen", "matmul"):
        for precision in ("fp32", "bf16"):
            run = ours.kernel(kernel_job(kind, TINY[kind], "fwd+bwd", precision))
            run()
            with mg.profile() as p:
                run()
            of_bf16 = {row.name for row in p.rows.values() if row.bf16_operations}
            products = {f"{kind}_fwd", f"{kind}_bwd"} if kind != "matmul" else {"matmul_packed"}
            assert of_bf16 == (products if precision == "bf16" else set())
            for name in of_bf16:
                assert p.rows[name].bf16_operations == p.rows[name].operations


# ---- the fastest of a peer's forms ----


def step_args(precision: str, peer: str, peer_precision: str | None = None) -> argparse.Namespace:
    return argparse.Namespace(
        subject="step", size="tiny", precision=precision, captured=True,
        checkpoint_activations=False, peer=peer, peer_precision=peer_precision,
    )  # fmt: skip


def test_the_fastest_is_of_eager_and_compiled_steps_and_of_both_precisions() -> None:
    def forms(*args: Any) -> list[str]:
        return list(bench._peer_jobs(step_args(*args)))

    fp32, bf16 = (["eager " + p, "compiled " + p] for p in ("fp32", "bf16"))
    assert forms("fp32", "torch-fastest") == fp32
    assert forms("bf16", "torch-fastest") == fp32 + bf16
    assert forms("bf16", "torch-fastest", "bf16") == bf16
    assert forms("fp32", "torch-compile") == ["compiled fp32"]
    assert forms("bf16", "torch") == ["eager bf16"]
    job = bench._peer_jobs(step_args("bf16", "torch-fastest"))["compiled fp32"]
    assert job["compile"]
    assert job["precision"] == "fp32"


def test_forms_that_are_slow_or_fail_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Fake:
        def __init__(self, side: str, job: dict[str, Any], threads: int) -> None:
            self.ms = job["ms"]

        def times_ms(self, repeats: int) -> list[float]:
            if self.ms is None:
                raise RuntimeError("the worker ended early")
            return [9 * self.ms] + [self.ms] * (repeats - 1)

        def close(self) -> None:
            closed.append(self.ms)

    monkeypatch.setattr(bench, "Worker", Fake)

    def kept(**ms: float | None) -> tuple[list[str], dict[str, float | None]]:
        given = {form: {"ms": value} for form, value in ms.items()}
        workers, took = bench._peers("torch-fastest", given, 1)
        return list(workers), took

    assert kept(a=5.0, b=None, c=9.0, d=2.0, e=4.1) == (
        ["d"],
        {"a": 5.0, "b": None, "c": 9.0, "d": 2.0, "e": 4.1},
    )
    assert closed == [5.0, 9.0, 4.1]
    assert kept(a=5.0, b=3.0)[0] == ["a", "b"]
    with pytest.raises(RuntimeError, match="ended early"):
        kept(a=None)
    with pytest.raises(RuntimeError, match="none of its forms ran: a, b"):
        kept(a=None, b=None)
