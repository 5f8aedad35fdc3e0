"""The documents' examples run: README's Python, its command lines, and docstrings' examples."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

import minigrad
from minigrad.cli import _parser

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [m.name for m in pkgutil.walk_packages(minigrad.__path__, "minigrad.")]


def test_readme_python() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    scope: dict[str, object] = {}
    exec("\n".join(blocks), scope)
    loss = scope["loss"]
    assert isinstance(loss, minigrad.Tensor)
    assert loss.item() < 0.05  # of a variance of about 0.5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_command_lines_parse(document: Path) -> None:
    lines = re.findall(r"^(?:python -m )?minigrad ([a-z].*)$", document.read_text(), re.MULTILINE)
    if document.name == "README.md":
        assert len(lines) >= 9
    for line in lines:
        _parser().parse_args(shlex.split(line.split("#")[0]))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_docstring_examples() -> None:
    attempted = 0
    for name in MODULES:
        built = "._kernels_" in name or "._ptx_" in name  # perhaps for a newer processor
        if built or ".kernels." in name or ".peer_" in name or name.endswith("__main__"):
            continue
        failed, n = doctest.testmod(importlib.import_module(name))
        assert failed == 0, name
        attempted += n
    assert attempted > 0
