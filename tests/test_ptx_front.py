"""The PTX machine's front end: what the text means, where things lie, and what is refused."""

from __future__ import annotations

import time

import numpy as np
import pytest

from minigrad import ptx
from minigrad.ptx import PtxError, flow, isa
from minigrad.ptx.decode import Decoded, decode
from minigrad.ptx.opcodes import Unknown, plan
from minigrad.ptx.parse import parse

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"


def entry(body: str, params: str = ".param .u64 a", before: str = "") -> str:
    return f"{HEAD}{before}\n.visible .entry k({params})\n{{\n{body}\n}}\n"


def decoded(body: str, params: str = ".param .u64 a", before: str = "") -> Decoded:
    return decode(parse(entry(body, params, before)), "k")


def ops(of: Decoded) -> list[str]:
    names = {number: name for name, number in isa.OPS.items()}
    return [names[op] for op in of.instructions["op"].tolist()]


def test_numbers_are_the_executor_s() -> None:
    if not ptx.levels():
        pytest.skip("the PTX machine is not built")
    module = ptx.machine._module(None)
    for table in ("OPS", "TYPES", "ROUNDS", "CMPS", "SPACES", "SEMS", "ATOMS", "SPECIALS", "FLAGS",
                  "CHECKS"):  # fmt: skip
        assert getattr(module, table) == getattr(isa, table), table
    for window in ("SHARED_WINDOW", "LOCAL_WINDOW", "PARAM_WINDOW"):
        assert getattr(module, window) == getattr(isa, window), window


def test_a_forced_level_of_tiles_runs_the_executor_of_avx512(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINIGRAD_ISA", "amx")
    monkeypatch.setattr(ptx.machine, "levels", lambda: ["avx2", "avx512"])
    monkeypatch.setattr(ptx.machine.importlib, "import_module", lambda name: name)
    assert ptx.machine._module.__wrapped__(None) == "minigrad._ptx_avx512"


# ---- names ----


def test_scopes_of_registers_and_labels() -> None:
    """A register declared in braces hides one outside; labels of two scopes may share a name."""
    found = decoded("""
        .reg .b32 %r<4>; .reg .pred %p;
        mov.b32 %r1, 1;
        { .reg .b32 %r1; mov.b32 %r1, 2; bra L; L: mov.b32 %r2, %r1; }
        { bra L; L: mov.b32 %r3, %r1; }
        ret;""")
    moves = found.instructions[found.instructions["op"] == isa.OPS["MOV"]]
    outer, inner, copy, last = (row["d"][0] for row in moves)
    assert len({outer, inner, copy, last}) == 4
    assert moves[2]["s"][0] == inner
    assert moves[3]["s"][0] == outer
    targets = found.instructions["target"][found.instructions["op"] == isa.OPS["BRA"]]
    assert len(set(targets.tolist())) == 2


def test_register_families() -> None:
    """%p1<4> declares %p10 to %p13, %r<2> %r0 and %r1."""
    decoded(".reg .b32 %p1<4>, %r<2>; mov.b32 %p13, %r1; ret;")
    with pytest.raises(PtxError, match=r"line 8: the register %r2 is not declared"):
        decoded(".reg .b32 %r<2>;\nmov.b32 %r0, %r2;\nret;")


def test_modifiers_are_a_set() -> None:
    one, two = plan("atom.global.gpu.acq_rel.add.u32"), plan("atom.add.acq_rel.gpu.global.u32")
    assert one == two


def test_immediates() -> None:
    found = decoded("""
        .reg .b32 %r<9>; .reg .f64 %fd<3>; .reg .b16 %h;
        mov.b32 %r0, 0x1F; mov.b32 %r1, 0b101; mov.b32 %r2, 017; mov.b32 %r3, -1;
        mov.b32 %r4, 0f3F800000; mov.b32 %r5, 1.5; mov.f64 %fd0, 0d3FF0000000000000;
        mov.f64 %fd1, 0.5; mov.u16 %h, -2; mov.u32 %r6, 42U; mov.u32 %r7, WARP_SZ; ret;""")
    values = {int(c["value"]) for c in found.constants}
    expected = {0x1F, 5, 15, 0xFFFFFFFF, 0x3F800000, 0x3FC00000, 0x3FF0000000000000,
                0x3FE0000000000000, 0xFFFE, 42, 32}  # fmt: skip
    assert expected <= values


# ---- variables ----


def test_where_variables_lie() -> None:
    found = decoded(
        """.shared .align 4 .b8 first[6]; .shared .align 8 .b64 second;
        .local .align 16 .b8 depot[24];
        .reg .b64 %rd<4>; .reg .b32 %r;
        mov.u64 %rd0, first; mov.u64 %rd1, second; mov.u32 %r, dynamic; ret;""",
        ".param .u32 x, .param .align 8 .b8 s[24], .param .u8 y, .param .u64 z",
        ".extern .shared .align 16 .b8 dynamic[];",
    )
    assert [at for _, at in found.params] == [0, 8, 32, 40]
    assert found.param_bytes == 48
    assert found.static_shared == 16
    assert found.local_bytes == 32


def test_initial_values() -> None:
    module = parse(
        entry("ret;", before="""
        .global .align 4 .b8 text[4] = {72, 0x69, 10};
        .const .align 4 .f32 table[2][2] = {{0f3F800000, 2.0}, {-1.5, 0}};
        .global .align 8 .u64 pointer = generic(text)+1;""")
    )  # fmt: skip
    assert module.variables["text"].initial == b"Hi\n"
    table = np.frombuffer(module.variables["table"].initial, np.float32)
    assert table.tolist() == [1, 2, -1.5, 0]
    assert module.variables["pointer"].addresses == [(0, 8, "text", 1, True)]


# ---- source lines ----


def test_source_of_inlined_code() -> None:
    """What a library does counts for the user's line that called it."""
    text = entry("""
        .file 1 "user.py"
        .file 2 "library.py"
        .reg .b32 %r<4>;
        .loc 1 10 3
        mov.b32 %r0, 0;
        .loc 2 50 1, function_name $s, inlined_at 1 20 5
        mov.b32 %r1, 0;
        .loc 2 70 1, function_name $s, inlined_at 2 50 1
        mov.b32 %r2, 0;
        .loc 1 30 1, function_name $s, inlined_at 1 21 5
        mov.b32 %r3, 0;
        ret;""")
    module = parse(text)
    body = module.functions["k"].body
    lines = [module.source(i.place) for i in body]
    assert [(f.file, f.line) for f in lines if f][:4] == [
        ("user.py", 10), ("user.py", 20), ("user.py", 20), ("user.py", 30)
    ]  # fmt: skip
    assert [str(f) for f in module.stack(body[2].place)] == [
        "library.py:70", "library.py:50", "user.py:20"
    ]  # fmt: skip


def test_lines_of_the_text() -> None:
    module = parse(entry("/* a\n comment */ ret; // another\n"))
    assert module.functions["k"].lines == [8]


# ---- blocks ----


def test_blocks_begin_with_labels() -> None:
    found = decoded("""
        .reg .pred %p; .reg .b32 %r;
        mov.b32 %r, 0; @%p bra L; mov.b32 %r, 1; L: mov.b32 %r, 2; ret;""")
    assert ops(found) == ["LABEL", "MOV", "BRA", "LABEL", "MOV", "LABEL", "MOV", "RET", "LABEL",
                          "RET"]  # fmt: skip
    assert found.instructions["target"][2] == 5


def ranks(edges: list[list[int]]) -> list[int]:
    blocks = [flow.Block(i, i + 1, e) for i, e in enumerate(edges)]
    flow._rank(blocks)
    return [block.rank for block in blocks]


@pytest.mark.parametrize(
    ("edges", "below"),
    [
        ([[1, 2], [3], [3], []], [(0, 1), (0, 2), (1, 3), (2, 3)]),  # a diamond
        ([[1], [2, 3], [1], []], [(0, 1), (1, 2), (2, 3)]),  # while: the body before the exit
        ([[1], [3, 2], [1], []], [(0, 1), (1, 2), (2, 3)]),
        # a loop in a loop, left from inside
        ([[1], [2, 6], [3, 5], [4, 6], [2], [1], []], [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]),
        ([[1, 2], [2, 3], [1, 3], []], [(0, 1), (1, 3), (2, 3)]),  # two entries to a loop
    ],
)
def test_order_of_blocks(edges: list[list[int]], below: list[tuple[int, int]]) -> None:
    found = ranks(edges)
    assert sorted(found) == list(range(len(edges)))
    for a, b in below:
        assert found[a] < found[b], (a, b, found)


def test_order_of_hostile_graphs_is_quick() -> None:
    n = 3000
    nested = [[i + 1, n - i] if i < n // 2 else [i + 1, n - i - 1] for i in range(n)] + [[]]
    chain = [[min(i + 1, n - 1), 0] for i in range(n)]
    start = time.perf_counter()
    for edges in (nested, chain):
        ranks([[e for e in out if 0 <= e < len(edges)] for out in edges])
    assert time.perf_counter() - start < 20


# ---- device functions ----

ADD_ONE = """
.func (.param .b32 result) plus(.param .b32 given)
{
    .reg .b32 %r<2>;
    ld.param.b32 %r0, [given];
    add.s32 %r1, %r0, 1;
    st.param.b32 [result], %r1;
    ret;
}"""
CALL = """
    .reg .b32 %r<3>;
    { .param .b32 param0; st.param.b32 [param0], 5; .param .b32 retval0;
    call.uni (retval0), plus, (param0);
    ld.param.b32 %r1, [retval0]; }
    ret;"""


def test_calls() -> None:
    found = decoded(CALL, before=ADD_ONE)
    names = ops(found)
    assert names.count("CALL") == 1
    call = found.instructions[names.index("CALL")]
    assert names[call["target"]] == "LABEL"
    caller, callee = found.instructions["order"][0], found.instructions["order"][call["target"]]
    assert callee < caller
    local = found.instructions[np.isin(found.instructions["op"], [isa.OPS["LD"], isa.OPS["ST"]])]
    assert set(local["space"].tolist()) == {isa.SPACES["LOCAL"]}
    stores = local[local["op"] == isa.OPS["ST"]]
    loads = local[local["op"] == isa.OPS["LD"]]
    assert {int(x) for x in stores["imm"]} == {int(x) for x in loads["imm"]}


def test_displacements_wrap() -> None:
    """As the addresses that they are part of."""
    declared = ".shared .b8 d[16], e[16]; .reg .b32 %r;"
    found = decoded(f"{declared}\nst.shared.b32 [e+0x7fffffffffffffff], %r;")
    [store] = found.instructions[found.instructions["op"] == isa.OPS["ST"]]
    assert store["imm"] == 16 - 2**63 - 1


# ---- what is refused, with its line ----

REFUSED = {
    "unknown instruction": ("frobnicate.s32 %r0, %r1;", "frobnicate"),
    "unknown modifier": ("add.fast.s32 %r0, %r1, %r0;", r"add with \.fast"),
    "an undeclared register": ("add.s32 %r0, %nope, 1;", "%nope is not declared"),
    "the wrong size": ("add.s32 %r0, %rd0, 1;", "%rd0 has 64 bits"),
    "too few operands": ("add.s32 %r0, %r1;", "3 operands expected, 2 given"),
    "a label that is not there": ("bra NOWHERE;", "no label NOWHERE"),
    "a guard that is no predicate": ("@%r0 ret;", "no predicate"),
    "a variable that is not there": ("mov.u64 %rd0, nothing;", "no variable nothing"),
    "a vector of the wrong length": ("ld.global.v4.b32 {%r0, %r1}, [%rd0];", "4 registers"),
    "a copy of 5 bytes": ("cp.async.ca.shared.global [%r0], [%rd0], 5;", "copies 5 bytes"),
    "a float where integers are": ("add.s16 %h, %h, 0f3F800000;", "floating-point immediate"),
    "a function that is not there": ("call.uni nothing, ();", "nothing, which is not in the text"),
    "text in between": ("hello world", "expected an instruction|cannot read"),
    "two types": (
        "tensormap.replace.tile.rank.global.b1024.b32.b64 [%rd0], 1;",
        "1 type expected, 2 given",
    ),
    "a number too large": ("mov.b32 %r0, 99999999999999999999999;", "cannot read the operand"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused(name: str) -> None:
    line, message = REFUSED[name]
    body = f".reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .b16 %h;\n{line}\nret;"
    with pytest.raises(PtxError, match=message) as caught:
        decoded(body)
    if "function" not in name:
        assert caught.value.line == 8
        assert "PTX line 8" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "\0", "{", "}", ".version", ".visible .entry", "/*", '"', ".entry k(", ".entry k() {",
     ".entry k() { ret }", ".entry k() { @ }", ".reg .b32 %r;", "{" * 10000,
     HEAD + ".entry k() {" + "{" * 10000, HEAD + ".global .b8 x[99999999999];",
     HEAD + ".entry k() { .shared .b8 x[268435456]; ret; }", '"' + '\\"' * 50000,
     "/*" * 100000, HEAD + ".entry k() { mov.b32 " + "!" * 100000 + "p, 1; }"],
)  # fmt: skip
def test_malformed(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(PtxError):
        decode(parse(text), "k")
    assert time.perf_counter() - start < 5


def test_recursion_is_refused() -> None:
    body = ADD_ONE.replace("ret;", "call.uni plus, ();\n ret;")
    with pytest.raises(PtxError, match="recurse"):
        decoded(CALL, before=body)


def test_every_opcode_is_known_or_named() -> None:
    for text in ("add.s32", "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16",
                 "mbarrier.try_wait.parity.shared::cta.b64", "cvt.rn.satfinite.e4m3x2.f32",
                 "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes",
                 "fence.proxy.tensormap::generic.acquire.gpu", "membar.gl", "barrier.sync",
                 "setmaxnreg.inc.sync.aligned.u32", "ld.global.nc.L1::no_allocate.v4.u32",
                 "red.global.add.v4.f32", "atom.shared.cta.relaxed.cas.b64"):  # fmt: skip
        assert plan(text).op in isa.OPS
    for text in ("add.b99", "wmma.load", "tex.2d", "shfl.up.b32", "mma.sync.aligned.row.col.f32"):
        with pytest.raises(Unknown):
            plan(text)


# ---- launches ----

STORE = entry("""
    .reg .b64 %rd; .reg .b32 %r;
    ld.param.u64 %rd, [a]; mov.b32 %r, 7; st.global.b32 [%rd], %r; ret;""")


def test_decoded_kernels_are_kept() -> None:
    assert ptx.load(STORE, "k") is ptx.load(STORE, "k")
    assert ptx.load(STORE) is not None
    with pytest.raises(PtxError, match="there is no entry 'other'; the text has k"):
        ptx.load(STORE, "other")


@pytest.mark.parametrize(
    ("grid", "block", "args", "shared", "message"),
    [
        (1, 2048, [None], 0, "block 2048"), (1, (32, 64), [None], 0, "2048 threads"),
        (0, 32, [None], 0, "grid 0"), ((1, 1, 1, 1), 32, [None], 0, "one to three"),
        ("a", 32, [None], 0, "whole numbers"),
        (1, 32, [], 0, "takes 1 arguments, given 0"), (1, 32, ["x"], 0, "is a str"),
        (1, 32, [np.int32(1)], 0, "argument 0 has 4 bytes, the parameter a has 8"),
        (1, 32, [2**64], 0, "does not fit 64 bits"), (1, 32, [None], 1 << 20, "shared memory"),
        (1, 32, [np.array([object()])], 0, "Python objects"),
    ],
)  # fmt: skip
def test_launches_that_do_not_fit(grid, block, args, shared, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PtxError, match=message):
        ptx.load(STORE, "k").launch(grid, block, args, shared)


def test_quick_enough() -> None:
    """About 80 ms for 2,600 instructions; the bound leaves room for a busy machine."""
    body = "\n".join(f"fma.rn.f32 %r{i % 50}, %r{i % 49}, %r{i % 48}, %r1;" for i in range(2600))
    text = entry(f".reg .b32 %r<50>;\n{body}\nret;")
    start = time.perf_counter()
    decode(parse(text), "k")
    assert time.perf_counter() - start < 0.5
