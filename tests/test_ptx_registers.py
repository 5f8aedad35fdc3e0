"""Registers share rows of the executor: random programs with branches and loops that lanes leave
at different times, against a walk over the same program in NumPy; and how many rows are left."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from minigrad import ptx

pytestmark = pytest.mark.skipif(not ptx.levels(), reason="the PTX machine is not built")

VARIABLES = 6  # written again and again, also in parts of a warp; every other value is new
OPERATIONS = {"add.u32": np.add, "mul.lo.u32": np.multiply, "xor.b32": np.bitwise_xor}

Statement = tuple[Any, ...]


def block(
    rng: random.Random, depth: int, fresh: list[int], outer: Sequence[int] = range(VARIABLES)
) -> list[Statement]:
    """Statements: ("set", target, op, a, b), ("guarded", bit, the same …), ("if", bit, block,
    block), ("loop", turns, block), where `bit` and `turns` depend on the lane. Inner blocks read
    what is known outside, too: in a loop, such a value is needed again after its last mention."""
    out: list[Statement] = []
    known = list(outer)
    for _ in range(rng.randint(3, 9)):
        kind = rng.random()
        if depth < 3 and kind < 0.15:
            arms = [block(rng, depth + 1, fresh, known) for _ in range(2)]
            out.append(("if", rng.randrange(5), *arms))
        elif depth < 3 and kind < 0.3:
            out.append(("loop", rng.randrange(4), block(rng, depth + 1, fresh, known)))
        else:
            a, b = rng.choice(known), rng.choice(known)
            if kind < 0.6:
                target = fresh[0] = fresh[0] + 1
                known.append(target)
            else:
                target = rng.randrange(VARIABLES)
            step = ("set", target, rng.choice(list(OPERATIONS)), a, b)
            guarded = target < VARIABLES and kind > 0.85
            out.append(("guarded", rng.randrange(5), *step[1:]) if guarded else step)
    return out


def walk(statements: list[Statement], values: dict[int, Any], lanes: Any, active: Any) -> None:
    """Runs them for the lanes that `active` marks."""
    for kind, *rest in statements:
        if kind == "if":
            bit = (lanes >> rest[0] & 1).astype(bool)
            walk(rest[1], values, lanes, active & bit)
            walk(rest[2], values, lanes, active & ~bit)
        elif kind == "loop":
            turns = (lanes >> rest[0] & 3) + 1
            for turn in range(4):
                walk(rest[1], values, lanes, active & (turn < turns))
        else:
            where = active & (lanes >> rest[0] & 1).astype(bool) if kind == "guarded" else active
            target, op, a, b = rest[-4:]
            new = OPERATIONS[op](values[a], values[b])
            values[target] = np.where(where, new, values.get(target, np.uint32(0)))


def text_of(statements: list[Statement], labels: list[int]) -> list[str]:
    lines = []
    for kind, *rest in statements:
        labels[0] += 1
        label = labels[0]
        if kind == "if":
            lines += [f"@!%q{rest[0]} bra E{label};", *text_of(rest[1], labels), f"bra J{label};"]
            lines += [f"E{label}:", *text_of(rest[2], labels), f"J{label}:"]
        elif kind == "loop":
            lines += [f"mov.u32 %n{label}, 0;", f"L{label}:", *text_of(rest[1], labels)]
            lines += [f"add.u32 %n{label}, %n{label}, 1;", f"shr.u32 %m{label}, %lane, {rest[0]};"]
            lines += [f"and.b32 %m{label}, %m{label}, 3;"]
            lines += [f"setp.le.u32 %c{label}, %n{label}, %m{label};", f"@%c{label} bra L{label};"]
        else:
            target, op, a, b = rest[-4:]
            guard = f"@%q{rest[0]} " if kind == "guarded" else ""
            lines.append(f"{guard}{op} %r{target}, %r{a}, %r{b};")
    return lines


def program(statements: list[Statement], n_registers: int) -> str:
    labels = [0]
    body = text_of(statements, labels)
    start = [f"mad.lo.u32 %r{i}, %lane, {2 * i + 3}, {i};" for i in range(VARIABLES)]
    bits = [
        line
        for i in range(5)
        for line in (f"and.b32 %t, %lane, {1 << i};", f"setp.ne.u32 %q{i}, %t, 0;")
    ]
    ends = [f"st.global.u32 [%at+{128 * i}], %r{i};" for i in range(VARIABLES)]
    return "\n".join([
        ".version 8.0", ".target sm_80", ".address_size 64",
        ".visible .entry k(.param .u64 out)", "{",
        f".reg .b32 %r<{n_registers}>, %n<{labels[0] + 1}>, %m<{labels[0] + 1}>, %lane, %t;",
        f".reg .pred %q<5>, %c<{labels[0] + 1}>;", ".reg .b64 %at, %offset;",
        "mov.u32 %lane, %tid.x;", "ld.param.u64 %at, [out];", "mul.wide.u32 %offset, %lane, 4;",
        "add.u64 %at, %at, %offset;", *start, *bits, *body, *ends, "ret;", "}",
    ])  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_random_programs(seed: int) -> None:
    fresh = [VARIABLES - 1]
    statements = block(random.Random(seed), 0, fresh)
    lanes = np.arange(32, dtype=np.uint32)
    values = {i: lanes * np.uint32(2 * i + 3) + np.uint32(i) for i in range(VARIABLES)}
    walk(statements, values, lanes, np.ones(32, bool))
    out = np.zeros((VARIABLES, 32), np.uint32)
    ptx.run(program(statements, fresh[0] + 1), "k", 1, 32, [out])
    np.testing.assert_array_equal(out, np.stack([values[i] for i in range(VARIABLES)]))


def test_values_that_are_over_leave_their_rows() -> None:
    """A chain of 2,000 registers, two of which matter at a time, and some for the address."""
    chain: list[Statement] = [("set", 6, "add.u32", 0, 1)]
    chain += [("set", i, "xor.b32", i - 1, 2) for i in range(7, 2000)]
    chain.append(("set", 0, "add.u32", 1999, 2))
    kernel = ptx.load(program(chain, 2000))
    assert kernel.decoded.n_rows > 2000
    assert kernel.program().n_rows < 60
    out = np.zeros((VARIABLES, 32), np.uint32)
    kernel.launch(1, 32, [out])
    lanes = np.arange(32, dtype=np.uint32)
    first, second, third = (lanes * np.uint32(2 * i + 3) + np.uint32(i) for i in range(3))
    odd = first + second if 1993 % 2 == 0 else (first + second) ^ third
    np.testing.assert_array_equal(out[0], odd + third)
