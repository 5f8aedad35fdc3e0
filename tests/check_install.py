"""Run with an installed minigrad, from a folder that is not the checkout: it imports, computes, and
stays small."""

import os
import subprocess
import sys
import time
from pathlib import Path

import minigrad as mg

where = Path(mg.__file__).resolve()
assert Path(__file__).resolve().parent.parent not in where.parents, (
    f"the checkout was imported: {where}"
)
assert mg.levels(), "the wheel has no native kernels"
x = mg.tensor([[1.0, 2.0]], requires_grad=True)
mg.softmax(x).sum().backward()
assert abs(float(x.grad.sum().item())) < 1e-6
for name in ("torch", "cupy", "triton", "matplotlib"):
    assert name not in sys.modules, f"{name} was imported"


def import_seconds(statement: str) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        times.append(time.perf_counter() - start)
    return min(times)


extra = import_seconds("import minigrad") - import_seconds("pass")
size = sum(
    f.stat().st_size
    for folder in where.parent.parent.iterdir()
    if folder.name.split("-")[0].split(".")[0]
    not in ("numpy", "pip", "setuptools", "_distutils_hack", "pkg_resources")
    for f in ([folder] if folder.is_file() else folder.rglob("*"))
    if f.is_file() and os.path.basename(f) != "__pycache__"
)
assert size < 60e6, f"{size / 1e6:.1f} MB beyond NumPy; the base install promises less than 60"
print(f"import minigrad: {extra:.3f} s over an empty interpreter; {size / 1e6:.1f} MB beyond NumPy")
