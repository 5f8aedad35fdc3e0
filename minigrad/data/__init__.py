"""Data: text and images that come inside packages or from the user's own files."""

from minigrad.data.carriers import DataUnavailable
from minigrad.data.images import (
    ImageBatches,
    Images,
    load_digits,
    load_idx_folder,
    load_images,
    load_mnist5k,
    pca_error,
)
from minigrad.data.ngram import witten_bell
from minigrad.data.text import (
    CharTokenizer,
    TokenBatches,
    held_out_windows,
    load_shakespeare,
    load_text,
    split_tail,
)

__all__ = [
    "CharTokenizer",
    "DataUnavailable",
    "ImageBatches",
    "Images",
    "TokenBatches",
    "held_out_windows",
    "load_digits",
    "load_idx_folder",
    "load_images",
    "load_mnist5k",
    "load_shakespeare",
    "load_text",
    "pca_error",
    "split_tail",
    "witten_bell",
]
