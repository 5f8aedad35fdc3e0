"""Malformed and mutated PTX: the machine must refuse it, report it, stop at a limit, or run it.

    python tests/ptx_corpus/fuzz.py [--count 2000] [--seed 0] [--only N] [--executor FILE]

Each mutant's number and length go to standard error before it runs, so that the last line of a run
that died names the one to blame; `--only` runs that one and shows its text. `--executor` takes the
extension module from a file: `.ci/sanitized [--count 100000]` builds one with the address and
undefined-behaviour sanitizers and runs the mutants on it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import re
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from minigrad import ptx  # noqa: E402
from ptx_corpus import Program, entries, owned, parameters, program  # noqa: E402

LARGEST_TEXT = 60_000  # characters, of what `only_kernel` leaves: parsing longer ones takes long
SLOWEST_S = 20.0  # of the processors; a mutant that takes longer counts as a hang
LIMITS = {"steps": 20_000}

# Texts of no program, or of one that asks for too much.
MALFORMED = [
    "", "\0", "{", "}" * 50, "{" * 5000, "." * 5000, ".version", ".version 8.0\n.target sm_80",
    ".entry k(", "//", "/*", '"', ".file 1 \"", ".visible .entry k() { ret; ", "\u2028\u00e9\ud7ff",
    ".visible .entry k() { bra L; }", ".visible .entry k() { L: bra L; }",
    ".visible .entry k() { L: L: ret; }", ".visible .entry k() { call k; ret; }",
    ".visible .entry k() { .reg .b32 %r<4000000000>; ret; }",
    ".visible .entry k() { .reg .b32 %r<99999999999999999999>; ret; }",
    ".visible .entry k() { .local .align 8 .b8 d[99999999999]; ret; }",
    ".visible .entry k() { .shared .align 1073741824 .b8 d[99999999999]; ret; }",
    ".visible .entry k() { .shared .align 0 .b8 d[-4]; ret; }",
    ".global .b8 g[18446744073709551615]; .visible .entry k() { ret; }",
    ".global .b32 g = {1, 2, 3}; .visible .entry k() { ret; }",
    ".visible .entry k(.param .b64 a, .param .b64 a) { ret; }",
    ".visible .entry k(.param .align 3 .b8 a[99999999]) { ret; }",
    ".visible .entry k() { mov.b32 %r1, %r2; ret; }",
    ".visible .entry k() { .reg .b32 %r; mov.b32 %r, 999999999999999999999999; ret; }",
    ".visible .entry k() { .reg .b32 %r; add.s32 %r, %r, ; ret; }",
    ".visible .entry k() { .reg .b32 %r; shf.l.wrap.b32 %r, {%r, %r}, %r; ret; }",
    ".visible .entry k() { .reg .b64 %r; ld.global.v4.b64 {%r, %r, %r, %r}, [%r]; ret; }",
    ".visible .entry k() { .reg .b64 %r; ld.v3.b32 {%r, %r}, [%r+0x7fffffffffffffff]; ret; }",
    ".visible .entry k() { .reg .b32 %r; div.u32 %r, %r, %r; rem.s32 %r, 0x80000000, -1; ret; }",
    ".visible .entry k() { bar.sync 99; bar.sync 3, 7; barrier.sync -1; ret; }",
    ".visible .entry k() { .reg .b32 %r; mov.b32 %r, k; st.shared.b32 [%r+-8], %r; ret; }",
    ".visible .entry k() { cp.async.wait_group 4294967296; cp.async.wait_group -1; ret; }",
    ".visible .entry k() { .reg .b32 %r; bfe.u32 %r, -1, 77, 300; bfi.b32 %r, 1, 2, 99, 99; ret; }",
    ".visible .entry k() { .reg .b64 %d; .reg .b32 %r<16>; wgmma.mma_async.sync.aligned.m64n8k16"
    ".f32.f16.f16 {%r0, %r1, %r2, %r3}, %d, %d, 1, 1, 1, 0, 0; ret; }",
    ".visible .entry k() { .reg .b64 %d; mbarrier.init.shared::cta.b64 [%d], 0; ret; }",
    ".visible .entry k() { .reg .b64 %d; cp.async.bulk.shared::cluster.global.mbarrier::complete_tx"
    "::bytes [%d], [%d], 4294967280, [%d]; ret; }",
    ".visible .entry k() " + "{" * 300 + "ret;" + "}" * 301,
    ".visible .entry k() { " + "bar.sync 0; " * 3000 + " }",
    ".func f() { call f; ret; } .visible .entry k() { call f; ret; }",
    ".func f() { call g; ret; } .func g() { call f; ret; } .visible .entry k() { call f; ret; }",
]  # fmt: skip

TOKEN = re.compile(r"%[a-z]+\d*|-?\b0[xfd][0-9a-fA-F]+|-?\b\d+|\.[a-z]\w*|\$?\w+|\S")
NUMBERS = ("0", "1", "-1", "3", "7", "31", "32", "63", "64", "127", "255", "1024", "65536",
           "2147483647", "4294967295", "-2147483648", "1099511627776", "18446744073709551615",
           "0x7fffffffffffffff", "0f7FC00000", "0f7F800000", "99999999999999999999999")  # fmt: skip


def body_lines(lines: list[str]) -> list[int]:
    """Lines with instructions: mutants of headers and debug sections teach less."""
    return [i for i, line in enumerate(lines) if ";" in line and "b8" not in line] or [0]


def mutate(text: str, rng: random.Random, pool: list[str]) -> str:
    """One to four changes, mostly one: of a line, a token, a character."""
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        where = body_lines(lines)
        i = rng.choice(where) if rng.random() < 0.9 else rng.randrange(len(lines))
        kind = rng.randrange(24)
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(rng.choice(where), lines[i])
        elif kind == 2:
            j = rng.choice(where)
            lines[i], lines[j] = lines[j], lines[i]
        elif kind == 3:
            lines.insert(i, rng.choice(pool))
        elif kind == 4 and lines[i]:
            at = rng.randrange(len(lines[i]))
            lines[i] = lines[i][:at] + chr(rng.randrange(1, 256)) + lines[i][at + 1 :]
        elif kind == 5:
            lines = lines[: rng.randrange(1, len(lines) + 1)]
        else:
            lines[i] = mutate_token(lines[i], rng, pool)
        if not lines:
            lines = [""]
    return "\n".join(lines)


def mutate_token(line: str, rng: random.Random, pool: list[str]) -> str:
    """Another register, number, modifier or operand in a line."""
    tokens = list(TOKEN.finditer(line))
    if not tokens:
        return line
    operands = [t for t in tokens if re.match(r"%[a-z]+\d|-?\d", t.group())]
    old = rng.choice(operands if operands and rng.random() < 0.7 else tokens)
    word = old.group()
    if word[0] == "%":
        new = re.sub(r"\d+$", str(rng.randrange(12)), word)
    elif re.match(r"-?\d|0[xfd]", word):
        new = rng.choice(NUMBERS)
    else:
        others = TOKEN.findall(rng.choice(pool))
        same = [t for t in others if t[0] == word[0]] if rng.random() < 0.7 else others
        new = rng.choice(same or others or [""])
    return line[: old.start()] + new + line[old.end() :]


def only_kernel(text: str, kernel: str) -> str:
    """A module without its other kernels and its debug sections."""
    text = re.split(r"(?m)^\s*\.section", text)[0]
    pieces = re.split(r"(?m)^(?=\.visible \.entry |\.func |\t// \.globl)", text)
    others = re.compile(rf"\.visible \.entry (?!{kernel}\()")
    return "".join(p for p in pieces if not others.match(p))


def bases() -> list[tuple[Any, Program, int]]:
    """Programs to mutate: of each text one entry, so that no family prevails."""
    found: dict[tuple[str, str], tuple[Any, Program, int]] = {}
    for entry in entries():
        if entry.name.startswith("own_"):
            continue
        for architecture in entry.architectures:
            compiled = program(entry.make(0).launch, architecture)
            compiled = replace(compiled, text=only_kernel(compiled.text, compiled.kernel))
            if len(compiled.text) <= LARGEST_TEXT:
                found.setdefault((compiled.text, compiled.kernel), (entry, compiled, architecture))
    return list(found.values())


def arguments_of(entry: Any, compiled: Program) -> tuple[tuple[int, ...], list[Any]]:
    launch = entry.make(0).launch
    grid = tuple(launch.grid) + (1,) * (3 - len(launch.grid))
    return tuple(min(g, 2) for g in grid), parameters(launch, compiled, grid)


def attempt(text: str, kernel: str, grid: Any, block: Any, given: list[Any], shared: int) -> str:
    """The name of what a text ends in; whatever else it raises is a defect."""
    try:
        ptx.run(text, kernel, grid, block, given, shared_bytes=shared, limits=LIMITS)
    except ptx.PtxFault as fault:
        return fault.kind
    except ptx.PtxError:
        return "refused"
    return "ran"


def fuzz(count: int, seed: int, only: int | None = None) -> Counter[str]:
    ends: Counter[str] = Counter()
    array = owned(np.zeros(64, np.float32))
    for number, text in enumerate(MALFORMED):
        print(f"malformed {number}", file=sys.stderr)
        for given in ([], [array], [array, array]):
            attempt(text, "k", (1, 1, 1), (32, 1, 1), given, 64)
    programs = bases()
    pool = sorted({
        line.strip() for _, compiled, _ in programs for line in compiled.text.splitlines()
        if ";" in line and ".b8" not in line and ".param" not in line
    })  # fmt: skip
    for number in range(count) if only is None else [only]:
        rng = random.Random(seed * 1_000_003 + number)
        entry, compiled, architecture = rng.choice(programs)
        text = mutate(compiled.text, rng, pool)
        print(f"{number} {entry.name} sm_{architecture} {len(text)}", file=sys.stderr)
        if only is not None:
            print(text)
        grid, given = arguments_of(entry, compiled)
        begun = time.process_time()
        ends[
            attempt(text, compiled.kernel, grid, compiled.block, given, compiled.shared_bytes)
        ] += 1
        took = time.process_time() - begun
        if took > SLOWEST_S:
            raise RuntimeError(f"mutant {number} of {entry.name} took {took:.1f} s")
    return ends


def use_executor(path: Path) -> None:
    """Makes the module in a file the one that programs run on."""
    name = f"minigrad.{path.name.partition('.')[0]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    os.environ["MINIGRAD_ISA"] = name.rpartition("_")[2]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--executor", type=Path)
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if chosen.executor:
        use_executor(chosen.executor)
    result = fuzz(chosen.count, chosen.seed, chosen.only)
    print(" ".join(f"{name}={n}" for name, n in sorted(result.items())))
