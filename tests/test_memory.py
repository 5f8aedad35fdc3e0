"""A training step at steady state: no growth, nothing asked of the system, no fresh pages."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable

import numpy as np
import pytest
import tiny

import minigrad as mg
from minigrad import memory

WARM_STEPS, N_STEPS = 100, 1000
# A step that asked the system for even one page would have 1,000 faults; Python's own small
# objects take a few.
MAX_FAULTS = 100


@pytest.fixture
def step() -> Callable[[], None]:
    """A step of a tiny GPT with dropout and clipping, warmed up."""
    task = tiny.make(tiny.GPT)
    t = 0

    def run() -> None:
        nonlocal t
        task.step(t)
        t += 1

    for _ in range(WARM_STEPS):
        run()
    return run


def test_a_thousand_steps_take_no_memory(step: Callable[[], None]) -> None:
    gc.collect()
    # On a busy machine it may be late that two threads want a block at once for the first time: of
    # three thousand steps, a thousand in a row must do without.
    for _ in range(3):
        before = mg.memory_statistics()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(N_STEPS):
            step()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        after = mg.memory_statistics()
        if after["system_allocations"] == before["system_allocations"]:
            break
    assert after["system_allocations"] == before["system_allocations"]
    assert after["live_bytes"] == before["live_bytes"]
    assert after["cached_bytes"] == before["cached_bytes"]
    assert after["peak_bytes"] == before["peak_bytes"]
    if sys.platform == "linux":
        assert faults <= MAX_FAULTS


def test_nothing_waits_for_the_collector(step: Callable[[], None]) -> None:
    """Buffers come back by counting references alone: no step leaves a cycle behind."""
    gc.collect()
    gc.disable()
    try:
        live = mg.memory_statistics()["live_bytes"]
        for _ in range(20):
            step()
        assert mg.memory_statistics()["live_bytes"] == live
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_the_statistics_count_what_is_there() -> None:
    mg.empty_cache()
    before = mg.memory_statistics()
    memory.reset_peak_memory()
    x = mg.zeros((2000, 1000))
    held = mg.memory_statistics()
    assert 8_000_000 <= held["live_bytes"] - before["live_bytes"] < 10_000_000
    assert held["peak_bytes"] == held["live_bytes"]
    assert held["system_allocations"] == before["system_allocations"] + 1
    del x
    freed = mg.memory_statistics()
    assert freed["live_bytes"] == before["live_bytes"]
    assert (
        freed["cached_bytes"] - before["cached_bytes"] == held["live_bytes"] - freed["live_bytes"]
    )
    assert freed["peak_bytes"] == held["peak_bytes"]
    again = mg.zeros((2000, 999))  # a buffer of the same class is used again
    assert mg.memory_statistics()["system_allocations"] == held["system_allocations"]
    del again
    mg.empty_cache()
    assert mg.memory_statistics()["cached_bytes"] == before["cached_bytes"]


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory as Linux tells it")
@pytest.mark.parametrize("n", [100, 100_000, 2_000_000], ids=["lines", "shared_pages", "own_pages"])
def test_an_emptied_cache_goes_back_to_the_system(n: int) -> None:
    """Blocks of every kind; and one that stays does not lose its values."""
    mg.empty_cache()
    cached = mg.memory_statistics()["cached_bytes"]
    blocks = [mg.ones((n,)) for _ in range(min(400, 100_000_000 // n))]
    kept, full = blocks[-1], resident_bytes()
    held = 4 * n * len(blocks)
    del blocks
    assert mg.memory_statistics()["cached_bytes"] >= cached + held - 5 * n
    mg.empty_cache()
    if n > 100:  # what the C library gives back of its heap is its own affair
        assert full - resident_bytes() > 0.6 * held
    assert (kept.numpy() == 1).all()
    asked = mg.memory_statistics()["system_allocations"]
    again = [mg.zeros((n,)) for _ in range(50)]
    if n == 100_000:  # beside the block that stays there are 70 and more
        assert mg.memory_statistics()["system_allocations"] == asked
    assert all((x.numpy() == 0).all() for x in again)
    assert (kept.numpy() == 1).all()


def test_what_shares_pages_with_blocks_in_use_does_not_empty_the_cache() -> None:
    """Were it counted as idle, every new block would find more idle than is in use."""
    mg.empty_cache()
    blocks = [mg.zeros((250_000,)) for _ in range(620)]
    kept = blocks[::28]  # one and more on every slab
    del blocks
    for megabytes in (8, 16, 24, 32) * 2:
        mg.zeros((megabytes << 18,))
    before = mg.memory_statistics()["system_allocations"]
    for megabytes in (8, 16, 24, 32) * 5:
        mg.zeros((megabytes << 18,))
    assert mg.memory_statistics()["system_allocations"] == before
    assert all((x.numpy() == 0).all() for x in kept)


def test_a_tied_weight_takes_two_gradients_at_a_time() -> None:
    """Of the output layer, made with the loss, and of the embedding, which their sum lies in."""
    weight = mg.randn((30_000, 64))
    weight.requires_grad = True
    tokens = mg.tensor([3, 1, 4, 1, 5])
    loss = mg.linear_cross_entropy(mg.embedding(weight, tokens), weight, tokens)
    memory.reset_peak_memory()
    before = mg.memory_statistics()["peak_bytes"]
    loss.backward()
    gradient = weight.size * 4
    assert mg.memory_statistics()["peak_bytes"] - before < 1.5 * gradient

    untied = mg.tensor(weight.numpy(), requires_grad=True)
    mg.linear_cross_entropy(mg.embedding(untied, tokens), weight.detach(), tokens).backward()
    head = mg.tensor(weight.numpy(), requires_grad=True)
    mg.linear_cross_entropy(mg.embedding(weight.detach(), tokens), head, tokens).backward()
    assert weight.grad is not None
    assert untied.grad is not None
    assert head.grad is not None
    sums = untied.grad.numpy() + head.grad.numpy()
    np.testing.assert_array_equal(weight.grad.numpy(), sums)


def test_large_arrays_begin_at_one_place_of_their_page() -> None:
    """A line further than what is read, a result costs a sixth more time: see csrc/pool.cpp."""
    sizes = (16 << 10, 20 << 10, 300_000, 786_432, 1 << 20, 5 << 20)
    arrays = [mg.zeros((n,)).numpy() for n in sizes for _ in range(3)]
    assert len({a.ctypes.data % 4096 for a in arrays}) == 1


def resident_bytes() -> int:
    with open("/proc/self/statm") as sizes:
        return int(sizes.read().split()[1]) * resource.getpagesize()
