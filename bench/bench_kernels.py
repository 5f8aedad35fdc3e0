"""The kernels at the sizes of the models, and every case of the tests' table at its own small size,
where the cost of reaching a kernel is what is measured."""

from __future__ import annotations

from typing import Any

import pytest
from cases import CASES, Case

import minigrad as mg
from minigrad.bench.jobs import SHAPES, kernel_job, timed
from minigrad.bench.ours import kernel

JOBS = [
    kernel_job(kind, shape, what)
    for kind, shapes in SHAPES.items()
    for shape in shapes
    for what in timed(kind, shape)
]


def name_of(job: dict[str, Any]) -> str:
    shape = "x".join(str(n) for n in job["shape"])
    return f"{job['kind']}-{shape}-{job['what']}"


@pytest.mark.parametrize("job", JOBS, ids=name_of)
def bench_kernel(benchmark: Any, job: dict[str, Any]) -> None:
    benchmark(kernel(job))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def bench_small(benchmark: Any, case: Case) -> None:
    inputs = [mg.tensor(a.astype("float32")) for a in case.inputs()]
    benchmark(lambda: case.op(*inputs))
