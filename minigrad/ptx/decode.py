"""A parsed entry and the functions it calls, as the arrays that the executor takes (`isa.py`).

Every register gets rows of its own (which the executor lets share); immediates, addresses of
variables and special registers become rows that are filled before a block starts, so that
operations know one kind of operand only: `emit.py`. Blocks begin with a LABEL, where divergent
lanes join; `flow.py` ranks them. Variables get offsets and addresses: `layout.py`. Here stand the
bodies, and the instructions whose operands are no plain list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import flow, isa
from .emit import Emitter, describe
from .errors import PtxError
from .isa import FLAGS, NONE, SPACES
from .layout import BUILTINS, call_parts
from .opcodes import Plan, Unknown, plan
from .syntax import (
    Address,
    Function,
    Instruction,
    Module,
    Name,
    Pair,
    Register,
    Scope,
    Sink,
    Variable,
    Vector,
)

MAX_INSTRUCTIONS = 1 << 22
MAX_PREDICATES = 32767  # a guard has 15 bits for one

_CONTROL = {"bra", "brx", "call", "ret", "exit", "trap", "brkpt"}


@dataclass
class Decoded:
    """What `Program` takes, and what reports need. `origin` gives each decoded instruction the
    index of the written one in `written`, or -1 for those that were added."""

    kernel: str
    module: Module
    instructions: np.ndarray
    operands: np.ndarray
    constants: np.ndarray
    n_rows: int
    n_preds: int
    entry: int
    static_shared: int
    dynamic_shared_start: int
    local_bytes: int
    param_bytes: int
    params: list[tuple[Variable, int]]
    origin: np.ndarray
    written: list[Instruction]
    lines: list[int]
    variables: list[tuple[Variable, int]] = field(default_factory=list)  # global, with addresses
    addresses: dict[str, int] = field(default_factory=dict)
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)


def decode(module: Module, kernel: str) -> Decoded:
    """Decodes the entry `kernel`. Raises PtxError, which names what exists where it does not."""
    entries = [f.name for f in module.functions.values() if f.is_entry and f.has_body]
    if kernel not in entries:
        raise PtxError(f"there is no entry {kernel!r}; the text has {', '.join(entries) or 'none'}")
    return _Decoder(module, module.functions[kernel]).decoded()


class _Decoder(Emitter):
    def __init__(self, module: Module, entry: Function) -> None:
        super().__init__(module, entry)
        self.starts: dict[str, int] = {}
        self.calls: list[tuple[int, str]] = []
        self.jumps: list[tuple[int, int]] = []  # (decoded instruction, where it leads)
        self.tables: list[tuple[int, list[int]]] = []
        self.handlers: dict[str, Handler] = {}

    def decoded(self) -> Decoded:
        layout = self.layout
        spans: list[tuple[int, int]] = []
        for function in layout.functions:
            start = len(self.packed)
            self._function(function)
            spans.append((start, len(self.packed)))
        layout.place_initial()
        instructions = np.frombuffer(b"".join(self.packed), isa.INSTRUCTION).copy()
        for at, target in self.jumps + [(at, self.starts[name]) for at, name in self.calls]:
            instructions["target"][at] = target
        # Callees stand behind their callers and get the lower ranks, so that lanes
        # in a function return before the others go on.
        ranks, base = np.array(self.ranks, np.int64), 0
        for start, end in reversed(spans):
            instructions["order"][start:end] = ranks[start:end] + base
            base += int(ranks[start:end].max()) + 1
        constants = np.zeros(len(self.constants), isa.CONSTANT)
        for i, ((kind, value), row) in enumerate(self.constants.items()):
            constants[i] = (row, kind, value)
        return Decoded(
            kernel=self.entry.name,
            module=self.module,
            instructions=instructions,
            operands=np.array(self.operands, "<u4"),
            constants=constants,
            n_rows=self.n_rows,
            n_preds=self.n_preds,
            entry=0,
            static_shared=layout.shared_bytes,
            dynamic_shared_start=layout.shared_bytes,
            local_bytes=-(-layout.local_bytes // 16) * 16,
            param_bytes=layout.param_bytes,
            params=layout.params,
            origin=np.array(self.origin, np.int64),
            written=self.written,
            lines=self.lines,
            variables=layout.placed,
            addresses=layout.addresses,
            directives=self.entry.directives,
        )

    # ---- one function ----

    def _function(self, function: Function) -> None:
        """Decodes a body: LABELs at the starts of blocks, instructions, and a last `ret`."""
        self.function, self.rows = function, []
        for register in function.registers:
            if register.bits == 1:
                self.rows.append(self.n_preds)
                self.n_preds += 1
            else:
                self.rows.append(self.n_rows)
                self.n_rows += max(1, register.bits // 32)
        if self.n_preds > MAX_PREDICATES:
            self.fail(None, f"more than {MAX_PREDICATES} predicates")
        body, base = list(function.body), len(self.written)
        body.append(
            Instruction(0, "ret", [], None, False, body[-1].place if body else 0, Scope(None))
        )
        if len(self.packed) + len(body) > MAX_INSTRUCTIONS:
            self.fail(None, f"more than {MAX_INSTRUCTIONS} instructions")
        self.written += body
        self.lines += [*function.lines, function.lines[-1] if body[1:] else function.line]
        targets, ends = self._branches(function)
        first = {block.first: block for block in flow.blocks(len(body), targets, ends)}
        labels: dict[int, int] = {}
        jumps, self.jumps, self.tables = self.jumps, [], []
        self.starts[function.name] = len(self.packed)
        handlers, rows = self.handlers, self.rows
        for i, instruction in enumerate(body):
            block = first.get(i)
            if block is not None:
                self.rank, self.here, self.guard = block.rank, -1, 0
                labels[i] = len(self.packed)
                self.emit(_LABEL)
            self.here = base + i
            guard = instruction.guard
            if guard is None:
                self.guard = 0
            else:
                self.guard = rows[guard.index] | (0x8000 if instruction.negated else 0)
            found = handlers.get(instruction.op)
            if found is None:
                found = handlers[instruction.op] = self._handler(instruction)
            found[1](found[0], instruction)
        self.origin[-1] = -1  # the `ret` that was added
        for position, places in self.tables:
            self.operands[position : position + len(places)] = [labels[p] for p in places]
        self.jumps = jumps + [(at, labels[place]) for at, place in self.jumps]

    def _branches(self, function: Function) -> tuple[dict[int, list[int]], dict[int, bool]]:
        """For `flow.blocks`: where branches lead, and where blocks end."""
        targets: dict[int, list[int]] = {}
        ends: dict[int, bool] = {}
        kinds: dict[str, str] = {}
        for i, instruction in enumerate(function.body):
            kind = kinds.get(instruction.op)
            if kind is None:
                name = instruction.op.split(".")[0]
                kind = kinds[instruction.op] = name if name in _CONTROL else ""
            if not kind:
                continue
            ends[i] = instruction.guard is not None or kind == "call"
            if kind in ("bra", "brx"):
                self.here = len(self.written) - len(function.body) - 1 + i
                targets[i] = self._targets(instruction, kind)
        return targets, ends

    def _targets(self, instruction: Instruction, kind: str) -> list[int]:
        last = instruction.args[-1] if instruction.args else None
        if len(instruction.args) != (1 if kind == "bra" else 2) or type(last) is not Name:
            self.fail(instruction, "expected a label")
        names = [last.name]
        if kind == "brx":
            scope: Scope | None = instruction.scope
            while scope is not None and last.name not in scope.tables:
                scope = scope.parent
            if scope is None:
                self.fail(instruction, f"there is no list of targets {last.name}")
            names = scope.tables[last.name]
        found = []
        for name in names:
            place = instruction.scope.label(name)
            if place is None:
                self.fail(instruction, f"there is no label {name} in sight")
            found.append(place)
        return found

    def _handler(self, instruction: Instruction) -> Handler:
        try:
            made = plan(instruction.op)
        except Unknown as unknown:
            self.fail(instruction, f"unknown instruction: {unknown}")
        return made, getattr(self, f"_do_{made.special or 'slots'}")

    # ---- instructions whose operands are plain slots ----

    def _do_slots(self, plan: Plan, instruction: Instruction) -> None:
        args, slots = instruction.args, plan.slots
        if len(args) != len(slots):
            self.count(args, len(slots) - plan.optional, len(slots), instruction)
        d: tuple[int, ...] = ()
        s: tuple[int, ...] = ()
        flags, imm, space = 0, plan.imm, plan.space
        rows = self.rows
        for (role, bits), arg in zip(slots, args, strict=False):
            if role == "s":
                if type(arg) is Register and arg.bits == bits:
                    s += (rows[arg.index],)
                else:
                    s += (self.source(arg, bits, instruction),)
            elif role == "d":
                d += (self.dest(arg, bits, instruction),)
            elif role == "P":
                s += (self.condition(arg, instruction),)
            elif role == "p":
                d += (self.dest(arg, 1, instruction),)
            elif role in ("p|q", "d|p"):
                one, two = (arg.first, arg.second) if type(arg) is Pair else (arg, _SINK)
                d += (self.dest(one, bits, instruction), self.dest(two, 1, instruction))
            elif role == "i":
                imm = self.integer(arg, instruction)
            elif role == "a":
                row, imm, wide, space = self.address(arg, space, instruction)
                s, flags = (*s, row), flags | wide
            elif role == "A":
                row, is_wide = self.whole_address(arg, SPACES["GENERIC"], instruction)
                s = (*s, row)
                flags |= (FLAGS["S64"] if bits else FLAGS["A64"]) if is_wide else 0
            elif role == "m":
                d += (self.dest(arg, 64, instruction),)
        self.emit(plan, d, s, None, flags, imm, space)

    # ---- movement ----

    def _do_move(self, plan: Plan, instruction: Instruction) -> None:
        args, width = instruction.args, plan.width
        self.count(args, 2, 2, instruction)
        out, value = args
        if type(out) is Vector:
            bits = self._part(width, out, instruction)
            parts = self.vector(out, len(out.items), bits, False, instruction)
            row = self.source(value, width, instruction)
            self.emit(_UNPACK[width], (), (row,), parts, n=len(parts))
        elif type(value) is Vector:
            bits = self._part(width, value, instruction)
            parts = self.vector(value, len(value.items), bits, True, instruction)
            self.emit(
                _PACKED[width], (self.dest(out, width, instruction),), (), parts, n=len(parts)
            )
        else:
            d = self.dest(out, width, instruction)
            self.emit(plan, (d,), (self.source(value, width, instruction),))

    def _part(self, width: int, parts: Vector, instruction: Instruction) -> int:
        n = len(parts.items)
        if n not in (2, 4) or width // n < 8:
            self.fail(instruction, f"{width} bits cannot be {n} parts")
        return max(16, width // n)

    def _do_convert(self, plan: Plan, instruction: Instruction) -> None:
        self.count(instruction.args, 2, 2, instruction)
        out, value = instruction.args
        d, flags = self._wide_dest(out, plan, instruction)
        if type(value) is Register:
            if value.bits < plan.width2:
                self.misfit(value, plan.width2, instruction)
            s = self.rows[value.index]
            if value.bits == 64 and plan.width2 < 64:
                flags |= FLAGS["S64"]
        else:
            s = self.source(value, max(16, plan.width2), instruction)
        self.emit(plan, (d,), (s,), None, flags)

    def _wide_dest(self, out: Any, plan: Plan, instruction: Instruction) -> tuple[int, int]:
        """The row of a destination that may be wider than the type, and flags that say so."""
        if type(out) is Sink:
            return NONE, 0
        if type(out) is not Register:
            self.fail(instruction, f"expected a register to write, found {describe(out)}")
        if out.bits < plan.width or out.bits == 1:
            self.misfit(out, plan.width, instruction)
        flags = 0
        if out.bits == 64 and plan.width < 64:
            flags = FLAGS["D64"]
        elif out.bits == 32 and plan.type in _SIGNED_NARROW:
            flags = FLAGS["WIDE"]
        return self.rows[out.index], flags

    def _do_convert_address(self, plan: Plan, instruction: Instruction) -> None:
        self.count(instruction.args, 2, 2, instruction)
        out, value = instruction.args
        d = self.dest(out, plan.width, instruction)
        flags = FLAGS["D64"] if plan.width == 64 else 0
        if type(value) is Name:
            _, address = self.place(value, instruction)
            s, flags = self.constant(64, address), flags | FLAGS["A64"]
        elif type(value) is Register and value.bits in (32, 64):
            s = self.rows[value.index]
            flags |= FLAGS["A64"] if value.bits == 64 else 0
        else:
            s, flags = self.source(value, 64, instruction), flags | FLAGS["A64"]
        self.emit(plan, (d,), (s,), None, flags)

    def _do_policy(self, plan: Plan, instruction: Instruction) -> None:
        if not instruction.args:
            self.fail(instruction, "expected a register to write")
        d = self.dest(instruction.args[0], 64, instruction)
        self.emit(plan, (d,), (self.constant(64, 0),))

    def _do_ignore(self, plan: Plan, instruction: Instruction) -> None:
        self.emit(plan)

    def _do_fence(self, plan: Plan, instruction: Instruction) -> None:
        self.emit(plan)

    # ---- memory ----

    def _do_load(self, plan: Plan, instruction: Instruction) -> None:
        args = instruction.args
        self.count(args, 2, 2 + plan.optional, instruction)
        row, imm, flags, space = self.address(args[1], plan.space, instruction)
        outs = args[0].items if type(args[0]) is Vector else [args[0]]
        if len(outs) != plan.n:
            self.fail(instruction, f"{plan.n} registers expected, {len(outs)} given")
        found = [self._wide_dest(out, plan, instruction) for out in outs]
        extra = {flag for d, flag in found if d != NONE}
        if len(extra) > 1:
            self.fail(instruction, "the registers have different sizes")
        flags |= extra.pop() if extra else 0
        if plan.n == 1:
            self.emit(plan, (found[0][0],), (row,), None, flags, imm, space)
        else:
            self.emit(plan, (), (row,), [d for d, _ in found], flags, imm, space)

    def _do_store(self, plan: Plan, instruction: Instruction) -> None:
        args = instruction.args
        self.count(args, 2, 2 + plan.optional, instruction)
        row, imm, flags, space = self.address(args[0], plan.space, instruction)
        values = args[1].items if type(args[1]) is Vector else [args[1]]
        if len(values) != plan.n:
            self.fail(instruction, f"{plan.n} values expected, {len(values)} given")
        widths = {v.bits for v in values if type(v) is Register}
        if any(width < plan.width for width in widths) or len(widths) > 1:
            self.misfit(next(v for v in values if type(v) is Register), plan.width, instruction)
        wide = widths == {64} and plan.width < 64
        bits = widths.pop() if widths else plan.width
        rows = [self.source(v, bits, instruction) for v in values]
        flags |= FLAGS["S64"] if wide else 0
        if plan.n == 1:
            self.emit(plan, (), (row, rows[0]), None, flags, imm, space)
        else:
            self.emit(plan, (), (row,), rows, flags, imm, space)

    def _do_atomic(self, plan: Plan, instruction: Instruction) -> None:
        args = list(instruction.args)
        operands = 2 if plan.sub == isa.ATOMS["CAS"] else 1
        has_result = plan.op == "ATOM"
        least = has_result + 1 + operands
        self.count(args, least, least + plan.optional, instruction)
        out = args.pop(0) if has_result else None
        row, imm, flags, space = self.address(args[0], plan.space, instruction)
        if plan.n > 1:
            items = [] if out is None else self.vector(out, plan.n, plan.width, False, instruction)
            items += self.vector(args[1], plan.n, plan.width, True, instruction)
            self.emit(plan, (), (row,), items, flags, imm, space)
            return
        d = () if out is None else (self.dest(out, plan.width, instruction),)
        values = tuple(self.source(a, plan.width, instruction) for a in args[1 : 1 + operands])
        self.emit(plan, d, (row, *values), None, flags, imm, space)

    def _do_ldmatrix(self, plan: Plan, instruction: Instruction) -> None:
        self.count(instruction.args, 2, 2, instruction)
        row, imm, flags, _ = self.address(instruction.args[1], plan.space, instruction)
        rows = self.vector(instruction.args[0], plan.n, 32, False, instruction)
        self.emit(plan, (), (row,), rows, flags, imm)

    def _do_stmatrix(self, plan: Plan, instruction: Instruction) -> None:
        self.count(instruction.args, 2, 2, instruction)
        row, imm, flags, _ = self.address(instruction.args[0], plan.space, instruction)
        rows = self.vector(instruction.args[1], plan.n, 32, True, instruction)
        self.emit(plan, (), (row,), rows, flags, imm)

    def _do_copy(self, plan: Plan, instruction: Instruction) -> None:
        """cp.async [to], [from], bytes{, bytes to read | ignore}."""
        args = instruction.args
        self.count(args, 3, 4 + plan.optional, instruction)
        to, to_offset, flags, _ = self.address(args[0], SPACES["SHARED"], instruction)
        start, offset, wide, _ = self.address(args[1], SPACES["GLOBAL"], instruction)
        if not wide:
            self.fail(instruction, "a global address has 64 bits")
        size = self.integer(args[2], instruction)
        if size not in (4, 8, 16):
            self.fail(instruction, f"copies {size} bytes; 4, 8 or 16 were expected")
        rest = args[3 : len(args) - plan.optional]
        given = NONE
        if rest and type(rest[0]) is Register and rest[0].bits == 1:
            given, flags = self.condition(rest[0], instruction), flags | FLAGS["SAT"]
        elif rest:
            given = self.source(rest[0], 32, instruction)
        if not -(1 << 31) <= offset < 1 << 31:
            self.fail(instruction, f"the displacement {offset} is too large")
        self.emit(plan, (), (to, start, given), None, flags, to_offset, aux=offset & 0xFFFF_FFFF,
                  n=size)  # fmt: skip

    def _do_copy_bulk(self, plan: Plan, instruction: Instruction) -> None:
        args = instruction.args
        with_barrier = plan.sub in (0, 2)
        least = 3 + with_barrier
        self.count(args, least, least + plan.optional, instruction)
        to_space, from_space = (
            ("SHARED", "GLOBAL"), ("GLOBAL", "SHARED"), ("SHARED", "SHARED"), ("GLOBAL", "SHARED")
        )[plan.sub]  # fmt: skip
        to, to_wide = self.whole_address(args[0], SPACES[to_space], instruction)
        start, from_wide = self.whole_address(args[1], SPACES[from_space], instruction)
        size = self.source(args[2], 32, instruction)
        barrier, barrier_wide = NONE, False
        if with_barrier:
            barrier, barrier_wide = self.whole_address(args[3], SPACES["SHARED"], instruction)
        flags = FLAGS["A64"] * to_wide | FLAGS["S64"] * from_wide | FLAGS["D64"] * barrier_wide
        self.emit(plan, (), (to, start, size, barrier), None, flags)

    def _do_copy_tensor(self, plan: Plan, instruction: Instruction) -> None:
        args = instruction.args
        load = plan.sub == 0
        self.count(args, 2 + load, 2 + load + plan.optional, instruction)
        shared, tensor = (args[0], args[1]) if load else (args[1], args[0])
        if type(tensor) is not Address or type(tensor.coordinates) is not Vector:
            self.fail(instruction, "expected a tensor map with coordinates: [map, {x, y}]")
        at, wide = self.whole_address(shared, SPACES["SHARED"], instruction)
        plain = Address(tensor.base, tensor.offset, None)
        where, map_wide = self.whole_address(plain, SPACES["GENERIC"], instruction)
        if not map_wide:
            self.fail(instruction, "the address of a tensor map has 64 bits")
        barrier, barrier_wide = NONE, False
        if load:
            barrier, barrier_wide = self.whole_address(args[2], SPACES["SHARED"], instruction)
        rows = self.vector(tensor.coordinates, plan.n, 32, True, instruction)
        flags = FLAGS["A64"] * wide | FLAGS["D64"] * barrier_wide
        self.emit(plan, (), (at, where, barrier), rows, flags)

    def _do_tensormap(self, plan: Plan, instruction: Instruction) -> None:
        args = instruction.args
        self.count(args, 2, 3, instruction)
        ordinal = self.integer(args[1], instruction) if len(args) == 3 else 0
        if not 0 <= ordinal < 5:
            self.fail(instruction, f"ordinal {ordinal}; 0 to 4 were expected")
        row, wide = self.whole_address(args[0], plan.space, instruction)
        value = self.source(args[-1], plan.width, instruction)
        flags = FLAGS["A64"] if wide else 0
        self.emit(plan, (), (row, value), None, flags, aux=ordinal)

    # ---- blocks and control ----

    def _do_barrier(self, plan: Plan, instruction: Instruction) -> None:
        args = list(instruction.args)
        reduces = plan.sub >= 2
        self.count(args, 1 + 2 * reduces + (plan.sub == 1), 2 + 2 * reduces, instruction)
        d: tuple[int, ...] = ()
        condition = NONE
        if reduces:
            d = (self.dest(args.pop(0), 32 if plan.sub == 2 else 1, instruction),)
            condition = self.condition(args.pop(), instruction)
        number = self.source(args[0], 32, instruction)
        count = self.source(args[1], 32, instruction) if len(args) > 1 else NONE
        self.emit(plan, d, (number, count, condition))

    def _do_bra(self, plan: Plan, instruction: Instruction) -> None:
        self.jumps.append((len(self.packed), self._targets(instruction, "bra")[0]))
        self.emit(plan)

    def _do_brx(self, plan: Plan, instruction: Instruction) -> None:
        places = self._targets(instruction, "brx")
        self.tables.append((len(self.operands), places))
        row = self.source(instruction.args[0], 32, instruction)
        self.emit(plan, (), (row,), [0] * len(places))

    def _do_call(self, plan: Plan, instruction: Instruction) -> None:
        results, name, arguments = call_parts(instruction, self.lines[self.here])
        callee = self.module.functions.get(name)
        if callee is None or not callee.has_body:
            self._builtin(name, results, arguments, instruction)
            return
        for arg, parameter in zip(arguments, callee.params, strict=True):
            if type(arg) is not Name:
                self._pass(arg, parameter, instruction)
        self.calls.append((len(self.packed), name))
        self.emit(plan)
        if any(type(arg) is not Name for arg in results):
            self.fail(instruction, "a call's result goes to a .param variable here")

    def _pass(self, arg: Any, parameter: Variable, instruction: Instruction) -> None:
        bits = 8 * parameter.size
        if bits not in (16, 32, 64):
            self.fail(instruction, f"{parameter.name} cannot be passed in a register")
        value = self.source(arg, bits, instruction)
        at = (self.constant(32, 0), value)
        self.emit(_STORE_LOCAL[bits], (), at, imm=self.layout.offsets[id(parameter)])

    def _builtin(
        self, name: str, results: list[Any], arguments: list[Any], instruction: Instruction
    ) -> None:
        sizes = BUILTINS[name]
        if len(arguments) != len(sizes):
            self.fail(instruction, f"{name} takes {len(sizes)} arguments, {len(arguments)} given")
        rows = []
        for arg, size in zip(arguments, sizes, strict=True):
            if type(arg) is Name and arg.variable is not None and arg.variable.size >= size:
                row = self.temporary(8 * size)
                at = self.layout.offsets[id(arg.variable)]
                self.emit(_LOAD_LOCAL[8 * size], (row,), (self.constant(32, 0),), imm=at)
            else:
                row = self.source(arg, 8 * size, instruction)
            rows.append(row)
        if name == "vprintf":
            out = self.temporary(32)
            self.emit(_VPRINTF, (out,), tuple(rows))
            if results and type(results[0]) is Name and results[0].variable is not None:
                at = self.layout.offsets[id(results[0].variable)]
                self.emit(_STORE_LOCAL[32], (), (self.constant(32, 0), out), imm=at)
        else:
            self.emit(_ASSERTFAIL, (), tuple(rows[:4]))

    # ---- matrix products ----

    def _do_matrix(self, plan: Plan, instruction: Instruction) -> None:
        args = instruction.args
        self.count(args, 4, 4, instruction)
        items: list[int] = []
        for i, arg in enumerate(args):
            n = len(arg.items) if type(arg) is Vector else 1
            items += self.vector(arg, n, plan.width, i > 0, instruction)
        if NONE in items:
            self.fail(instruction, "a matrix product has no results that nobody wants")
        self.emit(plan, (), (), items)

    def _do_warpgroup_matrix(self, plan: Plan, instruction: Instruction) -> None:
        args = instruction.args
        self.count(args, 4, 8, instruction)
        n_results = len(args[0].items) if type(args[0]) is Vector else 1
        items = self.vector(args[0], n_results, 32, False, instruction)
        descriptor, in_registers = NONE, type(args[1]) is Vector
        if in_registers:
            items += self.vector(args[1], len(args[1].items), 32, True, instruction)
        else:
            descriptor = self.source(args[1], 64, instruction)
        if NONE in items:
            self.fail(instruction, "a matrix product has no results that nobody wants")
        other = self.source(args[2], 64, instruction)
        accumulate = self.condition(args[3], instruction)
        words = [self.integer(arg, instruction) for arg in args[4:]]
        bits = 0
        if words:  # scale of A, scale of B, then what is transposed
            if len(words) < 2:
                self.fail(instruction, "scales of A and of B expected")
            bits = (words[0] == -1) | (words[1] == -1) << 1
            turned = words[2:]
            if in_registers and len(turned) == 1:
                bits |= bool(turned[0]) << 3
            elif len(turned) == 2 and not in_registers:
                bits |= bool(turned[0]) << 2 | bool(turned[1]) << 3
            elif turned:
                self.fail(instruction, "one transposition for B, two where A is in shared memory")
        self.emit(plan, (), (descriptor, other, accumulate), items, imm=bits, n=int(in_registers))


Handler = tuple[Plan, Callable[[Plan, Instruction], None]]


_SINK = Sink()
_SIGNED_NARROW = {isa.TYPES["S8"], isa.TYPES["S16"]}
_WHOLE = {16: "B16", 32: "B32", 64: "B64", 128: "B128"}
_UNPACK = {bits: Plan("UNPACK", type=isa.TYPES[name]) for bits, name in _WHOLE.items()}
_PACKED = {bits: Plan("PACK", type=isa.TYPES[name]) for bits, name in _WHOLE.items()}
_LABEL = Plan("LABEL")
_VPRINTF, _ASSERTFAIL = Plan("VPRINTF"), Plan("ASSERTFAIL")
_LOAD_LOCAL = {
    bits: Plan("LD", type=isa.TYPES[_WHOLE[bits]], space=SPACES["LOCAL"], n=1) for bits in (32, 64)
}
_STORE_LOCAL = {
    bits: Plan("ST", type=isa.TYPES[_WHOLE[bits]], space=SPACES["LOCAL"], n=1)
    for bits in (16, 32, 64)
}
