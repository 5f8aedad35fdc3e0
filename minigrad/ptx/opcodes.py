"""What an opcode string such as `fma.rn.ftz.f32` means: a Plan, made once per string.

The words after the first point are taken as a set, except types and state spaces, whose order
counts. `KINDS` has one function per instruction name; each takes what it knows off a `Words` and
whatever is left makes the instruction unknown. A plan says which operation of the executor runs,
with what attributes, and what its operands are. Sections named are those of the PTX ISA manual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from .isa import ATOMS, BITS, BOOLS, CMPS, FLAGS, PTX_TYPES, ROUNDS, SCOPES, SEMS, SPACES

# What an operand is: ("d", bits) a destination register, ("D", bits) one with more bits than that
# at will, ("s", bits) and ("S", bits) a source likewise, "p" and "P" a predicate written and read,
# "p|q" a predicate or a pair of them, "d|p" a register or a pair with a predicate, "a" an address
# that may have a displacement, "A" one that may not, "i" an integer constant.
Slot = tuple[str, int]


class Unknown(Exception):
    """An opcode that the machine does not have; the text says which part."""


@dataclass
class Plan:
    """How to decode an opcode. `slots` are its operands in order, of which the last `optional` may
    be absent; `special` names the decoder's method for operands that do not fit slots."""

    op: str
    slots: list[Slot] = field(default_factory=list)
    type: int = 0
    type2: int = 0
    sub: int = 0
    round: int = 0
    space: int = 0
    n: int = 0
    flags: int = 0
    imm: int = 0
    aux: int = 0
    optional: int = 0
    special: str = ""
    width: int = 32  # bits of the main type
    width2: int = 32  # bits of the second


class Words:
    """The modifiers of an opcode, to be taken one by one."""

    def __init__(self, modifiers: list[str]) -> None:
        self.order = modifiers
        self.types = [word for word in modifiers if word in PTX_TYPES]
        self.rest = {word for word in modifiers if word not in PTX_TYPES}

    def take(self, *words: str) -> str:
        """The one of these that is there, or ''."""
        for word in words:
            if word in self.rest:
                self.rest.discard(word)
                return word
        return ""

    def has(self, *words: str) -> bool:
        """Whether all of these are there; takes them if so."""
        if all(word in self.rest for word in words):
            self.rest.difference_update(words)
            return True
        return False

    def need(self, *words: str) -> str:
        found = self.take(*words)
        if not found:
            raise Unknown(f"one of .{', .'.join(words)} was expected")
        return found

    def drop(self, *prefixes: str) -> None:
        """Takes all that start so: hints that change no result."""
        self.rest = {word for word in self.rest if not word.startswith(prefixes)}

    def flags(self, *words: str) -> int:
        """The flags of those that are there."""
        found = 0
        for word in words:
            if word in self.rest:
                self.rest.discard(word)
                found |= FLAGS[_FLAG_NAMES.get(word, word.upper())]
        return found

    def round(self) -> int:
        return ROUNDS[(self.take(*_ROUND_WORDS) or "none").upper()]

    def type(self, count: int = 1) -> list[str]:
        if len(self.types) != count:
            raise Unknown(f"{count} type{'s' * (count != 1)} expected, {len(self.types)} given")
        return self.types

    def memory(self) -> int:
        """Ordering and scope of an access (8.4, 9.7.9.8), as SEMS and SCOPES."""
        semantics = self.take(
            "weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "mmio"
        )
        scope = self.take("cta", "cluster", "gpu", "sys")
        return SEMS[(semantics or "weak").upper()] | SCOPES[(scope or "cta").upper()] << 4

    def space(self, default: str = "generic") -> int:
        found = self.take(*_SPACE_WORDS)
        return SPACES[(found.split("::")[0] or default).upper()]


_FLAG_NAMES = {"satfinite": "SAT", "NaN": "NANP", "clamp": "SAT", "approx": "APPROX"}
_ROUND_WORDS = ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "rna")
_SPACE_WORDS = (
    "global", "shared", "local", "param", "const", "shared::cta", "shared::cluster",
    "param::entry", "param::func",
)  # fmt: skip


@cache
def plan(opcode: str) -> Plan:
    """The plan of an opcode. Raises Unknown."""
    name, *modifiers = opcode.split(".")
    kind = KINDS.get(name)
    if kind is None:
        raise Unknown(f"there is no instruction {name}")
    words = Words(modifiers)
    made = kind(name, words)
    if words.rest:
        raise Unknown(f"{name} with .{', .'.join(sorted(words.rest))} is not known")
    return made


def _width(kind: str) -> int:
    return max(BITS[kind], 16) if kind != "pred" else 1


# ---- arithmetic (9.7.1 to 9.7.5) ----


def _arithmetic(name: str, words: Words) -> Plan:
    base, n = _ARITHMETIC[name]
    [kind] = words.type()
    width = _width(kind)
    flags = words.flags("ftz", "sat", "approx", "full", "wide", "hi", "NaN", "relu")
    words.take("lo")
    if words.take("cc"):
        flags |= FLAGS["CC_OUT"]
    if name in ("addc", "subc", "madc"):
        flags |= FLAGS["CC_IN"]
    if kind == "pred":
        raise Unknown(f"{name} of predicates is not known")
    out = 2 * width if flags & FLAGS["WIDE"] else width
    sources = [("s", width)] * n
    if n == 3 and base in ("MAD", "MAD24"):
        sources[2] = ("s", out)
    made = Plan(base, [("d", out), *sources], PTX_TYPES[kind], round=words.round(), flags=flags)
    if name in ("min", "max"):
        made.slots.append(("s", width))
        made.optional = 1
    return made


_ARITHMETIC = {
    "add": ("ADD", 2), "sub": ("SUB", 2), "mul": ("MUL", 2), "mad": ("MAD", 3), "fma": ("FMA", 3),
    "addc": ("ADD", 2), "subc": ("SUB", 2), "madc": ("MAD", 3), "div": ("DIV", 2),
    "rem": ("REM", 2), "abs": ("ABS", 1), "neg": ("NEG", 1), "min": ("MIN", 2), "max": ("MAX", 2),
    "sad": ("SAD", 3), "mul24": ("MUL24", 2), "mad24": ("MAD24", 3), "rcp": ("RCP", 1),
    "sqrt": ("SQRT", 1), "rsqrt": ("RSQRT", 1), "sin": ("SIN", 1), "cos": ("COS", 1),
    "lg2": ("LG2", 1), "ex2": ("EX2", 1), "tanh": ("TANH", 1), "copysign": ("COPYSIGN", 2),
}  # fmt: skip


def _testp(name: str, words: Words) -> Plan:
    tests = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    [kind] = words.type()
    sub = tests.index(words.need(*tests))
    return Plan("TESTP", [("p", 1), ("s", _width(kind))], PTX_TYPES[kind], sub=sub)


def _bits(name: str, words: Words) -> Plan:
    """Instructions on bits whose operands are all plain: (op, destination, sources), 0 for the
    type's own width."""
    base, out, sources = _BITS[name]
    [kind] = words.type()
    width = _width(kind)
    flags = words.flags("clamp") | (FLAGS["HI"] if words.take("shiftamt") else 0)
    words.take("wrap")
    slots = [("d", out or width), *[("s", n or width) for n in sources]]
    return Plan(base, slots, PTX_TYPES[kind], flags=flags)


_BITS = {
    "cnot": ("CNOT", 0, (0,)), "shl": ("SHL", 0, (0, 32)), "shr": ("SHR", 0, (0, 32)),
    "bfe": ("BFE", 0, (0, 32, 32)), "bfi": ("BFI", 0, (0, 0, 32, 32)), "bfind": ("BFIND", 32, (0,)),
    "fns": ("FNS", 32, (32, 32, 32)), "popc": ("POPC", 32, (0,)), "clz": ("CLZ", 32, (0,)),
    "brev": ("BREV", 0, (0,)), "szext": ("SZEXT", 32, (32, 32)), "bmsk": ("BMSK", 32, (32, 32)),
}  # fmt: skip


def _logic(name: str, words: Words) -> Plan:
    [kind] = words.type()
    n = 1 if name == "not" else 2
    if kind == "pred":
        return Plan(name.upper(), [("p", 1), *[("P", 1)] * n], PTX_TYPES[kind])
    width = _width(kind)
    return Plan(name.upper(), [("d", width), *[("s", width)] * n], PTX_TYPES[kind])


def _lop3(name: str, words: Words) -> Plan:
    words.type()
    boolean = words.take("or", "and")
    slots = [("d|p", 32) if boolean else ("d", 32), *[("s", 32)] * 3, ("i", 0)]
    if boolean:
        slots.append(("P", 1))
    return Plan("LOP3", slots, PTX_TYPES["b32"], sub=BOOLS.get(boolean, 0))


def _prmt(name: str, words: Words) -> Plan:
    words.type()
    modes = ("", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    sub = modes.index(words.take(*modes[1:]))
    return Plan("PRMT", [("d", 32), *[("s", 32)] * 3], PTX_TYPES["b32"], sub=sub)


def _shf(name: str, words: Words) -> Plan:
    words.type()
    sub = ("l", "r").index(words.need("l", "r"))
    flags = words.flags("clamp")
    words.take("wrap")
    return Plan("SHF", [("d", 32), *[("s", 32)] * 3], PTX_TYPES["b32"], sub=sub, flags=flags)


def _dot(name: str, words: Words) -> Plan:
    one, two = words.type(2)
    flags = words.flags("hi")
    words.take("lo")
    slots = [("d", 32), *[("s", 32)] * 3]
    return Plan(name.upper(), slots, PTX_TYPES[one], PTX_TYPES[two], flags=flags)


# ---- comparison, selection, movement, conversion (9.7.6, 9.7.9) ----


def _setp(name: str, words: Words) -> Plan:
    boolean = words.take("and", "or", "xor")
    sub = CMPS[words.need(*(c.lower() for c in CMPS)).upper()]
    flags = words.flags("ftz")
    slots: list[Slot]
    if name == "setp":
        [kind] = words.type()
        made = Plan("SETP", [("p|q", 1)], PTX_TYPES[kind])
    else:
        out, kind = words.type(2)
        made = Plan("SET", [("d", _width(out))], PTX_TYPES[out], PTX_TYPES[kind])
    slots = [("s", _width(kind))] * 2 + ([("P", 1)] if boolean else [])
    made.slots += slots
    made.sub, made.flags, made.aux = sub, flags, BOOLS.get(boolean, 0)
    return made


def _selp(name: str, words: Words) -> Plan:
    [kind] = words.type()
    width = _width(kind)
    return Plan("SELP", [("d", width), ("s", width), ("s", width), ("P", 1)], PTX_TYPES[kind])


def _slct(name: str, words: Words) -> Plan:
    out, kind = words.type(2)
    width = _width(out)
    slots = [("d", width), ("s", width), ("s", width), ("s", 32)]
    return Plan("SLCT", slots, PTX_TYPES[out], PTX_TYPES[kind], flags=words.flags("ftz"))


def _mov(name: str, words: Words) -> Plan:
    [kind] = words.type()
    if kind == "pred":
        return Plan("MOV", [("p", 1), ("P", 1)], PTX_TYPES[kind])
    return Plan("MOV", type=PTX_TYPES[kind], special="move", width=_width(kind))


def _cvt(name: str, words: Words) -> Plan:
    if words.take("pack"):
        words.need("sat")
        kinds = words.types
        if len(kinds) not in (2, 3):
            raise Unknown("cvt.pack takes two or three types")
        sources = [("s", 32)] * len(kinds)
        return Plan("CVTPACK", [("d", 32), *sources], PTX_TYPES[kinds[0]], PTX_TYPES[kinds[1]])
    out, kind = words.type(2)
    flags = words.flags("ftz", "sat", "satfinite", "relu")
    packed = BITS[out] == (16 if out in ("e4m3x2", "e5m2x2") else 32) and out.endswith("x2")
    if packed and kind == "f32":
        slots: list[Slot] = [("d", _width(out)), ("s", 32), ("s", 32)]
        return Plan("CVT", slots, PTX_TYPES[out], PTX_TYPES[kind], round=words.round(), flags=flags)
    return Plan(
        "CVT", [], PTX_TYPES[out], PTX_TYPES[kind], round=words.round(), flags=flags,
        special="convert", width=BITS[out], width2=BITS[kind],
    )  # fmt: skip


def _cvta(name: str, words: Words) -> Plan:
    [kind] = words.type()
    back = words.take("to")
    space = words.space()
    width = _width(kind)
    return Plan(
        "CVTA", type=PTX_TYPES["b64" if width == 64 else "b32"], sub=1 if back else 0, space=space,
        special="convert_address", width=width,
    )  # fmt: skip


def _isspacep(name: str, words: Words) -> Plan:
    return Plan("ISSPACEP", [("p", 1), ("s", 64)], space=words.space())


def _mapa(name: str, words: Words) -> Plan:
    [kind] = words.type()
    words.take("shared::cluster")
    width = _width(kind)
    sources: list[Slot] = [("s", width), ("s", 32)] if name == "mapa" else [("s", width)]
    slots = [("d", width if name == "mapa" else 32), *sources]
    return Plan(name.upper(), slots, PTX_TYPES[kind])


# ---- memory (9.7.9) ----


def _hints(words: Words) -> None:
    words.drop("L1::", "L2::", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "unified", "level::")


def _load(name: str, words: Words) -> Plan:
    [kind] = words.type()
    aux = words.memory()
    hinted = "L2::cache_hint" in words.rest
    _hints(words)
    lanes = words.take("v2", "v4", "v8")
    space = words.space("global" if name == "ldu" else "generic")
    return Plan(
        "ST" if name == "st" else "LD", type=PTX_TYPES[kind], space=space, aux=aux,
        n=int(lanes[1]) if lanes else 1, special="store" if name == "st" else "load",
        width=_width(kind), optional=1 if hinted else 0,
    )  # fmt: skip


def _atom(name: str, words: Words) -> Plan:
    [kind] = words.type()
    aux = words.memory()
    hinted = "L2::cache_hint" in words.rest
    words.drop("L1::", "L2::", "noftz", "level::")
    lanes = words.take("v2", "v4", "v8")
    space = words.space()
    sub = ATOMS[words.need(*(a.lower() for a in ATOMS)).upper()]
    if name == "atom" and not aux:
        aux = SEMS["RELAXED"] | SCOPES["GPU"] << 4
    return Plan(
        name.upper(), type=PTX_TYPES[kind], space=space, sub=sub, aux=aux,
        n=int(lanes[1]) if lanes else 1, special="atomic", width=_width(kind),
        optional=1 if hinted else 0,
    )  # fmt: skip


def _nothing(name: str, words: Words) -> Plan:
    """Hints: prefetch, discard and the like touch nothing here."""
    words.rest.clear()
    return Plan("NOP", special="ignore")


def _createpolicy(name: str, words: Words) -> Plan:
    words.rest.clear()
    return Plan("MOV", type=PTX_TYPES["b64"], special="policy")


def _matrix_copy(name: str, words: Words) -> Plan:
    words.need("sync"), words.need("aligned"), words.need("m8n8")
    n = int(words.need("x1", "x2", "x4")[1])
    flags = words.flags("trans")
    words.take("shared", "shared::cta")
    words.type()
    return Plan(name.upper(), n=n, flags=flags, space=SPACES["SHARED"], special=name)


def _movmatrix(name: str, words: Words) -> Plan:
    words.need("sync"), words.need("aligned"), words.need("m8n8")
    words.type()
    return Plan("MOVMATRIX", [("d", 32), ("s", 32)], flags=words.flags("trans"))


def _copy(name: str, words: Words) -> Plan:
    """cp.async, cp.async.bulk, cp.reduce.async.bulk and their groups."""
    words.need("async")
    reduce = bool(words.take("reduce"))
    hinted = int("L2::cache_hint" in words.rest)
    words.drop("L1::", "L2::")
    if words.take("wait_all"):
        return Plan("CPASYNC_WAIT", imm=-1)
    if "bulk" not in words.rest:
        if words.take("commit_group"):
            return Plan("CPASYNC_COMMIT")
        if words.take("wait_group"):
            return Plan("CPASYNC_WAIT", [("i", 0)])
        if words.take("mbarrier"):
            words.need("arrive")
            words.take("shared", "shared::cta")
            words.type()
            flags = FLAGS["SAT"] if words.take("noinc") else 0
            return Plan("CPASYNC_MBAR", [("a", 0)], space=SPACES["SHARED"], flags=flags)
        words.need("ca", "cg"), words.need("shared", "shared::cta"), words.need("global")
        return Plan("CPASYNC", special="copy", optional=hinted)
    words.need("bulk")
    if words.take("commit_group"):
        return Plan("CPBULK_COMMIT")
    if words.take("wait_group"):
        return Plan("CPBULK_WAIT", [("i", 0)], flags=FLAGS["SAT"] if words.take("read") else 0)
    spaces = [word for word in words.order if word in _SPACE_WORDS]
    tensor = words.take("tensor")
    words.rest.difference_update(spaces)
    if words.take("prefetch"):
        words.rest.difference_update(("L2", "1d", "2d", "3d", "4d", "5d", "tile"))
        return Plan("NOP", special="ignore")
    if len(spaces) != 2:
        raise Unknown("a bulk copy has two state spaces")
    to_shared = spaces[0].startswith("shared")
    words.need("bulk_group", "mbarrier::complete_tx::bytes")
    aux = 0
    kind = 0
    if reduce:
        aux = ATOMS[words.need("add", "min", "max", "inc", "dec", "and", "or", "xor").upper()]
        words.take("noftz")
        kind = PTX_TYPES[words.type()[0]] if not tensor else 0
    if tensor:
        words.take("tile")
        rank = int(words.need("1d", "2d", "3d", "4d", "5d")[0])
        sub = 2 if reduce else 0 if to_shared else 1
        return Plan("CPTENSOR", sub=sub, n=rank, aux=aux, special="copy_tensor", optional=hinted)
    if reduce:
        sub = 3
    else:
        sub = 1 if not to_shared else 0 if spaces[1] == "global" else 2
    if reduce and to_shared:
        raise Unknown("cp.reduce.async.bulk into shared memory is not known")
    return Plan("CPBULK", type=kind, sub=sub, n=1, aux=aux, special="copy_bulk", optional=hinted)


def _tensormap(name: str, words: Words) -> Plan:
    if words.take("cp_fenceproxy"):
        words.rest.clear()
        return Plan("TENSORMAP_CPFENCE", [("A", 0), ("A", 1), ("i", 0)])
    words.need("replace"), words.need("tile")
    words.rest.discard("b1024")
    space = words.space()
    fields = (
        "global_address", "rank", "box_dim", "global_dim", "global_stride", "element_stride",
        "elemtype", "interleave_layout", "swizzle_mode", "fill_mode",
    )  # fmt: skip
    sub = fields.index(words.need(*fields))
    words.types = [word for word in words.types if word != "b1024"] or ["b32"]
    [kind] = words.type()
    return Plan(
        "TENSORMAP_REPLACE", type=PTX_TYPES[kind], sub=sub, space=space, width=_width(kind),
        special="tensormap",
    )  # fmt: skip


def _fence(name: str, words: Words) -> Plan:
    if name == "membar":
        words.drop("cta", "gl", "sys", "proxy")
        words.rest = {word for word in words.rest if not word.startswith(("alias", "async"))}
        return Plan("MEMBAR")
    sub = 0
    if words.take("mbarrier_init"):
        sub = 3
    elif words.take("proxy"):
        kinds = {word.split("::")[0]: word for word in words.rest}
        sub = 2 if "tensormap" in kinds else 1
        words.drop("async", "alias", "tensormap", "to_proxy", "from_proxy")
    words.take("sc")
    words.drop("shared::", "global", "sync_restrict")
    return Plan("FENCE", sub=sub, aux=words.memory(), special="fence")


# ---- lanes and blocks (9.7.8, 9.7.12) ----


def _shfl(name: str, words: Words) -> Plan:
    words.need("sync")
    words.type()
    sub = ("up", "down", "bfly", "idx").index(words.need("up", "down", "bfly", "idx"))
    return Plan("SHFL", [("d|p", 32), *[("s", 32)] * 4], PTX_TYPES["b32"], sub=sub)


def _vote(name: str, words: Words) -> Plan:
    words.need("sync")
    sub = ("all", "any", "uni", "ballot").index(words.need("all", "any", "uni", "ballot"))
    words.type()
    return Plan("VOTE", [("d", 32) if sub == 3 else ("p", 1), ("P", 1), ("s", 32)], sub=sub)


def _match(name: str, words: Words) -> Plan:
    words.need("sync")
    [kind] = words.type()
    sub = ("any", "all").index(words.need("any", "all"))
    slots: list[Slot] = [("d|p", 32), ("s", _width(kind)), ("s", 32)]
    return Plan("MATCH", slots, PTX_TYPES[kind], sub=sub)


def _redux(name: str, words: Words) -> Plan:
    words.need("sync")
    [kind] = words.type()
    sub = ("add", "min", "max", "and", "or", "xor").index(
        words.need("add", "min", "max", "and", "or", "xor")
    )
    flags = words.flags("NaN") | (FLAGS["RELU"] if words.take("abs") else 0)
    return Plan("REDUX", [("d", 32), ("s", 32), ("s", 32)], PTX_TYPES[kind], sub=sub, flags=flags)


def _elect(name: str, words: Words) -> Plan:
    words.need("sync")
    return Plan("ELECT", [("d|p", 32), ("s", 32)])


def _activemask(name: str, words: Words) -> Plan:
    words.type()
    return Plan("ACTIVEMASK", [("d", 32)])


def _bar(name: str, words: Words) -> Plan:
    if name == "bar" and words.take("warp"):
        words.need("sync")
        return Plan("BARWARP", [("s", 32)])
    if words.take("cluster"):
        sub = ("arrive", "wait").index(words.need("arrive", "wait"))
        words.rest.difference_update(("release", "acquire", "relaxed", "aligned"))
        return Plan("BARCLUSTER", sub=sub)
    words.take("cta")
    flags = FLAGS["ALIGNED"] if words.take("aligned") or name == "bar" else 0
    what = words.need("sync", "arrive", "red")
    made = Plan("BAR", flags=flags, special="barrier")
    if what == "red":
        made.sub = 2 + ("popc", "and", "or").index(words.need("popc", "and", "or"))
        words.type()
    else:
        made.sub = ("sync", "arrive").index(what)
    return made


# ---- control (9.7.12) ----


def _control(name: str, words: Words) -> Plan:
    words.take("uni")
    if name == "brx":
        words.need("idx")
    return Plan(_CONTROL[name], special=name)


_CONTROL = {"bra": "BRA", "brx": "BRX", "call": "CALL"}


def _plain(name: str, words: Words) -> Plan:
    words.take("uni")
    if name == "griddepcontrol":
        words.need("launch_dependents", "wait")
        return Plan("GRIDDEP")
    return Plan({"trap": "TRAP", "brkpt": "BRKPT", "ret": "RET", "exit": "EXIT"}[name])


def _nanosleep(name: str, words: Words) -> Plan:
    words.type()
    return Plan("NANOSLEEP", [("s", 32)])


def _setmaxnreg(name: str, words: Words) -> Plan:
    words.need("sync"), words.need("aligned"), words.type()
    return Plan("SETMAXNREG", [("i", 0)], aux=int(words.need("inc", "dec") == "inc"))


# ---- matrix products (9.7.14, 9.7.15) ----


def _shape(words: Words) -> tuple[int, int, int]:
    for word in words.rest:
        if word[0] == "m" and "n" in word and "k" in word:
            parts = word[1:].replace("n", " ").replace("k", " ").split()
            if len(parts) == 3 and all(p.isdigit() and int(p) <= 256 for p in parts):
                words.rest.discard(word)
                return int(parts[0]), int(parts[1]), int(parts[2])
    raise Unknown("a shape such as .m16n8k16 was expected")


def _mma(name: str, words: Words) -> Plan:
    words.need("sync"), words.need("aligned"), words.need("row"), words.need("col")
    m, n, k = _shape(words)
    out, a, b, c = words.type(4)
    return Plan(
        "MMA", type=PTX_TYPES[out], type2=PTX_TYPES[a], sub=PTX_TYPES[b],
        space=PTX_TYPES[c] if c != out else 0, aux=m << 16 | n << 8 | k,
        flags=words.flags("satfinite"), special="matrix", width=64 if out == "f64" else 32,
    )  # fmt: skip


def _wgmma(name: str, words: Words) -> Plan:
    words.need("sync"), words.need("aligned")
    if words.take("fence"):
        return Plan("WGMMA_FENCE")
    if words.take("commit_group"):
        return Plan("WGMMA_COMMIT")
    if words.take("wait_group"):
        return Plan("WGMMA_WAIT", [("i", 0)])
    words.need("mma_async")
    m, n, k = _shape(words)
    out, a, b = words.type(3)
    return Plan(
        "WGMMA", type=PTX_TYPES[out], type2=PTX_TYPES[a], sub=PTX_TYPES[b],
        aux=m << 20 | n << 8 | k, flags=words.flags("satfinite"), special="warpgroup_matrix",
    )  # fmt: skip


def _mbarrier(name: str, words: Words) -> Plan:
    memory = words.memory()
    words.take("noComplete")
    space = words.space()
    if words.types:
        words.type()
    what = words.need("init", "inval", "arrive", "arrive_drop", "expect_tx", "complete_tx",
                      "test_wait", "try_wait", "pending_count")  # fmt: skip
    parity = bool(words.take("parity"))
    if what in ("arrive", "arrive_drop") and words.take("expect_tx"):
        if what == "arrive_drop":
            raise Unknown("mbarrier.arrive_drop.expect_tx is not known")
        what = "arrive_expect"
    elif what == "expect_tx" and words.take("arrive"):
        what = "arrive_expect"
    subs = ("init", "inval", "arrive", "arrive_drop", "arrive_expect", "expect_tx", "complete_tx",
            "test_wait", "test_wait.parity", "try_wait", "try_wait.parity",
            "pending_count")  # fmt: skip
    made = Plan("MBAR", space=space, aux=memory)
    made.sub = subs.index(what + (".parity" if parity else ""))
    state: Slot = ("m", 64)  # a register of 64 bits or _
    if what == "init" or what in ("expect_tx", "complete_tx"):
        made.slots = [("a", 0), ("s", 32)]
    elif what == "inval":
        made.slots = [("a", 0)]
    elif what == "arrive_expect":
        made.slots = [state, ("a", 0), ("s", 32)]
    elif what in ("arrive", "arrive_drop"):
        made.slots, made.optional = [state, ("a", 0), ("s", 32)], 1
    elif what == "pending_count":
        made.slots = [("d", 32), ("s", 64)]
    else:
        made.slots = [("p", 1), ("a", 0), ("s", 32 if parity else 64)]
        if what == "try_wait":
            made.slots.append(("x", 0))
            made.optional = 1
    return made


KINDS: dict[str, Callable[[str, Words], Plan]] = {
    **dict.fromkeys(_ARITHMETIC, _arithmetic), **dict.fromkeys(_BITS, _bits),
    **dict.fromkeys(("and", "or", "xor", "not"), _logic),
    **dict.fromkeys(("dp4a", "dp2a"), _dot), **dict.fromkeys(("setp", "set"), _setp),
    **dict.fromkeys(("mapa", "getctarank"), _mapa), **dict.fromkeys(("ld", "ldu", "st"), _load),
    **dict.fromkeys(("atom", "red"), _atom), **dict.fromkeys(_CONTROL, _control),
    **dict.fromkeys(("ldmatrix", "stmatrix"), _matrix_copy),
    **dict.fromkeys(("prefetch", "prefetchu", "discard", "applypriority", "pmevent"), _nothing),
    **dict.fromkeys(("membar", "fence"), _fence), **dict.fromkeys(("bar", "barrier"), _bar),
    **dict.fromkeys(("trap", "brkpt", "ret", "exit", "griddepcontrol"), _plain),
    "testp": _testp, "lop3": _lop3, "prmt": _prmt, "shf": _shf, "selp": _selp, "slct": _slct,
    "mov": _mov, "cvt": _cvt, "cvta": _cvta, "isspacep": _isspacep, "createpolicy": _createpolicy,
    "movmatrix": _movmatrix, "cp": _copy, "tensormap": _tensormap, "shfl": _shfl, "vote": _vote,
    "match": _match, "redux": _redux, "elect": _elect, "activemask": _activemask,
    "nanosleep": _nanosleep, "setmaxnreg": _setmaxnreg, "mma": _mma, "wgmma": _wgmma,
    "mbarrier": _mbarrier,
}  # fmt: skip
