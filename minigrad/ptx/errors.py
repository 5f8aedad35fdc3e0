"""What can go wrong with PTX: before it runs (PtxError) and while it runs (PtxFault)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


class PtxError(ValueError):
    """PTX that cannot be run: malformed text, an instruction the machine does not know, a launch
    that does not fit the kernel. Raised before anything runs. `line` is the line of the PTX text
    (from 1), or 0 where no line is to blame."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(f"PTX line {line}: {message}" if line else message)
        self.line = line


@dataclass(frozen=True)
class Frame:
    """A place in the source that PTX was compiled from."""

    file: str
    line: int
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Report:
    """One finding of a check.

    `kind` is a word such as "out_of_bounds"; `ptx_line` and `opcode` name the instruction, `file`
    and `line` the user's source ("" and 0 where the PTX has no line information), `source_line` its
    text where the file can be read, `stack` all frames from the innermost out. `block`, `warp` and
    `lane` met it first, at `address`. `other_line` is the user's line (or, without line
    information, the PTX line) of the other side: of a race, or of what is waited at; else 0."""

    kind: str
    message: str
    kernel: str
    ptx_line: int
    opcode: str
    file: str
    line: int
    source_line: str
    stack: tuple[Frame, ...]
    block: tuple[int, int, int]
    warp: int
    lane: int
    address: int
    other_line: int = 0

    def __str__(self) -> str:
        text = f"{self.kind.replace('_', ' ')}: {self.message}\n"
        if self.line:
            text += f"  at {self.file}:{self.line}"
            text += f"   {self.source_line}\n" if self.source_line else "\n"
        text += f"  in {self.kernel}, PTX line {self.ptx_line}: {self.opcode}"
        block = ", ".join(map(str, self.block))
        return text + f"\n  block ({block}), warp {self.warp}, lane {self.lane}"

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


class PtxFault(RuntimeError):
    """What checks found while a kernel ran: `reports`, at least one. The fields of the first one
    (kind, line, block, …) are attributes of the exception, too. `output` is what the kernel had
    printed."""

    def __init__(self, reports: list[Report], output: str = "") -> None:
        more = f"\n(and {len(reports) - 1} more)" if len(reports) > 1 else ""
        super().__init__(str(reports[0]) + more)
        self.reports = reports
        self.output = output

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "reports" or not hasattr(Report, "__annotations__"):
            raise AttributeError(name)
        if name not in Report.__annotations__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.reports[0], name)

    def __reduce__(self) -> tuple[Any, ...]:
        return PtxFault, (self.reports, self.output)

    def to_json(self) -> str:
        """All reports as a JSON array of objects."""
        return json.dumps([report.to_dict() for report in self.reports])
