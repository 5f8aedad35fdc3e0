"""Writes the PTX of every entry and what starts it to a folder:

    python tests/ptx_corpus/dump.py FOLDER [PART OF A NAME ...]

`NAME.sm_80.ptx`, beside it `NAME.sm_80.json` (kernel, grid, block, shared bytes, parameters) and
`NAME.npz` (parameters that are arrays as `argK`, their values afterwards as `wantK`; halves as the
integers that hold their bits)."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from ptx_corpus import Entry, entries, parameters, program  # noqa: E402


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def describe(value: Any, at: int) -> dict[str, Any]:
    if value is None:
        return {"kind": "null"}
    if isinstance(value, bytes):
        return {"kind": "bytes", "hex": value.hex()}
    if isinstance(value, np.ndarray):
        shape = list(value.shape)
        return {"kind": "array", "dtype": value.dtype.name, "shape": shape, "in": f"arg{at}"}
    return {"kind": "scalar", "dtype": value.dtype.name, "value": value.item()}


def dump(entry: Entry, folder: Path) -> list[str]:
    texts = []
    for architecture in entry.architectures:
        run = entry.make(0)
        compiled = program(run.launch, architecture)
        grid = tuple(run.launch.grid) + (1,) * (3 - len(run.launch.grid))
        given = parameters(run.launch, compiled, grid)
        held = [a for a in given if isinstance(a, np.ndarray)]
        arrays = {f"arg{i}": bits(a) for i, a in enumerate(given) if isinstance(a, np.ndarray)}
        wants = {}
        for position, want in run.expected.items():
            array = run.launch.arguments[position]
            at = next(i for i, a in enumerate(given) if a is array)
            wants[f"want{at}"] = want
        stem = folder / f"{entry.name}.sm_{architecture}"
        stem.with_name(stem.name + ".ptx").write_text(compiled.text)
        about = {
            "kernel": compiled.kernel,
            "grid": grid,
            "block": compiled.block,
            "shared_bytes": compiled.shared_bytes,
            "tolerance": entry.tolerance,
            "args": [describe(a, i) for i, a in enumerate(given)],
            "expected": sorted(wants),
            "npz": f"{stem.name}.npz",
        }
        stem.with_name(stem.name + ".json").write_text(json.dumps(about, indent=1))
        np.savez(stem.with_name(stem.name + ".npz"), **arrays, **wants)
        assert len(held) == len(arrays)
        texts.append(compiled.text)
    return texts


INSTRUCTION = re.compile(r"^\s*(?:\{\s*)?(?:@!?%?\w+\s+)?([a-z][\w.:]*)(?=[\s;])")


def opcodes(text: str) -> Counter[str]:
    """Opcode strings by their number of occurrences."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        match = INSTRUCTION.match(line)
        if (match and ";" in line) or (match and match[1] in ("call", "wgmma")):
            found[match[1]] += 1
    return found


if __name__ == "__main__":
    target, parts = Path(sys.argv[1]), sys.argv[2:]
    target.mkdir(parents=True, exist_ok=True)
    for one in entries():
        if not parts or any(p in one.name for p in parts):
            try:
                sizes = [len(t) for t in dump(one, target)]
                print(one.name, sizes, flush=True)
            except Exception as error:
                print(one.name, "FAILED", type(error).__name__, str(error)[:2000], flush=True)
    count: Counter[str] = Counter()
    for file in sorted(target.glob("*.ptx")):
        count += opcodes(file.read_text())
    listing = "".join(f"{n:7d} {name}\n" for name, n in sorted(count.items()))
    (target.parent / "opcodes.txt").write_text(listing)
