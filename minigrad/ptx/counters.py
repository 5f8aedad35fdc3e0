"""What a launch did, counted: by instruction, opcode, class and source line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from . import isa

if TYPE_CHECKING:
    from .decode import Decoded

SECTOR_BYTES = 32

_CLASS_NAMES = {
    "logic": "AND OR XOR NOT CNOT SHL SHR LOP3 PRMT SHF BFE BFI BFIND FNS POPC CLZ BREV SZEXT BMSK",
    "special function": "RCP SQRT RSQRT SIN COS LG2 EX2 TANH",
    "compare and select": "SETP SET SELP SLCT TESTP ISSPACEP",
    "move": "MOV PACK UNPACK CLOCK CVTA MAPA GETCTARANK",
    "convert": "CVT CVTPACK",
    "matrix": "MMA WGMMA WGMMA_FENCE WGMMA_COMMIT WGMMA_WAIT",
    "matrix copy": "LDMATRIX STMATRIX MOVMATRIX",
    "atomic": "ATOM RED",
    "asynchronous copy": "CPASYNC CPASYNC_COMMIT CPASYNC_WAIT CPASYNC_MBAR CPBULK CPTENSOR "
    "CPBULK_COMMIT CPBULK_WAIT TENSORMAP_REPLACE TENSORMAP_CPFENCE",
    "warp": "SHFL VOTE MATCH REDUX ELECT ACTIVEMASK BARWARP",
    "barrier": "BAR BARCLUSTER MBAR MEMBAR FENCE",
    "control": "BRA BRX CALL RET EXIT TRAP BRKPT NOP NANOSLEEP SETMAXNREG GRIDDEP",
    "system call": "VPRINTF ASSERTFAIL",
}
_CLASSES = {isa.OPS[op]: name for name, ops in _CLASS_NAMES.items() for op in ops.split()}
_FLOATS = {isa.TYPES[t] for t in ("F16", "F16X2", "BF16", "BF16X2", "F32", "F64", "F32X2")}
_MEMORY = {isa.SPACES["CONST"]: "global memory", isa.SPACES["GENERIC"]: "generic memory"} | {
    isa.SPACES[s]: f"{s.lower()} memory" for s in ("GLOBAL", "SHARED", "LOCAL")
}
_LOADS = {isa.OPS["LD"], isa.OPS["ST"]}
_SHARED_OPS = {isa.OPS[op] for op in ("LDMATRIX", "STMATRIX")}
_ATOMICS = {isa.OPS["ATOM"], isa.OPS["RED"]}
_SPECIAL = {isa.OPS[op] for op in _CLASS_NAMES["special function"].split()}
_BARRIERS = {isa.OPS["BAR"], isa.OPS["BARCLUSTER"]}
_WARPS_OF_A_GROUP = 4


def class_of(op: int, kind: int, space: int) -> str:
    """The class in which an operation is counted."""
    if op in _LOADS:
        return _MEMORY.get(space, "parameters")
    return _CLASSES.get(op) or ("float" if kind in _FLOATS else "integer")


@dataclass
class Row:
    """Counts of one instruction, or of all that a key stands for.

    executed: instructions by warps; lanes: by lanes; requests: accesses to memory by warps;
    sectors: pieces of 32 bytes moved to and from global memory (for shared memory wavefronts, 128
    bytes each); unique_bytes: different bytes among those asked for; least: the sectors or
    wavefronts that a perfect layout needs; conflicts: wavefronts beyond that; bytes: asked for;
    flops: of matrix products."""

    key: str
    kind: str
    executed: int = 0
    lanes: int = 0
    requests: int = 0
    sectors: int = 0
    unique_bytes: int = 0
    least: int = 0
    conflicts: int = 0
    bytes: int = 0
    flops: int = 0

    @property
    def active(self) -> float:
        """The mean share of a warp's lanes that were active."""
        return self.lanes / (32 * self.executed) if self.executed else 0.0


@dataclass
class InstructionRow(Row):
    """Counts of one written instruction: its opcode, its PTX line, the user's line."""

    opcode: str = ""
    ptx_line: int = 0
    file: str = ""
    line: int = 0


_SUMMED = [f.name for f in fields(Row) if f.name not in ("key", "kind")]


class Counters:
    """The counts of one launch. Totals are attributes; `instructions`, `by_opcode`, `by_class` and
    `by_line` break them down; `table()` prints and `to_json()` writes them."""

    def __init__(self, decoded: Decoded, raw: dict[str, Any]) -> None:
        self._decoded = decoded
        self._executed = np.asarray(raw["exec"], np.int64)
        self._lanes = np.asarray(raw["lanes"], np.int64)
        self._memory = np.asarray(raw["memory"], np.int64).reshape(-1, 6)
        self.in_flight_max_bytes = int(raw.get("in_flight_max_bytes", 0))
        self.steps = int(raw.get("steps", 0))
        self._raw_barriers = int(raw.get("barriers", 0))

    @cached_property
    def instructions(self) -> list[InstructionRow]:
        """Every written instruction that was reached, in the order of the text."""
        decoded, rows = self._decoded, []
        module = decoded.module
        counted = np.flatnonzero((decoded.origin >= 0) & (self._executed > 0))
        ops, types = decoded.instructions["op"], decoded.instructions["type"]
        flops = self._flops()
        known: dict[int, InstructionRow] = {}
        for at in counted.tolist():
            written = int(decoded.origin[at])
            row = known.get(written)
            if row is None:
                instruction = decoded.written[written]
                source = module.source(instruction.place)
                row = InstructionRow(
                    key=f"{decoded.lines[written]}: {instruction.op}",
                    kind=class_of(int(ops[at]), int(types[at]), self._space(at)),
                    opcode=instruction.op,
                    ptx_line=decoded.lines[written],
                    file=source.file if source else "",
                    line=source.line if source else 0,
                )
                known[written] = row
                rows.append(row)
                row.executed = int(self._executed[at])
                row.lanes = int(self._lanes[at])
            memory = self._memory[at].tolist()
            row.requests += memory[0]
            row.sectors += memory[1]
            row.unique_bytes += memory[2]
            row.least += memory[3]
            row.conflicts += memory[4]
            row.bytes += memory[5]
            row.flops += int(flops[at])
        return rows

    def _space(self, at: int) -> int:
        instruction = self._decoded.instructions[at]
        return (
            isa.SPACES["SHARED"] if instruction["op"] in _SHARED_OPS else int(instruction["space"])
        )

    def _flops(self) -> np.ndarray:
        instructions = self._decoded.instructions
        aux = instructions["aux"].astype(np.int64)
        found = np.zeros(len(instructions), np.int64)
        mma = instructions["op"] == isa.OPS["MMA"]
        found[mma] = 2 * (aux[mma] >> 16) * (aux[mma] >> 8 & 255) * (aux[mma] & 255)
        group = instructions["op"] == isa.OPS["WGMMA"]
        product = 2 * (aux[group] >> 20) * (aux[group] >> 8 & 4095) * (aux[group] & 255)
        found[group] = product // _WARPS_OF_A_GROUP
        return found * self._executed

    def _group(self, key: str) -> dict[str, Row]:
        found: dict[str, Row] = {}
        for one in self.instructions:
            if key == "line":
                name = f"{one.file}:{one.line}" if one.line else f"PTX line {one.ptx_line}"
            else:
                name = one.opcode if key == "opcode" else one.kind
            row = found.setdefault(name, Row(name, one.kind))
            for what in _SUMMED:
                setattr(row, what, getattr(row, what) + getattr(one, what))
        return dict(sorted(found.items(), key=lambda item: -item[1].executed))

    @cached_property
    def by_opcode(self) -> dict[str, Row]:
        return self._group("opcode")

    @cached_property
    def by_class(self) -> dict[str, Row]:
        return self._group("class")

    @cached_property
    def by_line(self) -> dict[str, Row]:
        return self._group("line")

    # ---- totals ----

    def _sum(self, what: str, ops: set[int] | None = None, spaces: tuple[str, ...] = ()) -> int:
        instructions = self._decoded.instructions
        chosen = self._decoded.origin >= 0
        if ops is not None:
            chosen &= np.isin(instructions["op"], list(ops))
        if spaces:
            numbers = [isa.SPACES[s] for s in spaces]
            space = instructions["space"].copy()
            space[np.isin(instructions["op"], list(_SHARED_OPS))] = isa.SPACES["SHARED"]
            space[instructions["op"] == isa.OPS["CPASYNC"]] = isa.SPACES["GLOBAL"]
            chosen &= np.isin(space, numbers)
        if what == "executed":
            return int(self._executed[chosen].sum())
        if what == "lanes":
            return int(self._lanes[chosen].sum())
        return int(self._memory[chosen, _COLUMNS.index(what)].sum())

    @property
    def executed(self) -> int:
        """Instructions that warps executed."""
        return self._sum("executed")

    @property
    def lane_instructions(self) -> int:
        """The same, each counted once a lane that was active."""
        return self._sum("lanes")

    @property
    def active(self) -> float:
        """The mean share of lanes that were active."""
        return self.lane_instructions / max(1, 32 * self.executed)

    @property
    def global_requests(self) -> int:
        return self._sum("requests", _GLOBAL_OPS, _GLOBAL_SPACES)

    @property
    def global_sectors(self) -> int:
        """Pieces of 32 bytes that requests to global memory touched, each request by itself."""
        return self._sum("sectors", _GLOBAL_OPS, _GLOBAL_SPACES)

    @property
    def global_bytes(self) -> int:
        """Different bytes of global memory that each request asked for, summed."""
        return self._sum("unique_bytes", _GLOBAL_OPS, _GLOBAL_SPACES)

    @property
    def coalescing(self) -> float:
        """Coalescing efficiency: the bytes wanted over the bytes of the sectors moved."""
        return self.global_bytes / max(1, SECTOR_BYTES * self.global_sectors)

    @property
    def shared_requests(self) -> int:
        return self._sum("requests", None, ("SHARED",))

    @property
    def shared_wavefronts(self) -> int:
        return self._sum("sectors", None, ("SHARED",))

    @property
    def shared_conflicts(self) -> int:
        """Wavefronts beyond those that a layout without bank conflicts needs."""
        return self._sum("conflicts", None, ("SHARED",))

    @property
    def matrix_flops(self) -> int:
        """Operations of matrix products, a multiply-add counted as two."""
        return int(self._flops()[self._decoded.origin >= 0].sum())

    @property
    def special_function_ops(self) -> int:
        """Reciprocals, roots, exponentials and the like, by lanes."""
        return self._sum("lanes", _SPECIAL)

    @property
    def barriers(self) -> int:
        """Block barriers, counted once a warp that arrived."""
        return self._sum("executed", _BARRIERS)

    def totals(self) -> dict[str, float]:
        """All totals by name."""
        return {name: getattr(self, name) for name in _TOTALS}

    # ---- output ----

    def table(self, by: str = "opcode", top: int = 30) -> str:
        """Totals, then one line an opcode, class, line or instruction (`by`), most executed
        first."""
        groups: dict[str, Any] = {
            "opcode": lambda: list(self.by_opcode.values()),
            "class": lambda: list(self.by_class.values()),
            "line": lambda: list(self.by_line.values()),
            "instruction": lambda: self.instructions,
        }
        if by not in groups:
            raise ValueError(f"counters by {by!r}; there are {', '.join(groups)}")
        rows = groups[by]()
        lines = [
            f"{name.replace('_', ' '):24}{value:>16.3f}"
            if isinstance(value, float) else f"{name.replace('_', ' '):24}{value:>16,}"
            for name, value in self.totals().items()
        ]  # fmt: skip
        width = max([24, *(len(r.key) for r in rows[:top])]) + 1
        lines.append(
            f"{by:{width}}{'executed':>12}{'active':>8}{'requests':>11}{'sectors':>11}"
            f"{'least':>11}{'conflicts':>11}"
        )
        for row in rows[:top]:
            memory = f"{row.requests:11,}{row.sectors:11,}{row.least:11,}{row.conflicts:11,}"
            line = f"{row.key:{width}}{row.executed:12,}{row.active:8.1%}"
            lines.append(line + memory if row.requests else line)
        if len(rows) > top:
            lines.append(f"and {len(rows) - top} more")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Totals and every instruction, ready for JSON."""
        return {
            "totals": self.totals(),
            "instructions": [asdict(row) for row in self.instructions],
            "by_class": {key: asdict(row) for key, row in self.by_class.items()},
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict())


_COLUMNS = ("requests", "sectors", "unique_bytes", "least", "conflicts", "bytes")
_GLOBAL_OPS = _LOADS | _ATOMICS | {isa.OPS["CPASYNC"]}
_GLOBAL_SPACES = ("GLOBAL", "CONST", "GENERIC")
_TOTALS = (
    "executed", "lane_instructions", "active", "global_requests", "global_sectors", "global_bytes",
    "coalescing", "shared_requests", "shared_wavefronts", "shared_conflicts", "matrix_flops",
    "special_function_ops", "barriers", "in_flight_max_bytes",
)  # fmt: skip
