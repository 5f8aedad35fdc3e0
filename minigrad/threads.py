"""The one set of threads that kernels run on."""

from __future__ import annotations

from minigrad import dispatch
from minigrad.arguments import integer


def num_threads() -> int:
    """How many threads a kernel may use, the calling one included.

    By default the processors this process may run on, within the container's limit;
    `MINIGRAD_NUM_THREADS` says otherwise.
    """
    return 1 if dispatch._core is None else dispatch._core.num_threads()


def set_num_threads(n: int) -> None:
    """Uses `n` threads from now on. Results keep the same bits at any number."""
    n = integer("set_num_threads", "n", n)
    if not 1 <= n <= 4096:
        raise ValueError(f"set_num_threads: expected 1 to 4096, got {n}")
    if dispatch._core is not None:
        dispatch._core.set_num_threads(n)
