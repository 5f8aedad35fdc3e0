"""What a PTX text holds, with names resolved: operands, instructions, functions, variables.

`parse.py` makes it from a text, `decode.py` makes of it what the executor runs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from .errors import Frame

TYPE_BYTES = {
    "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2,
    "b32": 4, "u32": 4, "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "tf32": 4,
    "b64": 8, "u64": 8, "s64": 8, "f64": 8, "b128": 16,
}  # fmt: skip


# ---- operands ----


class Register:
    """Register number `index` of its function; `bits` 1 for predicates, 16, 32, 64 or 128."""

    __slots__ = ("bits", "index", "name")

    def __init__(self, index: int, bits: int, name: str) -> None:
        self.index, self.bits, self.name = index, bits, name


class Integer:
    """An integer immediate, -2**63 to 2**64 - 1."""

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


class Float:
    """A floating-point immediate: its 32 bits (`0f…`) or its 64 bits (`0d…`, decimal)."""

    __slots__ = ("bits", "width")

    def __init__(self, bits: int, width: int) -> None:
        self.bits, self.width = bits, width

    def as_width(self, width: int) -> int:
        """Its bits as a float of another width."""
        if width == self.width:
            return self.bits
        source, target = ("<Q", "<d") if self.width == 64 else ("<I", "<f")
        value = struct.unpack(target, struct.pack(source, self.bits))[0]
        if width == 64:
            return struct.unpack("<Q", struct.pack("<d", value))[0]
        try:
            return struct.unpack("<I", struct.pack("<f", value))[0]
        except OverflowError:
            return 0x7F800000 if value > 0 else 0xFF800000


class Special:
    """A special register such as %tid.x, or WARP_SZ."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Name:
    """A variable, function or label, plus an offset in bytes; `variable` once it is known."""

    __slots__ = ("name", "offset", "variable")

    def __init__(self, name: str, offset: int, variable: Variable | None) -> None:
        self.name, self.offset, self.variable = name, offset, variable


class Address:
    """[base + offset]; `coordinates` where a tensor map is addressed: [map, {x, y}]."""

    __slots__ = ("base", "coordinates", "offset")

    def __init__(self, base: Any, offset: int, coordinates: Vector | None) -> None:
        self.base, self.offset, self.coordinates = base, offset, coordinates


class Vector:
    """{a, b, c}."""

    __slots__ = ("items",)

    def __init__(self, items: list[Any]) -> None:
        self.items = items


class Group:
    """(a, b): the arguments or the result of a call."""

    __slots__ = ("items",)

    def __init__(self, items: list[Any]) -> None:
        self.items = items


class Pair:
    """a|b: two results."""

    __slots__ = ("first", "second")

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second


class Negated:
    """!p."""

    __slots__ = ("operand",)

    def __init__(self, operand: Any) -> None:
        self.operand = operand


class Sink:
    """_ : a result that nobody wants."""

    __slots__ = ()


# ---- what a module holds ----


@dataclass(eq=False)
class Variable:
    """A variable in `space` (global, const, shared, local, param). `initial` holds its first bytes
    where given, `addresses` which eight (or four) bytes of it are the address of another variable:
    (offset, width, name, addend, generic)."""

    name: str
    space: str
    type: str
    size: int
    align: int
    line: int = 0
    external: bool = False
    initial: bytes = b""
    addresses: list[tuple[int, int, str, int, bool]] = field(default_factory=list)


class Instruction:
    """One instruction: opcode string, operands, its guard (None or a predicate register, inverted
    where `negated`), its line, the index of its source position in Module.places, its scope."""

    __slots__ = ("args", "at", "guard", "negated", "op", "place", "scope")

    def __init__(
        self,
        at: int,
        op: str,
        args: list[Any],
        guard: Register | None,
        negated: bool,
        place: int,
        scope: Scope,
    ) -> None:
        self.at, self.op, self.args = at, op, args
        self.guard, self.negated, self.place, self.scope = guard, negated, place, scope


class Scope:
    """What one pair of braces declares."""

    __slots__ = ("families", "labels", "operands", "parent", "registers", "tables", "variables")

    def __init__(self, parent: Scope | None) -> None:
        self.parent = parent
        self.registers: dict[str, Register | int] = {}  # a number of bits until it is used
        self.families: dict[str, tuple[int, int]] = {}  # prefix → (count, bits)
        self.variables: dict[str, Variable] = {}
        self.labels: dict[str, int] = {}
        self.operands: dict[str, Any] = {}  # operands seen in this scope, by text
        self.tables: dict[str, list[str]] = {}  # .branchtargets

    def label(self, name: str) -> int | None:
        """Where a label in sight stands: the index of the instruction after it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.labels:
                return scope.labels[name]
            scope = scope.parent
        return None


@dataclass(eq=False)
class Function:
    """An entry or a device function. Registers are numbered in order of first use."""

    name: str
    is_entry: bool
    line: int
    params: list[Variable] = field(default_factory=list)
    results: list[Variable] = field(default_factory=list)
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)
    body: list[Instruction] = field(default_factory=list)
    has_body: bool = False
    registers: list[Register] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)  # shared, local, call parameters
    lines: list[int] = field(default_factory=list)  # of each instruction


@dataclass(eq=False)
class Module:
    """A PTX file. `places` lists source positions, each as frames from the innermost out."""

    version: str = ""
    target: str = ""
    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    places: list[tuple[tuple[int, int, int], ...]] = field(default_factory=lambda: [()])
    files: dict[int, str] = field(default_factory=dict)

    def stack(self, place: int) -> tuple[Frame, ...]:
        """The frames of a source position, from the innermost out; empty where unknown."""
        return tuple(
            Frame(self.files.get(file, f"file {file}"), line, column)
            for file, line, column in self.places[place]
        )

    def source(self, place: int) -> Frame | None:
        """The user's line: of the innermost frame in the file of the outermost frame, so that what
        a library does counts for the line that called it, and a helper's lines for themselves."""
        frames = self.places[place]
        if not frames:
            return None
        file, line, column = next(frame for frame in frames if frame[0] == frames[-1][0])
        return Frame(self.files.get(file, f"file {file}"), line, column)
