// Memory barriers in shared memory, and bulk copies that complete on them.
#pragma once

#include "checks.h"

namespace ptx {

// An mbarrier object is 8 bytes of shared memory: pending arrivals (bits 0–19), expected arrivals
// (20–39), bytes still to come (40–62, signed), parity of the current phase (63). The phase ends
// when nothing is pending and nothing is to come.
struct Mbarrier {
    u32 pending, expected;
    i32 bytes;
    u32 phase;

    static Mbarrier load(const u8* p) {
        u64 x;
        std::memcpy(&x, p, 8);
        return from(x);
    }
    static Mbarrier from(u64 x) {
        return {u32(x & 0xFFFFF), u32(x >> 20 & 0xFFFFF), i32(u32(x >> 40) << 9) >> 9,
                u32(x >> 63)};
    }
    u64 value() const {
        return u64(pending) | u64(expected) << 20 | (u64(u32(bytes)) & 0x7FFFFF) << 40 |
               u64(phase) << 63;
    }
    void store(u8* p) const {
        u64 x = value();
        std::memcpy(p, &x, 8);
    }
    void settle() {
        if (pending != 0 || bytes != 0) return;
        phase ^= 1;
        pending = expected;
    }
};

// The offset in shared memory of an address in a shared or generic register.
u32 shared_offset(const Code* c, int lane, u64 at);
// Checks that an mbarrier lies at `at`, and gives its memory.
u8* mbarrier_at(Warp& w, const Code* c, int lane, u32 at);
void arrive(Warp& w, const Code* c, int lane, u32 at, u32 count, bool drop);

// Adds to what is in flight; takes away again when it has arrived.
void in_flight(Block& b, i64 bytes);

}  // namespace ptx
