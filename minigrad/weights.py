"""Weights as safetensors, read strictly: nothing is unpickled, and a file that is not exactly right
is refused. Weights in several files come with an index, `*.safetensors.index.json`, which may name
only files beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from minigrad import dtypes

_NAMES = {
    "F32": dtypes.float32,
    "F64": dtypes.float64,
    "F16": dtypes.float16,
    "BF16": dtypes.bfloat16,
    "I32": dtypes.int32,
    "I64": dtypes.int64,
    "U8": dtypes.uint8,
    "BOOL": dtypes.bool_,
}
MAX_HEADER_BYTES = 100 << 20
MAX_TENSORS = 1_000_000
MAX_RANK = 16
INDEX_SUFFIX = ".safetensors.index.json"
# Pickles of protocol 2 to 5 (PyTorch's old format is one) and zip archives (its new one).
_CAN_RUN_CODE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")

Fail = Callable[[str], "WeightsError"]


class WeightsError(ValueError):
    """A weights file that is not what it should be; the message names the file and what is
    wrong."""


def save_weights(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes arrays (any strides, any of minigrad's dtypes) as one safetensors file. Raises
    WeightsError for what `load_weights` would refuse, OSError where the file cannot be written."""
    fail = _failing(Path(path))
    for name, array in tensors.items():
        _check_name(name, fail)
        if array.dtype not in _NAMES.values():
            raise fail(f"{name}: dtype {array.dtype}; expected one of {', '.join(_NAMES)}")
    # The writer takes memory as it lies, so strided views must be copied first.
    whole = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        safetensors.numpy.save_file(whole, str(path), metadata)
    except safetensors.SafetensorError as error:  # names and dtypes were checked: the disk is full
        raise OSError(f"{path}: {error}") from error


def load_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, or of all files of an index (`*.safetensors.index.json`),
    by name. Raises WeightsError for anything irregular."""
    file = Path(path)
    return _load_shards(file) if file.name.endswith(INDEX_SUFFIX) else _load_file(file)


def _failing(file: Path) -> Fail:
    return lambda what: WeightsError(f"{file}: {what}")


def _load_file(file: Path) -> dict[str, np.ndarray]:
    data, fail = file.read_bytes(), _failing(file)
    length = int.from_bytes(data[:8], "little")
    fits = len(data) >= 8 and length <= min(MAX_HEADER_BYTES, len(data) - 8)
    # A header of 640 bytes begins as a pickle does, so only what is no safetensors file counts.
    if data.startswith(_CAN_RUN_CODE) and not (fits and data[8:9] == b"{"):
        raise fail("a pickle or PyTorch file, which can run code and is never read; convert it")
    if len(data) < 8:
        raise fail("too short for a safetensors header")
    if not fits:
        raise fail(f"header of {length} bytes does not fit the file or the limit")
    header = _header(data[8 : 8 + length], fail)
    body = memoryview(data)[8 + length :]
    out: dict[str, np.ndarray] = {}
    spans = []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(name, entry, len(body), fail)
        values = np.frombuffer(body[begin:end], np.uint8 if dtype == dtypes.bool_ else dtype)
        if dtype == dtypes.bool_:
            if values.size and values.max() > 1:
                raise fail(f"{name}: a BOOL that is neither 0 nor 1")
            values = values.astype(np.bool_)
        try:
            out[name] = values.reshape(shape)
        except (ValueError, OverflowError):  # no elements, but lengths beyond any array
            raise fail(f"{name}: bad shape {list(shape)}") from None
        spans.append((begin, end))
    edge = 0
    for begin, end in sorted(spans):
        if begin != edge:
            raise fail(f"tensors leave a gap or overlap at byte {begin}")
        edge = end
    if edge != len(body):
        raise fail(f"{len(body) - edge} bytes at the end belong to no tensor")
    return out


def _load_shards(index: Path) -> dict[str, np.ndarray]:
    fail = _failing(index)
    data = index.read_bytes()
    if len(data) > MAX_HEADER_BYTES:
        raise fail(f"an index of {len(data)} bytes; at most {MAX_HEADER_BYTES} are read")
    content = _object(data, "index", fail)
    if not set(content) <= {"metadata", "weight_map"} or not isinstance(
        content.get("weight_map"), dict
    ):
        raise fail("expected weight_map, and at most metadata beside it")
    shards: dict[str, set[str]] = {}
    for name, shard in content["weight_map"].items():
        _check_name(name, fail)
        if not isinstance(shard, str) or not _is_beside(index, shard):
            raise fail(f"{name}: {shard!r} is not the bare name of a file beside the index")
        if not shard.endswith(".safetensors"):
            raise fail(f"{name}: {shard!r} is no safetensors file")
        shards.setdefault(shard, set()).add(name)
    out: dict[str, np.ndarray] = {}
    for shard, names in sorted(shards.items()):
        tensors = _load_file(index.parent / shard)
        if wrong := sorted(names ^ set(tensors)):
            where = "only in the index" if wrong[0] in names else "not in the index for it"
            raise fail(f"{shard}: {wrong[0]!r} is {where}")
        out |= tensors
    return out


def _is_beside(index: Path, name: str) -> bool:
    """Whether `name` is a bare file name and the file, links followed, lies in the index's own
    folder."""
    if name in ("", ".", "..") or any(c in name for c in "/\\\0:"):
        return False
    return (index.parent / name).resolve().parent == index.parent.resolve()


def _object(text: bytes, what: str, fail: Fail) -> dict[str, Any]:
    """A JSON object in which no key comes twice."""
    if text[:1] != b"{":
        raise fail(f"the {what} does not begin with '{{'")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [k for k, _ in pairs]
        if len(set(keys)) != len(keys):
            raise fail(f"the {what} has a duplicate key")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except WeightsError:
        raise
    except (ValueError, RecursionError) as error:
        raise fail(f"the {what} is no JSON: {error}") from None


def _header(text: bytes, fail: Fail) -> dict[str, Any]:
    header = _object(text, "header", fail)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise fail("__metadata__ is not a table of strings")
    if len(header) > MAX_TENSORS:
        raise fail(f"{len(header)} tensors; at most {MAX_TENSORS} are read")
    return header


def _check_name(name: str, fail: Fail) -> None:
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or not parts[0] or ".." in parts or name == "__metadata__":
        raise fail(f"the name {name!r} is empty, reserved, has NUL or climbs a path")


def _entry(
    name: str, entry: Any, n_bytes: int, fail: Fail
) -> tuple[np.dtype, tuple[int, ...], int, int]:
    _check_name(name, fail)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fail(f"{name}: expected exactly dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]

    def counts(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)

    if not isinstance(kind, str) or kind not in _NAMES:
        raise fail(f"{name}: dtype {kind!r}; expected one of {', '.join(_NAMES)}")
    if not counts(shape) or len(shape) > MAX_RANK:
        raise fail(f"{name}: bad shape {shape!r}")
    if not counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= n_bytes:
        raise fail(f"{name}: bad data_offsets {offsets!r}")
    dtype = _NAMES[kind]
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise fail(f"{name}: shape {shape} does not fit its {offsets[1] - offsets[0]} bytes")
    return dtype, tuple(shape), offsets[0], offsets[1]
