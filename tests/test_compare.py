"""`bench/compare.py`: its lines are jobs, and it sums them up as it says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from minigrad import bench, dispatch
from minigrad.bench.jobs import LINEAR_LAYERS, SHAPES


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    path = Path(__file__).parents[1] / "bench" / "compare.py"
    spec = importlib.util.spec_from_file_location("compare", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_line_of_the_comparison_is_a_job(compare: ModuleType) -> None:
    lines = compare.lines(("fp32", "bf16"))
    assert len({line.name for line in lines}) == len(lines)
    found = [bench.job_of(line.job, line.job.precision) for line in lines]
    assert {job["kind"] for job in found} == {"step", "generate", *SHAPES}
    for precision in ("fp32", "bf16"):
        of = [job for job in found if job["precision"] == precision]
        layers = [tuple(job["shape"]) for job in of if job.get("what") == "dx"]
        assert sorted(layers) == sorted(LINEAR_LAYERS.values())
        assert any(job.get("dropout") for job in of)
    fastest = {line.name for line in lines if line.job.peer == "torch-fastest"}
    assert {"step gpt2 fp32, captured", "step gpt2 bf16, captured"} <= fastest
    assert not [line for line in compare.lines(("fp32",)) if line.job.precision != "fp32"]


def test_the_comparison_sums_up_each_precision(compare: ModuleType) -> None:
    rows = [
        {"name": "a", "precision": "fp32", "ratio": 4.0},
        {"name": "b", "precision": "fp32", "ratio": 1.0},
        {"name": "c", "precision": "bf16", "ratio": 3.0},
    ]
    fp32, bf16 = compare.summary("products", rows)
    assert fp32["name"] == "products fp32: geometric mean of 2"
    assert fp32["ratio"] == pytest.approx(2)
    assert (fp32["lowest"], fp32["lowest_ratio"]) == ("b", 1.0)
    assert bf16["ratio"] == pytest.approx(3)


def test_the_comparison_prints_and_writes(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = ["--only", "add 10 fwd fp32", "--seconds", "0.1", "--json", str(tmp_path / "all.json")]
    monkeypatch.setattr(sys, "argv", ["compare.py", *flags])
    compare.main()
    written = json.loads((tmp_path / "all.json").read_text())
    has_torch = importlib.util.find_spec("torch") is not None
    assert [row["name"] for row in written] == [
        "add 10 fwd fp32",
        *(["optimizer and launching fp32: geometric mean of 1"] if has_torch else []),
    ]
    out = capsys.readouterr().out
    assert "add 10 fwd fp32" in out
    assert ("bf16 is left out" in out) == (dispatch.bf16_unit() is None)
