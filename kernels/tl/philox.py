"""Random words by logical index: Philox 4×32-10 (Salmon et al. 2011), the same bits as the CPU's in
`csrc/philox.h`: key = seed, counter = (index >> 2, stream), word = index & 3."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox_word(seed, stream, index):
    """The uint32 words of an array of indices (uint64); seed and stream are uint64 scalars."""
    block = index >> 2
    low = (block & 0xFFFFFFFF).to(tl.uint32)
    high = (block >> 32).to(tl.uint32)
    zero = tl.zeros_like(low)
    stream_low = zero + (stream & 0xFFFFFFFF).to(tl.uint32)
    stream_high = zero + (stream >> 32).to(tl.uint32)
    a, b, c, d = tl.philox(seed, low, high, stream_low, stream_high)
    word = index & 3
    return tl.where(word < 2, tl.where(word == 0, a, b), tl.where(word == 2, c, d))
