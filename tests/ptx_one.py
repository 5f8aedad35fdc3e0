"""One PTX instruction as a kernel, for tests that compare it lane by lane with a reference."""

from __future__ import annotations

from functools import cache

import numpy as np

from minigrad import ptx

_REGISTERS = {8: "b16", 16: "b16", 32: "b32", 64: "b64"}
_UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


@cache
def kernel_text(body: str, outs: tuple[int, ...], ins: tuple[int, ...]) -> str:
    """A kernel that loads %s0, %s1, … from arrays (bits by `ins`; 1 is a predicate, from a byte),
    runs `body`, and stores %d0, %d1, …"""
    params = [f".param .u64 d{i}" for i in range(len(outs))]
    params += [f".param .u64 s{i}" for i in range(len(ins))]
    lines = [".reg .pred %out, %q<8>;", ".reg .b32 %t<4>, %u<8>;", ".reg .b64 %a<4>, %w<8>;",
             ".reg .b16 %h<8>, %byte;"]  # fmt: skip
    for kind, sizes in (("d", outs), ("s", ins)):
        for i, bits in enumerate(sizes):
            lines.append(f".reg .{'pred' if bits == 1 else _REGISTERS[bits]} %{kind}{i};")
    lines += ["mov.u32 %t0, %ctaid.x;", "mov.u32 %t1, %ntid.x;", "mov.u32 %t2, %tid.x;",
              "mad.lo.s32 %t0, %t0, %t1, %t2;", "cvt.u64.u32 %a0, %t0;"]  # fmt: skip
    for i, bits in enumerate(ins):
        size = max(8, bits)
        lines += [f"ld.param.u64 %a1, [s{i}];", f"mad.lo.s64 %a1, %a0, {size // 8}, %a1;"]
        if bits == 1:
            lines += ["ld.global.u8 %byte, [%a1];", f"setp.ne.b16 %s{i}, %byte, 0;"]
        else:
            lines.append(f"ld.global.{'u' if size == 8 else 'b'}{size} %s{i}, [%a1];")
    lines.append(body)
    for i, bits in enumerate(outs):
        size = max(8, bits)
        lines += [f"ld.param.u64 %a1, [d{i}];", f"mad.lo.s64 %a1, %a0, {size // 8}, %a1;"]
        if bits == 1:
            lines += [f"selp.b16 %byte, 1, 0, %d{i};", "st.global.u8 [%a1], %byte;"]
        else:
            lines.append(f"st.global.b{size} [%a1], %d{i};")
    code = "\n    ".join([*lines, "ret;"])
    head = ".version 9.0\n.target sm_90a\n.address_size 64\n"
    return f"{head}.visible .entry one({', '.join(params)})\n{{\n    {code}\n}}\n"


def execute(body: str, outs: tuple[int, ...], *ins: tuple[int, list[int]]) -> list[list[int]]:
    """Runs `body` once a lane; `ins` gives bits and a value a lane for each input. The outputs, as
    unsigned numbers. 32 lanes are a warp; the last warp is filled with the first value."""
    n = max((len(values) for _, values in ins), default=32)
    lanes = -(-n // 32) * 32
    given = []
    for bits, values in ins:
        filled = [*values, *[values[0]] * (lanes - len(values))]
        given.append(np.array(filled, np.uint64).astype(_UNSIGNED[max(8, bits)]))
    results = [np.zeros(lanes, _UNSIGNED[max(8, bits)]) for bits in outs]
    text = kernel_text(body, outs, tuple(bits for bits, _ in ins))
    block = 32 * next(w for w in (8, 4, 2, 1) if lanes // 32 % w == 0)
    ptx.run(text, "one", lanes // block, block, [*results, *given])
    return [result[:n].tolist() for result in results]
