"""The one set of threads that kernels run on."""

from __future__ import annotations

from minigrad import dispatch


def num_threads() -> int:
    """How many threads a kernel may use, the calling one included.

    By default the processors this process may run on, within the container's limit;
    `MINIGRAD_NUM_THREADS` says otherwise.
    """
    return 1 if dispatch._core is None else dispatch._core.num_threads()


def set_num_threads(n: int) -> None:
    """Uses `n` threads from now on. Results keep the same bits at any number."""
    if dispatch._core is not None:
        dispatch._core.set_num_threads(n)
