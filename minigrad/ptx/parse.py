"""PTX text to functions of instructions with resolved names.

Nothing here knows what an instruction does: an opcode stays a string, its operands become objects
in which registers are numbers of their function. Every instruction keeps its place in the text and
its place in the source that the PTX was compiled from. Text that is no PTX gives a PtxError with a
line; regular expressions are possessive and scan forward only, so time grows with length alone.
"""

from __future__ import annotations

import bisect
import re
import struct
from typing import Any, NoReturn

from .errors import PtxError
from .syntax import (
    TYPE_BYTES,
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
    Scope,
    Sink,
    Special,
    Variable,
    Vector,
)

MAX_TEXT_BYTES = 64 << 20
MAX_VARIABLE_BYTES = 1 << 28  # of one variable; what a launch can hold is checked there
MAX_REGISTERS = 1 << 16  # used by one function

# ---- the text's grammar ----

_COMMENT = re.compile(r'"(?:[^"\\\n]|\\[^\n])*+"?|//[^\n]*+|/\*.*?(?:\*/|\Z)', re.DOTALL)
_STATEMENT = re.compile(
    r"""\s*+(?:
      (?:@(?P<negated>!?)\s*+(?P<guard>[%$\w]++)\s*+)?
        (?P<op>[a-z]\w*+(?:\.\w++|::\w++)*+)\s*+(?!:)
        (?P<args>[^;{}"]*+(?:\{[^{}]*+\}[^;{}"]*+)*+);
    | \.loc[ \t]++(?P<loc>[^\n]*+)
    | (?P<label>[$%\w]++)\s*+:(?!:)
    | (?P<open>\{)
    | (?P<close>\})
    | \.(?P<directive>\w++)
    )""",
    re.VERBOSE,
)
_REST = re.compile(r"[^;{}]*+(?:\{(?:[^{}]|\{[^{}]*+\})*+\}[^;{}]*+)*+;")  # of a declaration
_FILE = re.compile(r'\s*+(\d{1,9})\s*+"([^"\n]*+)"(?:\s*+,\s*+\d++\s*+,\s*+\d++)?')
_SECTION = re.compile(r"\s*+[.\w]++\s*+\{[^{}]*+\}")
_VERSION = re.compile(r"\s*+([\d.]++)")
_TARGET = re.compile(r"\s*+(\w++(?:\s*+,\s*+\w++)*+)")
_STRING = re.compile(r'\s*+"[^"\n]*+"\s*+;?')
_HEADER = re.compile(
    r"\s*+(?:\(([^(){}]*+)\)\s*+)?([$%\w]++)\s*+(?:\(([^(){}]*+)\))?\s*+"
    r"((?:\.\w++(?:[\s,]*+\d++)*+(?:\s*+\"[^\"\n]*+\"\s*+;)?\s*+)*+)([{;])"
)
_HEADER_DIRECTIVE = re.compile(r"\.(\w++)((?:[\s,]*+\d++)*+)")
_DECLARATOR = re.compile(r"\.\w++|[$%\w]++|[<>\[\]]|\S")
_LOC = re.compile(r"(\d{1,9})\s+(\d{1,9})(?:\s+(\d{1,9}))?")
_INLINED = re.compile(r"inlined_at\s+(\d{1,9})\s+(\d{1,9})\s+(\d{1,9})")
_INTEGER = re.compile(r"(-?)\s*+(?:0[xX]([0-9a-fA-F]{1,32})|0[bB]([01]{1,64})|(\d{1,40}))U?")
_FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})|(-?\d*\.\d*(?:[eE][+-]?\d+)?)")
_ADDRESS = re.compile(
    r"\[\s*+([%$\w.]++)\s*+(?:\+\s*+(-?\s*+\w++)|(-\s*+\w++))?\s*+(?:,\s*+(\{[^{}]*+\})\s*+)?\]"
)
_NAME = re.compile(r"([%$\w]++)(?:\s*+\+\s*+(-?\w++))?")
_PIECE = re.compile(r"\s*+(\[[^\[\]]*+\]|\{[^{}]*+\}|\([^()]*+\)|[^,\[\]{}()]++)\s*+(?:,|$)")
_SPECIAL = re.compile(
    r"%(?:(?:n?tid|n?ctaid|cluster_n?ctaid|n?clusterid)\.[xyzw]|laneid|n?warpid|n?smid|gridid"
    r"|lanemask_(?:eq|le|lt|ge|gt)|clock(?:64|_hi)?|globaltimer(?:_lo|_hi)?|cluster_n?ctarank"
    r"|(?:dynamic|total|aggr)_smem_size|is_explicit_cluster|envreg\d{1,2}|pm\d(?:_64)?"
    r"|reserved_smem_offset_\w+)|WARP_SZ"
)
_SYMBOL = re.compile(r"(generic\s*+\(\s*+)?([A-Za-z_$%][$\w]*+)\s*+\)?\s*+(?:\+\s*+(\w++))?")
_WORD = re.compile(r"\S+")
_INK = re.compile(r"[^\n]")
_INLINE = re.compile(r"// (begin|end) inline asm")
_LINKAGE = ("visible", "extern", "weak", "common")
_SPACES = ("global", "const", "shared", "local", "param")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def _integer(text: str) -> int | None:
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    sign, hexadecimal, binary, digits = match.groups()
    if hexadecimal:
        value = int(hexadecimal, 16)
    elif binary:
        value = int(binary, 2)
    elif digits[0] == "0" and len(digits) > 1:
        try:
            value = int(digits, 8)
        except ValueError:
            return None
    else:
        value = int(digits)
    if sign:
        value = -value
    return value if -(1 << 63) <= value < 1 << 64 else None


def _float(text: str) -> Float | None:
    match = _FLOAT.fullmatch(text)
    if match is None or len(text) > 400:
        return None
    if match[1]:
        return Float(int(match[1], 16), 32)
    if match[2]:
        return Float(int(match[2], 16), 64)
    try:
        value = float(match[3])
    except ValueError:  # a lone point
        return None
    return Float(struct.unpack("<Q", struct.pack("<d", value))[0], 64)


def parse(text: str) -> Module:
    """The module in a PTX text. Raises PtxError for text that is not PTX."""
    return _Parser(text).module()


class _Parser:
    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEXT_BYTES:
            raise PtxError(f"{len(text)} characters of PTX; at most {MAX_TEXT_BYTES} are read")
        if "\0" in text:
            text = text[: text.index("\0")]  # NVRTC ends its text as C does
        self.text = _COMMENT.sub(self._blank, text)
        self.inline = [(m.start(), m[1] == "begin") for m in _INLINE.finditer(text)]
        self.line_starts = [0, *(m.end() for m in re.finditer("\n", self.text))]
        self.result = Module()
        self.places: dict[tuple[tuple[int, int, int], ...], int] = {(): 0}
        self.callers: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        self.locations: dict[int, int] = {}  # the first .loc of each piece of inline assembly
        self.function = Function("", False, 0)
        self.scope = Scope(None)

    @staticmethod
    def _blank(match: re.Match[str]) -> str:
        """A comment as blanks, so that places in the text stay what they are."""
        found = match[0]
        if found[0] == '"':
            return found
        return " " * len(found) if found[1] == "/" else _INK.sub(" ", found)

    def line(self, at: int) -> int:
        return bisect.bisect_right(self.line_starts, at)

    def fail(self, at: int, message: str) -> NoReturn:
        raise PtxError(message, self.line(at))

    def match(self, pattern: re.Pattern[str], at: int, expected: str) -> re.Match[str]:
        found = pattern.match(self.text, at)
        if found is None:
            self.fail(self._skip(at), f"expected {expected}, found {self._near(at)}")
        return found

    def _skip(self, at: int) -> int:
        found = _WORD.search(self.text, at)
        return found.start() if found else max(0, len(self.text) - 1)

    def _near(self, at: int) -> str:
        at = self._skip(at)
        near = self.text[at : at + 60].split("\n")[0].strip()
        return repr(near) if near else "the end of the text"

    # ---- module level ----

    def module(self) -> Module:
        at, linkage = 0, ""
        while True:
            found = _STATEMENT.match(self.text, at)
            if found is None:
                if self.text[at:].strip():
                    self.fail(self._skip(at), f"expected a directive, found {self._near(at)}")
                break
            kind, at = found.lastgroup, found.end()
            if kind == "loc":
                continue
            if kind != "directive":
                self.fail(self._skip(found.start()), "expected a directive of a module, found "
                          f"{self._near(found.start())}")  # fmt: skip
            word = found["directive"]
            if word in _LINKAGE:
                linkage = word
                continue
            at = self._module_directive(word, at, linkage)
            linkage = ""
        if not self.result.functions:
            raise PtxError("the text holds no function; PTX with an .entry was expected")
        return self.result

    def _module_directive(self, word: str, at: int, linkage: str) -> int:
        if word in ("entry", "func"):
            return self._function(word == "entry", at)
        if word in _SPACES:
            found = self.match(_REST, at, "a declaration that ends in ';'")
            self._declare(word, found[0][:-1], at, linkage == "extern", self.result.variables)
            return found.end()
        if word == "version":
            found = self.match(_VERSION, at, "a version such as 8.8")
            self.result.version = found[1]
        elif word == "target":
            found = self.match(_TARGET, at, "a target such as sm_80")
            self.result.target = found[1].split(",")[0].strip()
        elif word == "address_size":
            found = self.match(_VERSION, at, "64")
            if found[1] != "64":
                self.fail(at, f".address_size {found[1]}; the machine has 64-bit addresses")
        elif word in ("file", "section", "pragma"):
            return self._common_directive(word, at)
        else:
            self.fail(at, f"unknown directive .{word}")
        return found.end()

    def _common_directive(self, word: str, at: int) -> int:
        if word == "file":
            found = self.match(_FILE, at, "a number and a name in quotes")
            self.result.files[int(found[1])] = found[2]
        elif word == "section":
            found = self.match(_SECTION, at, "a section's name and its content in braces")
        else:
            found = self.match(_STRING, at, "a string")
        return found.end()

    # ---- declarations ----

    def _declare(
        self, space: str, text: str, at: int, external: bool, into: dict[str, Variable]
    ) -> list[Variable]:
        left, equals, right = text.partition("=")
        made = []
        pieces = left.split(",")
        if len(pieces) > 1 and equals:
            self.fail(at, "one variable with an initial value a declaration is read")
        first = self._variable(space, pieces[0], at, external)
        made.append(first)
        for piece in pieces[1:]:
            prefix = f".align {first.align} .{first.type} " if "." not in piece else ""
            made.append(self._variable(space, prefix + piece, at, external))
        if equals:
            self._initialise(first, right, at)
        for variable in made:
            if variable.name in into and not (external or into[variable.name].external):
                self.fail(at, f"{variable.name} is declared twice")
            into[variable.name] = variable
        return made

    def _variable(self, space: str, text: str, at: int, external: bool = False) -> Variable:
        tokens = _DECLARATOR.findall(text)
        kind, align, lanes, name, size, i = "", 0, 1, "", 1, 0
        unsized = False
        while i < len(tokens) and tokens[i][0] == ".":
            word = tokens[i][1:]
            if word == "align" and i + 1 < len(tokens):
                align = _integer(tokens[i + 1]) or 0
                if not 0 < align <= 1 << 16 or align & (align - 1):
                    self.fail(at, f".align {tokens[i + 1]}; a power of two was expected")
                i += 1
            elif word in TYPE_BYTES:
                kind = word
            elif word in ("v2", "v4"):
                lanes = int(word[1])
            elif word == "attribute":
                while i + 1 < len(tokens) and tokens[i] != ")":
                    i += 1
            elif word not in ("ptr", *_SPACES, *_LINKAGE):
                self.fail(at, f"unknown attribute .{word} of a variable")
            i += 1
        if i < len(tokens) and kind and re.match(r"[$%\w]", tokens[i]):
            name = tokens[i]
            i += 1
        else:
            self.fail(at, f"expected a type and a name, found {_short(text)!r}")
        pointed = align if ".ptr" in tokens else 0  # then .align is of what it points to
        while i < len(tokens):
            dimension = tokens[i : i + 3]
            if dimension[:2] == ["[", "]"]:
                unsized, i = True, i + 2
                continue
            count = _integer(dimension[1]) if len(dimension) == 3 else None
            if dimension[0] != "[" or dimension[-1] != "]" or count is None or count < 0:
                self.fail(at, f"expected an array's size after {name}, found {_short(text)!r}")
            size *= count
            if size > MAX_VARIABLE_BYTES:
                self.fail(at, f"{name} has more than {MAX_VARIABLE_BYTES} bytes")
            i += 3
        width = TYPE_BYTES[kind] * lanes
        size = 0 if unsized else size * width
        if size > MAX_VARIABLE_BYTES:
            self.fail(at, f"{name} has more than {MAX_VARIABLE_BYTES} bytes")
        align = max(width, 0 if pointed else align) if pointed else max(align, width)
        return Variable(name, space, kind, size, align, self.line(at), external or unsized)

    def _initialise(self, variable: Variable, text: str, at: int) -> None:
        width = TYPE_BYTES[variable.type]
        text = text.strip()
        if '"' in text:
            self.fail(at, "initial values are numbers; strings are not PTX")
        data = bytearray()
        for item in text.replace("{", " ").replace("}", " ").split(","):
            item = item.strip()
            if not item and text.startswith("{"):
                continue
            value = _integer(item)
            if value is None:
                number = _float(item)
                if number is not None:
                    value = number.as_width(width * 8) if width in (4, 8) else None
            if value is None:
                symbol = _SYMBOL.fullmatch(item)
                addend = _integer(symbol[3]) if symbol and symbol[3] else 0
                if symbol is None or addend is None or width < 4:
                    self.fail(
                        at, f"{variable.name}: cannot read the initial value {_short(item)!r}"
                    )
                variable.addresses.append(
                    (len(data), width, symbol[2], addend, symbol[1] is not None)
                )
                value = 0
            data += (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        if variable.size == 0 and variable.external:
            variable.size, variable.external = len(data), False
        if len(data) > variable.size:
            self.fail(
                at, f"{variable.name} has {variable.size} bytes and {len(data)} to start with"
            )
        variable.initial = bytes(data)

    # ---- functions ----

    def _function(self, is_entry: bool, at: int) -> int:
        header = self.match(_HEADER, at, "a function's name, parameters and body")
        results, name, params, directives, opening = header.groups()
        function = Function(name, is_entry, self.line(header.start(2)))
        for into, declared in ((function.params, params), (function.results, results)):
            for piece in (declared or "").split(","):
                if not piece.strip():
                    continue
                if not piece.strip().startswith(".param"):
                    self.fail(
                        header.start(2), f"{name}: expected a .param, found {_short(piece)!r}"
                    )
                into.append(self._variable("param", piece, header.start(2)))
        for word, numbers in _HEADER_DIRECTIVE.findall(directives):
            function.directives[word] = tuple(
                int(n) for n in numbers.replace(",", " ").split()[:3] if len(n) < 10
            )
        known = self.result.functions.get(name)
        if known is not None and known.has_body and opening == "{":
            self.fail(header.start(2), f"{name} is defined twice")
        if known is None or opening == "{":
            self.result.functions[name] = function
        if opening == ";":
            return header.end()
        function.has_body = True
        return self._body(function, header.end())

    def _body(self, function: Function, at: int) -> int:
        self.function, self.scope = function, Scope(None)
        for variable in function.params + function.results:
            if variable.name in self.scope.variables:
                self.fail(at, f"{function.name}: two parameters are named {variable.name}")
            self.scope.variables[variable.name] = variable
        text, statement, body = self.text, _STATEMENT.match, function.body
        place, depth = 0, 0
        operands = self.scope.operands
        while True:
            found = statement(text, at)
            if found is None:
                self.fail(self._skip(at), f"{function.name}: expected an instruction that ends in "
                          f"';', found {self._near(at)}")  # fmt: skip
            kind, start, at = found.lastgroup, at, found.end()
            if kind == "args":
                written = found["args"]
                where = found.start("op")
                if not written or written.isspace():
                    args = []
                else:
                    nested = "{" in written or "(" in written or "[" in written
                    pieces = (
                        self._pieces(written, where)
                        if nested
                        else map(str.strip, written.split(","))
                    )
                    args = [operands.get(p) or self._operand(p, where) for p in pieces]
                guard = found["guard"]
                if guard is not None:
                    guard = operands.get(guard) or self._operand(guard, where)
                if guard is not None and (type(guard) is not Register or guard.bits != 1):
                    self.fail(where, f"the guard @{found['guard']} is no predicate register")
                body.append(
                    Instruction(
                        where, found["op"], args, guard, found["negated"] == "!", place, self.scope
                    )
                )
            elif kind == "loc":
                if not self._counts_lines_of_assembly(found.start("loc")):
                    place = self._place(found["loc"], found.start())
            elif kind == "label":
                name = found["label"]
                if name in self.scope.labels:
                    self.fail(found.start("label"), f"the label {name} is defined twice")
                self.scope.labels[name] = len(body)
                at = self._table(name, at)
            elif kind == "open":
                depth += 1
                if depth > 64:
                    self.fail(start, "braces nest deeper than 64")
                self.scope = Scope(self.scope)
                operands = self.scope.operands
            elif kind == "close":
                if self.scope.parent is None:
                    break
                self.scope, depth = self.scope.parent, depth - 1
                operands = self.scope.operands
            else:
                at = self._body_directive(found["directive"], at)
                operands = self.scope.operands
        function.lines = [self.line(i.at) for i in body]
        return at

    def _table(self, name: str, at: int) -> int:
        """The list after `label: .branchtargets`, and what follows `label: .callprototype`."""
        found = re.compile(r"\s*+\.(branchtargets|callprototype|calltargets)\b([^;{}]*+);").match(
            self.text, at
        )
        if found is None:
            return at
        del self.scope.labels[name]
        self.scope.tables[name] = [t.strip() for t in found[2].split(",")]
        return found.end()

    def _body_directive(self, word: str, at: int) -> int:
        if word in ("file", "section", "pragma"):
            return self._common_directive(word, at)
        if word != "reg" and word not in _SPACES:
            self.fail(at, f"unknown directive .{word}")
        found = self.match(_REST, at, "a declaration that ends in ';'")
        if word == "reg":
            self._registers(found[0][:-1], at)
        else:
            made = self._declare(word, found[0][:-1], at, False, self.scope.variables)
            self.function.variables += made
        # A name may have stood for something of a scope outside.
        self.scope.operands.clear()
        return found.end()

    def _registers(self, text: str, at: int) -> None:
        found = re.fullmatch(r"\s*+\.(\w++)\s*+(.*)", text, re.DOTALL)
        if found is None or (found[1] != "pred" and found[1] not in TYPE_BYTES):
            self.fail(at, f"expected a register type and names, found {_short(text)!r}")
        bits = 1 if found[1] == "pred" else max(16, 8 * TYPE_BYTES[found[1]])
        scope = self.scope
        for piece in found[2].split(","):
            name = re.fullmatch(r"\s*+([%$\w]+?)\s*+(?:<\s*+(\d{1,9})\s*+>)?\s*+", piece)
            if name is None:
                self.fail(at, f"expected a register's name, found {_short(piece)!r}")
            if name[2] is not None:
                scope.families[name[1]] = (int(name[2]), bits)
            else:
                scope.registers[name[1]] = bits

    def _register(self, name: str, at: int) -> Register | None:
        scope: Scope | None = self.scope
        prefix = name.rstrip("0123456789")
        digits = name[len(prefix) :]
        while scope is not None:
            found = scope.registers.get(name)
            if found is None and digits and len(digits) < 10:
                # %p1<4> declares %p10 to %p13: the digits of a prefix may be part of it.
                for cut in range(len(digits)):
                    count, bits = scope.families.get(prefix + digits[:cut], (0, 0))
                    rest = digits[cut:]
                    if int(rest) < count and (rest == "0" or rest[0] != "0"):
                        found = bits
                        break
            if isinstance(found, int):
                if len(self.function.registers) >= MAX_REGISTERS:
                    self.fail(at, f"more than {MAX_REGISTERS} registers in one function")
                found = Register(len(self.function.registers), found, name)
                self.function.registers.append(found)
                scope.registers[name] = found
            if found is not None:
                return found
            scope = scope.parent
        return None

    def _find_variable(self, name: str) -> Variable | None:
        scope: Scope | None = self.scope
        while scope is not None:
            if name in scope.variables:
                return scope.variables[name]
            scope = scope.parent
        return self.result.variables.get(name)

    # ---- operands ----

    def _pieces(self, text: str, at: int) -> list[str]:
        """Operands at the outermost level, separated by commas."""
        pieces, i = [], 0
        text = text.strip()
        while i < len(text):
            found = _PIECE.match(text, i)
            if found is None:
                self.fail(at, f"cannot read the operands {_short(text)!r}")
            pieces.append(found[1].strip())
            i = found.end()
        return pieces

    def _operand(self, text: str, at: int) -> Any:
        made = self._read_operand(text, at)
        if made is None:
            self.fail(at, f"cannot read the operand {_short(text)!r}")
        self.scope.operands[text] = made
        return made

    def _read_operand(self, text: str, at: int) -> Any:
        if not text:
            return None
        first = text[0]
        register = self._register(text, at)
        if register is not None:
            return register
        if first == "[":
            return self._address(text, at)
        if first in "{(":
            inner = [self._operand(p, at) for p in self._pieces(text[1:-1], at)]
            return Vector(inner) if first == "{" else Group(inner)
        if first == "!" and text[1:2] != "!":
            return Negated(self._operand(text[1:].strip(), at))
        if text == "_":
            return Sink()
        if first in "-0123456789.":
            value = _integer(text)
            return _float(text) if value is None else Integer(value)
        if "|" in text:
            one, _, two = text.partition("|")
            if "|" not in two:
                return Pair(self._operand(one.strip(), at), self._operand(two.strip(), at))
            return None
        if _SPECIAL.fullmatch(text):
            return Special(text)
        found = _NAME.fullmatch(text)
        if found is None:
            return None
        offset = _integer(found[2]) if found[2] else 0
        if first == "%" and self._find_variable(found[1]) is None:
            self.fail(at, f"the register {found[1]} is not declared")
        return None if offset is None else Name(found[1], offset, self._find_variable(found[1]))

    def _address(self, text: str, at: int) -> Address | None:
        found = _ADDRESS.fullmatch(text)
        if found is None:
            return None
        written = found[2] or found[3]
        offset = _integer(written.replace(" ", "")) if written else 0
        base = self.scope.operands.get(found[1]) or self._operand(found[1], at)
        if offset is None or type(base) not in (Register, Name, Integer):
            return None
        coordinates = self._operand(found[4], at) if found[4] else None
        return Address(base, offset, coordinates)

    # ---- where the PTX came from ----

    def _counts_lines_of_assembly(self, at: int) -> bool:
        """Whether a .loc is not the first one within inline assembly: LLVM adds the assembly's own
        lines to those of the source there."""
        i = bisect.bisect_right(self.inline, (at, True)) - 1
        if i < 0 or not self.inline[i][1]:
            return False
        first = self.locations.setdefault(i, at)
        return first != at

    def _place(self, text: str, at: int) -> int:
        """The index of a .loc's source position. LLVM gives the position of each call that was
        inlined a .loc of its own before those inside it, so the chain of callers is known."""
        found = _LOC.match(text)
        if found is None:
            self.fail(at, f"expected the file, line and column of a .loc, found {_short(text)!r}")
        here = (int(found[1]), int(found[2]), int(found[3] or 0))
        inlined = _INLINED.search(text, found.end())
        if inlined is None:
            self.callers.pop(here, None)
            chain: tuple[tuple[int, int, int], ...] = (here,)
        else:
            self.callers[here] = (int(inlined[1]), int(inlined[2]), int(inlined[3]))
            frames = [here]
            while frames[-1] in self.callers and len(frames) < 32:
                frames.append(self.callers[frames[-1]])
            chain = tuple(frames)
        known = self.places.get(chain)
        if known is None:
            known = self.places[chain] = len(self.result.places)
            self.result.places.append(chain)
        return known
