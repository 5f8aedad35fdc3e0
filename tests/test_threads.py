"""The one set of threads: how many, idle without spinning, and alive after a fork."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from child import run_python

import minigrad as mg
from minigrad import dispatch

core = dispatch._core
pytestmark = pytest.mark.skipif(core is None, reason="the native kernels are not built")
NO_LIMIT = 1 << 20


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = mg.num_threads()
    mg.set_num_threads(2)
    yield
    mg.set_num_threads(before)


# ---- how many ----


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


CONTAINERS: dict[str, tuple[str, dict[str, str], int]] = {
    "no_groups": ("", {}, NO_LIMIT),
    "v2_container": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    "v2_unlimited": ("0::/\n", {"cpu.max": "max 100000\n"}, NO_LIMIT),
    "v2_part_of_one": ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    "v2_one_and_a_half": ("0::/\n", {"cpu.max": "150000 100000\n"}, 1),
    "v2_own_slice": (
        "0::/user.slice/job\n",
        {"user.slice/cpu.max": "max 100000\n", "user.slice/job/cpu.max": "300000 100000\n"},
        3,
    ),
    "v2_slice_above": (
        "0::/user.slice/job\n",
        {"user.slice/cpu.max": "200000 100000\n", "user.slice/job/cpu.max": "300000 100000\n"},
        2,
    ),
    "v1_container": (
        "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n",
        {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        4,
    ),
    "v1_own_group": (
        "3:cpu,cpuacct:/job\n",
        {
            "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "cpu,cpuacct/job/cpu.cfs_quota_us": "250000\n",
            "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "v1_unlimited": (
        "3:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        NO_LIMIT,
    ),
    "not_the_processors": (
        "3:cpuset:/\n",
        {"cpuset/cpu.cfs_quota_us": "100000\n", "cpuset/cpu.cfs_period_us": "100000\n"},
        NO_LIMIT,
    ),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_limits_the_threads(name: str, tmp_path: Path) -> None:
    own, files, expected = CONTAINERS[name]
    write(tmp_path, {f"cgroup/{path}": text for path, text in files.items()} | {"own": own})
    assert core.cgroup_limit(str(tmp_path / "cgroup"), str(tmp_path / "own")) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_limits_the_threads() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "import minigrad as mg; print(mg.num_threads())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "MINIGRAD_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "1"


def test_the_environment_decides() -> None:
    assert (
        run_python("import minigrad as mg; print(mg.num_threads())", MINIGRAD_NUM_THREADS="3")
        == "3"
    )


MORE_THAN_THERE_ARE = """
import resource
import minigrad as mg
mg.set_num_threads(2)
x = mg.randn((256, 256))
before = (x @ x).numpy().copy()
with open("/proc/self/statm") as sizes:
    used = int(sizes.read().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, limits[1]))
try:
    mg.set_num_threads(4000)
except RuntimeError as error:
    print(error)
print(mg.num_threads(), ((x @ x).numpy() == before).all())
mg.set_num_threads(3)
print(mg.num_threads(), ((x @ x).numpy() == before).all())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_threads_that_the_system_does_not_give() -> None:
    """An error, and the threads there were go on."""
    said, *rest = run_python(MORE_THAN_THERE_ARE).splitlines()
    assert re.fullmatch(r"the system starts \d+ of 4000 threads \(.*\); ask for fewer by .*", said)
    assert rest == ["2 True", "3 True"]


# ---- idle ----


@pytest.mark.usefixtures("two_threads")
def test_idle_threads_do_not_spin() -> None:
    """Less than a millisecond of processor time after the last kernel."""
    x = mg.randn((256, 256))
    spent = []
    for _ in range(10):
        x @ x
        start = time.process_time()
        time.sleep(0.02)
        spent.append(time.process_time() - start)
    assert min(spent) < 1e-3


# ---- forks ----

FORK = """
import os, threading, time
import minigrad as mg
x = mg.randn((256, 256))
before = (x @ x).numpy().copy()
stop = False
def work():
    w = mg.randn((64, 64)); w.requires_grad_()
    while not stop:
        (w @ mg.rand((64, 64))).sum().backward()
thread = threading.Thread(target=work)
thread.start()
bad = 0
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        y = mg.randn((64, 64)); y.requires_grad_()
        (y @ y).sum().backward()
        os._exit(0 if ((x @ x).numpy() == before).all() else 1)
    until = time.monotonic() + 10
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.kill(pid, 9)
            found = os.waitpid(pid, 0)
        time.sleep(0.001)
    bad += found[1] != 0
stop = True
thread.join()
print(bad)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_children_work_while_another_thread_runs_kernels() -> None:
    assert run_python(FORK, MINIGRAD_NUM_THREADS="2") == "0"
