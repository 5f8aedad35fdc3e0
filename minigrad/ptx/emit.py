"""Decoded instructions, and the rows and predicates that their operands become."""

from __future__ import annotations

import struct
from typing import Any, NoReturn

from . import isa
from .errors import PtxError
from .isa import FALSE, FLAGS, NONE, NOT, OPS, SPACES, TRUE
from .layout import Layout
from .opcodes import Plan
from .syntax import (
    Address,
    Float,
    Function,
    Group,
    Instruction,
    Integer,
    Module,
    Name,
    Negated,
    Pair,
    Register,
    Sink,
    Special,
    Variable,
    Vector,
)

_PACK = struct.Struct("<HHBBBBBBHi2I4IIIqII")
assert _PACK.size == isa.INSTRUCTION.itemsize == 64

_NONES = (NONE, NONE, NONE, NONE)
_PARAMETERS = {SPACES["PARAM"], SPACES["LOCAL"]}
_SPACE_NAMES = {number: name.lower() for name, number in SPACES.items()}


class Emitter:
    """What has been decoded of an entry so far; operands of the instruction at hand."""

    def __init__(self, module: Module, entry: Function) -> None:
        self.module, self.entry = module, entry
        self.layout = Layout(module, entry)
        self.packed: list[bytes] = []
        self.origin: list[int] = []
        self.ranks: list[int] = []
        self.written: list[Instruction] = []
        self.lines: list[int] = []
        self.operands: list[int] = []
        self.constants: dict[tuple[int, int], int] = {}
        self.n_rows, self.n_preds = 0, 1
        self.rows: list[int] = []  # of the current function's registers
        self.function = entry
        self.rank = 0
        self.guard = 0
        self.here = -1

    def error(self, instruction: Instruction, message: str) -> PtxError:
        line = self.lines[self.here] if self.here >= 0 else 0
        return PtxError(f"{self.function.name}: {instruction.op}: {message}", line)

    def fail(self, instruction: Instruction | None, message: str) -> NoReturn:
        if instruction is None:
            raise PtxError(f"{self.function.name}: {message}", self.function.line)
        raise self.error(instruction, message)

    def emit(
        self,
        plan: Plan,
        d: tuple[int, ...] = (),
        s: tuple[int, ...] = (),
        items: list[int] | None = None,
        flags: int = 0,
        imm: int | None = None,
        space: int | None = None,
        aux: int | None = None,
        n: int | None = None,
    ) -> None:
        """Appends an instruction; what is not given comes from the plan."""
        if items is None:
            at, count = 0, 0
        else:
            at, count = len(self.operands), len(items)
            self.operands += items
        self.packed.append(
            _PACK.pack(
                OPS[plan.op], self.guard, plan.type, plan.type2, plan.sub, plan.round,
                plan.space if space is None else space, plan.n if n is None else n,
                plan.flags | flags, -1, *(d + _NONES)[:2], *(s + _NONES)[:4], at, count,
                plan.imm if imm is None else imm, plan.aux if aux is None else aux, 0,
            )
        )  # fmt: skip
        self.origin.append(self.here)
        self.ranks.append(self.rank)

    # ---- operands ----

    def constant(self, bits: int, value: int) -> int:
        """The row of an immediate of 16, 32 or 64 bits."""
        if bits <= 32:
            key = (isa.SPLAT32, value & ((1 << bits) - 1))
        else:
            key = (isa.SPLAT64, value & 0xFFFF_FFFF_FFFF_FFFF)
        return self._constant(key, 2 if bits == 64 else 4 if bits == 128 else 1)

    def _constant(self, key: tuple[int, int], rows: int) -> int:
        row = self.constants.get(key)
        if row is None:
            row = self.constants[key] = self.n_rows
            self.n_rows += rows
        return row

    def special(self, name: str, bits: int, instruction: Instruction) -> int:
        if name == "WARP_SZ":
            return self.constant(bits, 32)
        word = name[1:].upper().replace(".", "_")
        if word.startswith(("CLOCK", "GLOBALTIMER")):
            return self._clock(word, bits)
        if word.endswith("_W") or word.startswith(("ENVREG", "PM", "RESERVED")):
            return self.constant(bits, 0)
        word = {"GRIDID": "GRIDID_LO", "AGGR_SMEM_SIZE": "TOTAL_SMEM_SIZE"}.get(word, word)
        number = isa.SPECIALS.get(word)
        if number is None:
            self.fail(instruction, f"the special register {name} is not supported here")
        if bits == 64:
            return self._constant((isa.SPECIAL64, number), 2)
        return self._constant((isa.SPECIAL32, number), 1)

    def _clock(self, word: str, bits: int) -> int:
        row = self.temporary(bits)
        sub = 1 if word.startswith("GLOBALTIMER") else 2 if word == "CLOCK_HI" else 0
        kind = isa.TYPES["U64" if bits == 64 else "U32"]
        self.emit(Plan("CLOCK", type=kind, sub=sub), (row,))
        return row

    def temporary(self, bits: int) -> int:
        row = self.n_rows
        self.n_rows += 2 if bits == 64 else 1
        return row

    def source(self, arg: Any, bits: int, instruction: Instruction) -> int:
        """The row of a source of `bits` bits."""
        kind = type(arg)
        if kind is Register:
            if arg.bits != bits:
                self.misfit(arg, bits, instruction)
            return self.rows[arg.index]
        if kind is Integer:
            return self.constant(bits, arg.value)
        if kind is Float:
            if bits not in (32, 64):
                self.fail(instruction, f"a floating-point immediate where {bits} bits are read")
            return self.constant(bits, arg.as_width(bits))
        if kind is Special:
            return self.special(arg.name, bits, instruction)
        if kind is Name:
            _, value = self.place(arg, instruction)
            return self.constant(bits, value)
        raise self.error(instruction, f"expected a register or a number, found {describe(arg)}")

    def misfit(self, arg: Register, bits: int, instruction: Instruction) -> NoReturn:
        size = {1: "a predicate"}.get(bits, f"{bits} bits")
        self.fail(
            instruction,
            f"{size} are read or written here; {arg.name} "
            + ("is a predicate" if arg.bits == 1 else f"has {arg.bits} bits"),
        )

    def dest(self, arg: Any, bits: int, instruction: Instruction) -> int:
        if type(arg) is Register:
            if arg.bits != bits:
                self.misfit(arg, bits, instruction)
            return self.rows[arg.index]
        if type(arg) is Sink:
            return NONE
        raise self.error(instruction, f"expected a register to write, found {describe(arg)}")

    def condition(self, arg: Any, instruction: Instruction) -> int:
        """A predicate that is read."""
        kind = type(arg)
        if kind is Register and arg.bits == 1:
            return self.rows[arg.index]
        if kind is Negated:
            return self.condition(arg.operand, instruction) ^ NOT
        if kind is Integer:
            return TRUE if arg.value else FALSE
        if kind is Special and arg.name == "%is_explicit_cluster":
            return FALSE
        raise self.error(instruction, f"expected a predicate, found {describe(arg)}")

    def integer(self, arg: Any, instruction: Instruction) -> int:
        if type(arg) is not Integer:
            self.fail(instruction, f"expected an integer constant, found {describe(arg)}")
        return _signed(arg.value)

    def vector(
        self, arg: Any, n: int, bits: int, read: bool, instruction: Instruction
    ) -> list[int]:
        """The rows of {a, b, …}, or of one register where n is 1."""
        items = arg.items if type(arg) is Vector else [arg]
        if len(items) != n:
            self.fail(instruction, f"{n} registers expected, {len(items)} given")
        get = self.source if read else self.dest
        return [get(item, bits, instruction) for item in items]

    def place(self, name: Name, instruction: Instruction) -> tuple[int, int]:
        """The state space of a variable and the address of the name in it."""
        variable = name.variable or self.module.variables.get(name.name)
        if variable is None:
            self.fail(instruction, f"there is no variable {name.name}")
        if variable.space in ("global", "const"):
            address = self.layout.global_address(variable)
            return SPACES[variable.space.upper()], address + name.offset
        space = variable.space
        if space == "param" and (self.function is not self.entry or not self._of_entry(variable)):
            space = "local"
        return SPACES[space.upper()], self.layout.offsets[id(variable)] + name.offset

    def _of_entry(self, variable: Variable) -> bool:
        return any(variable is param for param in self.entry.params)

    def address(self, arg: Any, space: int, instruction: Instruction) -> tuple[int, int, int, int]:
        """Row, displacement, flags and state space of an address."""
        if type(arg) is not Address or arg.coordinates is not None:
            self.fail(instruction, f"expected an address, found {describe(arg)}")
        base = arg.base
        offset = _signed(arg.offset)
        if type(base) is Register:
            if space == SPACES["PARAM"] and self.function is not self.entry:
                space = SPACES["LOCAL"]
            if base.bits == 64:
                return self.rows[base.index], offset, FLAGS["A64"], space
            if base.bits == 32:
                return self.rows[base.index], offset, 0, space
            self.fail(instruction, f"{base.name} has {base.bits} bits; an address has 32 or 64")
        if type(base) is Integer:
            return self.constant(64, base.value), offset, FLAGS["A64"], space
        own, value = self.place(base, instruction)
        if space not in (SPACES["GENERIC"], own) and {own, space} != _PARAMETERS:
            self.fail(
                instruction, f"{base.name} is a {_SPACE_NAMES[own]} variable, the access is "
                f"{_SPACE_NAMES[space]}"
            )  # fmt: skip
        if own in (SPACES["GLOBAL"], SPACES["CONST"]):
            return self.constant(64, value), offset, FLAGS["A64"], own
        return self.constant(32, 0), _signed((value + offset) & 0xFFFF_FFFF_FFFF_FFFF), 0, own

    def whole_address(self, arg: Any, space: int, instruction: Instruction) -> tuple[int, bool]:
        """The row of an address with its displacement added, and whether it has 64 bits."""
        row, offset, flags, _ = self.address(arg, space, instruction)
        wide = bool(flags)
        if not offset:
            return row, wide
        bits = 64 if wide else 32
        if type(arg.base) is Name:
            return self.constant(bits, offset), wide
        out = self.temporary(bits)
        here, self.here = self.here, -1
        self.emit(
            Plan("ADD", type=isa.TYPES[f"S{bits}"]), (out,), (row, self.constant(bits, offset))
        )
        self.here = here
        return out, wide

    def count(self, args: list[Any], least: int, most: int, instruction: Instruction) -> None:
        if not least <= len(args) <= most:
            expected = str(least) if least == most else f"{least} to {most}"
            self.fail(instruction, f"{expected} operands expected, {len(args)} given")


def _signed(value: int) -> int:
    """As a signed number of 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def describe(arg: Any) -> str:
    if type(arg) is Register:
        return f"the {'predicate' if arg.bits == 1 else 'register'} {arg.name}"
    if type(arg) is Integer:
        return f"the number {arg.value}"
    if type(arg) in (Name, Special):
        return arg.name
    return {
        Float: "a floating-point number", Address: "an address", Vector: "a list of registers",
        Group: "a group", Pair: "a pair", Negated: "a negated operand", Sink: "_",
    }[type(arg)]  # fmt: skip
