"""The pool that CPU buffers come from, seen from outside."""

from __future__ import annotations

from minigrad import dispatch


def memory_statistics() -> dict[str, int]:
    """`live_bytes`, `cached_bytes`, `peak_bytes` of the pool, and its `system_allocations` so
    far."""
    if dispatch._core is None:
        return {"live_bytes": 0, "cached_bytes": 0, "peak_bytes": 0, "system_allocations": 0}
    return dispatch._core.pool_statistics()


def reset_peak_memory() -> None:
    """Starts `peak_bytes` again from what is in use now."""
    if dispatch._core is not None:
        dispatch._core.pool_reset_peak()


def empty_cache() -> None:
    """Gives cached, unused buffers back to the system.

    Those from 64 KiB to 4 MiB share huge pages: beside one in use, they give back their memory but
    still count as cached.
    """
    if dispatch._core is not None:
        dispatch._core.pool_trim()
