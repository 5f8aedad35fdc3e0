"""docs/emulator.md is true: its Python runs, and its commands print what it says they do."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from minigrad import gpu, ptx
from minigrad.cli import main

TEXT = (Path(__file__).parent.parent / "docs" / "emulator.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)

pytestmark = pytest.mark.skipif(not ptx.levels(), reason="the PTX machine is not built")


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(gpu.interpreting(), reason="the interpreter is on")
def test_python() -> None:
    exec("\n".join(code for kind, code in BLOCKS if kind == "python"), {})


def sessions() -> list[tuple[str, str]]:
    """Each command, and what the block after it says is printed ('' where there is none)."""
    found = []
    for (kind, code), (following, output) in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True):
        if kind == "sh" and "ptx run" in code:
            found.append((code.strip(), output if following == "text" else ""))
    return found


@pytest.mark.skipif(
    not gpu._nvidia("*/lib/libnvrtc.so.*"),
    reason="NVRTC is not installed: pip install minigrad[gpu]",
)
@pytest.mark.parametrize(("command", "expected"), sessions(), ids=lambda x: x.split(".cu")[0][-9:])
def test_command(
    command: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, code in BLOCKS:
        name = re.match(r"// (\w+\.cu)\n", code)
        if kind == "cpp" and name:
            (tmp_path / name[1]).write_text(code)
    status = main(shlex.split(command.removeprefix("minigrad ")))
    printed = "".join(capsys.readouterr())
    assert status == (1 if "  at " in expected else 0), printed
    at = 0
    for line in expected.splitlines():
        pieces = [re.escape(" ".join(piece.split())) for piece in line.split("...")]
        pattern = r".*?".join(pieces).replace(r"\ ", r"\s+")
        found = re.compile(pattern).search(printed, at)
        assert found, f"{line!r} is not in the rest of:\n{printed}"
        at = found.end()


def test_triton_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    if gpu.interpreting():
        pytest.skip("the interpreter is on")
    (tmp_path / "scale.py").write_text(
        "import triton\nimport triton.language as tl\n\n\n@triton.jit\ndef scale(x, n, by, "
        "BLOCK: tl.constexpr):\n    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)\n"
        "    tl.store(x + i, tl.load(x + i, i < n) * by, i < n)\n"
    )
    words = [f"{tmp_path / 'scale.py'}:scale", "f32[1000]=ones", "i32=1000", "f32=2.5"]
    words += ["--grid", "4", "-D", "BLOCK=256", "--json", "--show", "0"]
    assert main(["ptx", "run", *words]) == 0
    printed = capsys.readouterr().out
    assert '"arguments": {"0": [2.5, 2.5' in printed
