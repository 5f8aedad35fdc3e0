"""A PTX machine: runs compiled GPU kernels on the CPU, checks every access, counts what they do.

`run` takes anyone's PTX and NumPy arrays. The text is read by `parse.py`, its instructions get
their meaning from `opcodes.py`, `flow.py` orders basic blocks, `decode.py` makes arrays of it all
(numbers in `isa.py`), and the executor in `csrc/ptx/` runs them. `docs/emulator.md` shows how.
"""

from .counters import Counters
from .errors import Frame, PtxError, PtxFault, Report
from .machine import Kernel, Result, levels, load, run

__all__ = [
    "Counters", "Frame", "Kernel", "PtxError", "PtxFault", "Report", "Result", "levels", "load",
    "run",
]  # fmt: skip
