"""Weights as safetensors, read strictly: nothing is unpickled, and a file that is not exactly right
is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
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


class WeightsError(ValueError):
    """A weights file that is not what it should be; the message names the file and what is
    wrong."""


def save_weights(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes arrays (any strides, any of minigrad's dtypes) as one safetensors file."""
    # The writer takes memory as it lies, so strided views must be copied first.
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    safetensors.numpy.save_file(whole, str(path), metadata)


def load_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name. Raises WeightsError for anything irregular."""
    file = Path(path)
    data = file.read_bytes()

    def fail(what: str) -> WeightsError:
        return WeightsError(f"{file}: {what}")

    if (
        data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        or data[:4] == b"PK\x03\x04"
    ):
        raise fail("a pickle or PyTorch file, which can run code and is never read; convert it")
    if len(data) < 8:
        raise fail("too short for a safetensors header")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
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
        out[name] = values.reshape(shape)
        spans.append((begin, end))
    edge = 0
    for begin, end in sorted(spans):
        if begin != edge:
            raise fail(f"tensors leave a gap or overlap at byte {begin}")
        edge = end
    if edge != len(body):
        raise fail(f"{len(body) - edge} bytes at the end belong to no tensor")
    return out


def _header(text: bytes, fail: Any) -> dict[str, Any]:
    if text[:1] != b"{":
        raise fail("the header does not begin with '{'")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [k for k, _ in pairs]
        if len(set(keys)) != len(keys):
            raise fail("the header has a duplicate key")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise fail(f"the header is no JSON: {error}") from None
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise fail(f"{len(header)} tensors; at most {MAX_TENSORS} are read")
    return header


def _entry(
    name: str, entry: Any, n_bytes: int, fail: Any
) -> tuple[np.dtype, tuple[int, ...], int, int]:
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or name.startswith(("/", "\\")) or ".." in parts:
        raise fail(f"the name {name!r} is empty, has NUL or climbs a path")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fail(f"{name}: expected exactly dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]

    def counts(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)

    if entry["dtype"] not in _NAMES:
        raise fail(f"{name}: dtype {entry['dtype']!r}; expected one of {', '.join(_NAMES)}")
    if not counts(shape) or len(shape) > MAX_RANK:
        raise fail(f"{name}: bad shape {shape!r}")
    if not counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= n_bytes:
        raise fail(f"{name}: bad data_offsets {offsets!r}")
    dtype = _NAMES[entry["dtype"]]
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise fail(f"{name}: shape {shape} does not fit its {offsets[1] - offsets[0]} bytes")
    return dtype, tuple(shape), offsets[0], offsets[1]
