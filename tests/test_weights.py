"""Weights: what is written comes back bit for bit, and whatever is irregular is refused by name."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import minigrad as mg
from minigrad import weights
from minigrad.dtypes import ALL
from minigrad.weights import WeightsError, load_weights, save_weights

F4 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def same(a: np.ndarray, b: np.ndarray) -> None:
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


def write(path: Path, header: Any, body: bytes = b"\0" * 4) -> Path:
    """A file of a header (JSON text, or what becomes it) and a body, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


# ---- what is written comes back ----


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_every_dtype_comes_back_bit_for_bit(dtype: np.dtype, tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 256, 4 * 6 * dtype.itemsize, dtype=np.uint8)
    array = (bits & 1).astype(bool) if dtype == np.bool_ else bits.view(dtype)
    array = array[:24].reshape(4, 6)
    save_weights(tmp_path / "w", {"a": array, "scalar": array[0, 0], "empty": array[:0]})
    got = load_weights(tmp_path / "w")
    assert set(got) == {"a", "scalar", "empty"}
    same(got["a"], array)
    same(got["scalar"], np.asarray(array[0, 0]))
    same(got["empty"], array[:0])


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.T,
        lambda a: a[:, ::2],
        lambda a: a[::-1],
        lambda a: np.broadcast_to(a[0], (3, 6)),
    ],
    ids=["transposed", "every other", "reversed", "broadcast"],
)
def test_strided_views_keep_their_values(view: Any, tmp_path: Path) -> None:
    array = view(np.arange(24, dtype=np.float32).reshape(4, 6))
    assert not array.flags.c_contiguous
    save_weights(tmp_path / "w", {"a": array})
    np.testing.assert_array_equal(load_weights(tmp_path / "w")["a"], array)


def test_the_safetensors_package_reads_what_is_written(tmp_path: Path) -> None:
    arrays = {"a.b": np.arange(6.0).reshape(2, 3).T, "n": np.array([1, -2]), "f": np.array([True])}
    save_weights(tmp_path / "w", arrays, {"kind": "test"})
    theirs = safetensors.numpy.load_file(tmp_path / "w")
    assert set(theirs) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name], array)
    with safetensors.safe_open(tmp_path / "w", "numpy") as file:
        assert file.metadata() == {"kind": "test"}


def test_what_the_safetensors_package_writes_is_read(tmp_path: Path) -> None:
    arrays = {"a/b": np.arange(6, dtype=np.float16), "n": np.array([[7]], np.int32)}
    safetensors.numpy.save_file(arrays, tmp_path / "w", {"kind": "test"})
    got = load_weights(tmp_path / "w")
    assert set(got) == set(arrays)
    for name, array in arrays.items():
        same(got[name], array)


def test_bfloat16_both_ways_with_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to exchange")
    import safetensors.torch

    array = np.array([1.0, -2.5, 3e38, np.inf], ml_dtypes.bfloat16)
    save_weights(tmp_path / "ours", {"a": array})
    theirs = safetensors.torch.load_file(tmp_path / "ours")["a"]
    assert theirs.dtype == torch.bfloat16
    assert theirs.float().tolist() == array.astype(np.float32).tolist()
    safetensors.torch.save_file({"a": theirs}, tmp_path / "theirs")
    same(load_weights(tmp_path / "theirs")["a"], array)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0x10280])
def test_a_header_as_long_as_a_pickle_begins_is_no_pickle(length: int, tmp_path: Path) -> None:
    text = json.dumps({"a": F4}).encode().ljust(length)
    np.testing.assert_array_equal(load_weights(write(tmp_path / "w", text))["a"], [0.0])


def test_values_at_odd_addresses(tmp_path: Path) -> None:
    entry = {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}
    for pad in range(3):
        text = json.dumps({"a": entry}).encode() + b" " * pad
        got = load_weights(write(tmp_path / "w", text, np.array([1.5, -2.0]).tobytes()))
        assert (mg.tensor(got["a"]) * 2).tolist() == [3.0, -4.0]


# ---- what is refused ----


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": F4 | changes}


DUPLICATE = b'{"a":' + json.dumps(F4).encode() + b',"a":' + json.dumps(F4).encode() + b"}"
REFUSED: dict[str, tuple[Any, bytes, str]] = {
    "duplicate key": (DUPLICATE, b"\0" * 4, "duplicate key"),
    "space before the brace": (b" " + json.dumps({"a": F4}).encode(), b"\0" * 4, "begin with '{'"),
    "a list": ([], b"", "begin with '{'"),
    "no JSON": (b'{"a":', b"", "is no JSON"),
    "deep JSON": (b'{"a":' * 100_000, b"", "is no JSON"),
    "not UTF-8": (b'{"\xff":1}', b"", "is no JSON"),
    "a number of 5,000 digits": (b'{"a":' + b"9" * 5000 + b"}", b"", "is no JSON"),
    "metadata of numbers": ({"__metadata__": {"n": 1}, "a": F4}, b"\0" * 4, "table of strings"),
    "metadata no table": ({"__metadata__": "x", "a": F4}, b"\0" * 4, "table of strings"),
    "unknown field": (entry(code="x"), b"\0" * 4, "a: expected exactly dtype, shape"),
    "missing field": ({"a": {"dtype": "F32", "shape": [1]}}, b"", "a: expected exactly"),
    "entry no table": ({"a": 7}, b"", "a: expected exactly"),
    "float8": (entry(dtype="F8_E4M3", data_offsets=[0, 1]), b"\0", "dtype 'F8_E4M3'; expected one"),
    "dtype no string": (entry(dtype=["F32"]), b"\0" * 4, "dtype \\['F32'\\]; expected one"),
    "BOOL of 2": (entry(dtype="BOOL", data_offsets=[0, 1]), b"\2", "a: a BOOL that is neither"),
    "empty name": ({"": F4}, b"\0" * 4, "the name '' is empty"),
    "NUL in the name": ({"a\0b": F4}, b"\0" * 4, "NUL"),
    "climbing name": ({"a/../../b": F4}, b"\0" * 4, "climbs a path"),
    "climbing by backslash": ({"..\\b": F4}, b"\0" * 4, "climbs a path"),
    "absolute name": ({"/etc/passwd": F4}, b"\0" * 4, "climbs a path"),
    "negative length": (entry(shape=[-1]), b"\0" * 4, "a: bad shape"),
    "length no integer": (entry(shape=[1.0]), b"\0" * 4, "a: bad shape"),
    "length true": (entry(shape=[True]), b"\0" * 4, "a: bad shape"),
    "rank beyond the cap": (entry(shape=[1] * 17), b"\0" * 4, "a: bad shape"),
    "empty and huge": (entry(shape=[0, 2**70], data_offsets=[0, 0]), b"", "a: bad shape"),
    "empty and too large": (entry(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), b"", "bad shape"),
    "shape beyond the bytes": (entry(shape=[2]), b"\0" * 4, "shape \\[2\\] does not fit its 4"),
    "offsets beyond the file": (entry(data_offsets=[0, 8], shape=[2]), b"\0" * 4, "data_offsets"),
    "offsets reversed": (entry(data_offsets=[4, 0]), b"\0" * 4, "bad data_offsets"),
    "three offsets": (entry(data_offsets=[0, 4, 4]), b"\0" * 4, "bad data_offsets"),
    "gap in front": (entry(data_offsets=[4, 8]), b"\0" * 8, "gap or overlap at byte 4"),
    "gap between": (
        {"a": F4, "b": F4 | {"data_offsets": [8, 12]}}, b"\0" * 12, "gap or overlap at byte 8"
    ),
    "overlap": ({"a": F4, "b": F4}, b"\0" * 4, "gap or overlap at byte 0"),
    "bytes at the end": ({"a": F4}, b"\0" * 5, "1 bytes at the end belong to no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_irregular_files_are_refused_by_name(case: str, tmp_path: Path) -> None:
    header, body, message = REFUSED[case]
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(write(tmp_path / "weights.safetensors", header, body))
    assert "weights.safetensors" in str(caught.value)


def test_rank_at_the_cap_is_read(tmp_path: Path) -> None:
    got = load_weights(write(tmp_path / "w", entry(shape=[1] * 16)))
    assert got["a"].shape == (1,) * 16


def test_headers_and_counts_beyond_the_caps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(WeightsError, match=f"header of {2**63} bytes does not fit"):
        load_weights(tmp_path / "w")
    (tmp_path / "w").write_bytes(b"\1\0\0")
    with pytest.raises(WeightsError, match="too short"):
        load_weights(tmp_path / "w")
    save_weights(tmp_path / "w", {name: np.zeros(1) for name in "abc"})
    assert len(load_weights(tmp_path / "w")) == 3
    monkeypatch.setattr(weights, "MAX_TENSORS", 2)
    with pytest.raises(WeightsError, match="3 tensors; at most 2 are read"):
        load_weights(tmp_path / "w")
    monkeypatch.setattr(weights, "MAX_HEADER_BYTES", 16)
    with pytest.raises(WeightsError, match="does not fit the file or the limit"):
        load_weights(tmp_path / "w")


class Bomb:
    exploded = False

    def __reduce__(self) -> Any:
        return (setattr, (Bomb, "exploded", True))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_refused_and_never_run(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(pickle.dumps({"a": Bomb()}, protocol))
    with pytest.raises(WeightsError, match=r"pickle or PyTorch file, .*never read; convert"):
        load_weights(tmp_path / "w")
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": Bomb()}, protocol))
    with pytest.raises(WeightsError, match="pickle or PyTorch file"):
        load_weights(tmp_path / "z")
    assert not Bomb.exploded


def test_both_torch_formats_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed: no file of its to refuse"
    )
    for new in (True, False):
        torch.save({"a": torch.zeros(3)}, tmp_path / "w", _use_new_zipfile_serialization=new)
        with pytest.raises(WeightsError, match="pickle or PyTorch file"):
            load_weights(tmp_path / "w")


@pytest.mark.parametrize("name", ["", "a\0b", "../a", "/a", "__metadata__"])
def test_names_that_would_be_refused_are_not_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="the name"):
        save_weights(tmp_path / "w", {name: np.zeros(1)})
    assert not (tmp_path / "w").exists()


def test_dtypes_that_would_be_refused_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"a: dtype complex128; expected one of F32"):
        save_weights(tmp_path / "w", {"a": np.zeros(1, complex)})


# ---- several files ----


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """An index over two files, in a folder with another beside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_weights(folder / "one.safetensors", {"a": np.arange(3.0), "b": np.ones(2)})
    save_weights(folder / "two.safetensors", {"c": np.zeros((2, 2), np.float32)})
    save_weights(tmp_path / "out.safetensors", {"a": np.arange(3.0), "b": np.ones(2)})
    return folder / "model.safetensors.index.json"


ONE = {"a": "one.safetensors", "b": "one.safetensors"}
TWO = {"c": "two.safetensors"}


def test_an_index_joins_its_files(shards: Path) -> None:
    shards.write_text(json.dumps({"metadata": {"total_size": 56}, "weight_map": ONE | TWO}))
    got = load_weights(shards)
    assert set(got) == {"a", "b", "c"}
    same(got["a"], np.arange(3.0))
    same(got["c"], np.zeros((2, 2), np.float32))


BAD_INDEX: dict[str, tuple[Any, str]] = {
    "climbs": ({"weight_map": {"a": "../out.safetensors"}}, "not the bare name"),
    "subfolder": ({"weight_map": {"a": "sub/one.safetensors"}}, "not the bare name"),
    "absolute": ({"weight_map": {"a": "/tmp/one.safetensors"}}, "not the bare name"),
    "backslash": ({"weight_map": {"a": "..\\one.safetensors"}}, "not the bare name"),
    "drive": ({"weight_map": {"a": "c:one.safetensors"}}, "not the bare name"),
    "link out": ({"weight_map": dict.fromkeys("ab", "link.safetensors")}, "not the bare name"),
    "empty": ({"weight_map": {"a": ""}}, "not the bare name"),
    "no string": ({"weight_map": {"a": 1}}, "not the bare name"),
    "another kind": ({"weight_map": {"a": "weights.bin"}}, "is no safetensors file"),
    "bad tensor name": ({"weight_map": {"../a": "one.safetensors"}}, "climbs a path"),
    "tensor not in the file": ({"weight_map": ONE | {"x": "one.safetensors"}}, "only in the index"),
    "tensor not in the index": ({"weight_map": {"a": "one.safetensors"}}, "'b' is not in the ind"),
    "unknown field": ({"weight_map": ONE, "code": "x"}, "at most metadata beside it"),
    "no map": ({"metadata": {}}, "expected weight_map"),
    "map no table": ({"weight_map": []}, "expected weight_map"),
}


@pytest.mark.parametrize("case", BAD_INDEX)
def test_an_index_reaches_nothing_but_files_beside_it(case: str, shards: Path) -> None:
    content, message = BAD_INDEX[case]
    (shards.parent / "link.safetensors").symlink_to(shards.parent.parent / "out.safetensors")
    shards.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message):
        load_weights(shards)


def test_an_index_with_a_duplicate_key_or_a_missing_file(shards: Path) -> None:
    shards.write_text('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}')
    with pytest.raises(WeightsError, match="the index has a duplicate key"):
        load_weights(shards)
    shards.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        load_weights(shards)


def test_a_link_that_stays_beside_the_index_is_read(shards: Path) -> None:
    (shards.parent / "link.safetensors").symlink_to("one.safetensors")
    shards.write_text(json.dumps({"weight_map": dict.fromkeys("ab", "link.safetensors")}))
    same(load_weights(shards)["b"], np.ones(2))


# ---- into a model ----


def test_a_shape_that_differs_names_key_and_shapes_and_loads_nothing(tmp_path: Path) -> None:
    model = mg.nn.Sequential(mg.nn.Linear(3, 4), mg.nn.Linear(4, 2))
    before = model.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    state["layers.1.weight"] = np.zeros((2, 5), np.float32)
    save_weights(tmp_path / "w", state)
    message = r"layers\.1\.weight has shape \(2, 5\) in the state and \(2, 4\) here"
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(load_weights(tmp_path / "w"))
    for name, array in model.state_dict().items():
        same(array, before[name])
