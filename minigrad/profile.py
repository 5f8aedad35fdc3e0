"""What ran, how often, how long, and how near to the machine's limits."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from minigrad import dispatch
from minigrad.cost import Cost
from minigrad.limits import Limits, measure_limits


@dataclass
class Row:
    """All launches of one kernel. `bytes` and `operations` are what it must move and do at
    least; `bf16_operations` are those of the operations that multiply bfloat16."""

    name: str
    calls: int = 0
    ms: float = 0.0
    bytes: int = 0
    operations: int = 0
    bf16_operations: int = 0

    @property
    def gb_per_s(self) -> float:
        return self.bytes / self.ms / 1e6 if self.ms else 0.0

    @property
    def gflop_per_s(self) -> float:
        return self.operations / self.ms / 1e6 if self.ms else 0.0

    def share_of_limit(self, limits: Limits) -> float:
        """The least time that bandwidth and arithmetic allow, over the time taken."""
        least_ms = limits.least_ms(self.bytes, self.operations, self.bf16_operations)
        return least_ms / self.ms if self.ms else 0.0


class Profile:
    """The launches of a `with mg.profile() as p:` block: `p.rows`, `p.table()`, `p.to_json()`."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.wall_ms = 0.0
        self._limits: Limits | None = None

    @property
    def limits(self) -> Limits:
        """This machine's copy bandwidth and multiply-add rates, measured when first asked for."""
        if self._limits is None:
            self._limits = measure_limits()
        return self._limits

    def _launch(self, name: str, kernel: dispatch.Kernel, args: tuple[Any, ...]) -> None:
        start = time.perf_counter_ns()
        kernel(*args)
        elapsed = time.perf_counter_ns() - start
        row = self.rows.setdefault(name, Row(name))
        row.calls += 1
        row.ms += elapsed / 1e6
        cost = self._cost(name, args)
        row.bytes += cost.bytes
        row.operations += cost.operations
        row.bf16_operations += cost.bf16_operations

    @staticmethod
    def _cost(name: str, args: tuple[Any, ...]) -> Cost:
        function = dispatch.lookup("COST", name)
        return Cost(0, 0) if function is None else function(*args)

    def table(self) -> str:
        """One line a kernel, the slowest first."""
        head = f"{'kernel':24}{'calls':>8}{'ms':>10}{'share':>8}"
        head += f"{'GB/s':>8}{'GFLOP/s':>9}{'of limit':>10}"
        lines = [head]
        for row in self._sorted():
            lines.append(
                f"{row.name:24}{row.calls:8d}{row.ms:10.2f}{row.ms / max(self.wall_ms, 1e-9):8.1%}"
                f"{row.gb_per_s:8.1f}{row.gflop_per_s:9.1f}{row.share_of_limit(self.limits):10.1%}"
            )
        inside = sum(row.ms for row in self.rows.values())
        rest = self.wall_ms - inside
        lines.append(
            f"{'outside of kernels':24}{'':8}{rest:10.2f}{rest / max(self.wall_ms, 1e-9):8.1%}"
        )
        return "\n".join(lines)

    def to_json(self) -> str:
        """The same as a JSON object, limits and block time included."""
        rows = [
            asdict(row)
            | {
                "gb_per_s": row.gb_per_s,
                "gflop_per_s": row.gflop_per_s,
                "share_of_limit": row.share_of_limit(self.limits),
            }
            for row in self._sorted()
        ]
        return json.dumps({"wall_ms": self.wall_ms, "limits": asdict(self.limits), "kernels": rows})

    def _sorted(self) -> list[Row]:
        return sorted(self.rows.values(), key=lambda row: -row.ms)


@contextlib.contextmanager
def profile() -> Iterator[Profile]:
    """Times and counts every kernel launched in the block.

    >>> from minigrad import ops
    >>> x = ops.ones((2, 8))
    >>> with profile() as p:
    ...     y = ops.softmax(x)
    >>> p.rows["softmax_fwd"].calls, p.rows["softmax_fwd"].bytes
    (1, 128)
    """
    result = Profile()
    start = time.perf_counter_ns()
    with dispatch.observe(result._launch):
        yield result
    result.wall_ms = (time.perf_counter_ns() - start) / 1e6
