// What is known about each byte and word of a block's shared memory, and the checks made of it.
//
// A byte's state: initialised, the target of an asynchronous copy that was not waited for, or the
// source of one. A word's last writer and reader: stamp << 39 | part of a word << 38 | agent << 32
// | instruction, where the stamp is the block's clock `now` and the agent a warp or the bulk
// copies. An access is ordered after another if it is of the same warp, or if its warp has acquired
// a clock not below the other's stamp (vector clocks over barriers, mbarriers and atomics).
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "machine.h"
#include "numeric.h"

namespace ptx {

constexpr u8 kInit = 1, kPending = 2, kReading = 4;
constexpr u64 kEveryByte = 0x0101010101010101ull;

inline u64 stamp_of(u64 entry) { return entry >> 39; }
inline u32 agent_of(u64 entry) { return entry >> 32 & 63; }
inline u64 entry_for(const Block& b, u32 agent, u32 instruction, bool part) {
    return u64(b.now) << 39 | u64(part) << 38 | u64(agent) << 32 | instruction;
}

[[noreturn]] void report_state(const Warp& w, const Code* c, int lane, u32 at, u32 bytes,
                               bool write);
void report_race(Warp& w, const Code* c, int lane, u32 at, u64 entry, bool write, bool other_write,
                 bool part);

inline bool state_bad(const Block& b, const u8* s, u32 bytes) {
    u64 bad = 0;
    u32 i = 0;
    for (; i + 8 <= bytes; i += 8) {
        u64 x;
        std::memcpy(&x, s + i, 8);
        bad |= (x & b.state_mask) ^ b.state_want;
    }
    for (; i < bytes; ++i) bad |= ((s[i] & b.state_mask) ^ b.state_want) & 0xFF;
    return bad != 0;
}

inline void order(Warp& w, const Code* c, int lane, u32 at, u64 entry, bool write, bool other_write,
                  bool part) {
    u32 agent = agent_of(entry);
    if (agent == w.id || stamp_of(entry) <= w.clocks.at[agent]) return;
    report_race(w, c, lane, at, entry, write, other_write, part);
}

// `lane` is the first of them when an access of several lanes is looked at in one piece.
inline void touch_read(Warp& w, const Code* c, int lane, u32 at, u32 bytes) {
    Block& b = *w.block;
    if (state_bad(b, b.state.data() + at, bytes)) report_state(w, c, lane, at, bytes, false);
    if (!b.racing) return;
    bool part = (bytes | at) & 3;
    u64 mine = entry_for(b, w.id, c->index, part);
    u32 first = at >> 2, last = (at + bytes - 1) >> 2;
    u64 safe = (u64(w.safe) + 1) << 39;
    u64 newest = 0;
    for (u32 i = first; i <= last; ++i) newest = b.writers[i] > newest ? b.writers[i] : newest;
    if (newest >= safe) {
        for (u32 i = first; i <= last; ++i) {
            if (b.writers[i] >= safe) order(w, c, lane, i * 4, b.writers[i], false, true, part);
        }
    }
    for (u32 i = first; i <= last; ++i) b.readers[i] = mine;
}

// The common cases in few instructions: 16 aligned bytes.

typedef u64 U2 __attribute__((vector_size(16)));
typedef u64 U4 __attribute__((vector_size(32)));

template <class V>
PTX_INLINE V load_vector(const void* p) {
    V x;
    std::memcpy(&x, p, sizeof(x));
    return x;
}
PTX_INLINE bool any(U4 x) {
#if defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)x, (__m256i)x);
#else
    return (x[0] | x[1] | x[2] | x[3]) != 0;
#endif
}

inline void touch_read16(Warp& w, const Code* c, u32 mask, const u32* at) {
    Block& b = *w.block;
    const u8* state = b.state.data();
    u64 want = b.state_want, look = b.state_mask;
    U2 bad{};
    if (!b.racing) {
        for (u32 m = mask; m; m &= m - 1)
            bad |= (load_vector<U2>(state + at[first_lane(m)]) & look) ^ want;
    } else {
        u64 safe = (u64(w.safe) + 1) << 39, mine = entry_for(b, w.id, c->index, false);
        const u64* writers = b.writers.data();
        u64* readers = b.readers.data();
        const U4 entries = {mine, mine, mine, mine};
        U4 fresh{};
        for (u32 m = mask; m; m &= m - 1) {
            u32 x = at[first_lane(m)];
            bad |= (load_vector<U2>(state + x) & look) ^ want;
            fresh |= (U4)(load_vector<U4>(writers + (x >> 2)) >= safe);
            std::memcpy(readers + (x >> 2), &entries, sizeof(entries));
        }
        bad[0] |= any(fresh);
    }
    // Something may be wrong: each lane is looked at on its own.
    for (u32 m = __builtin_expect((bad[0] | bad[1]) != 0, 0) ? mask : 0; m; m &= m - 1)
        touch_read(w, c, first_lane(m), at[first_lane(m)], 16);
}

inline void touch_write(Warp& w, const Code* c, int lane, u32 at, u32 bytes, u8 set = kInit) {
    Block& b = *w.block;
    u8* s = b.state.data() + at;
    u8 seen = 0;
    for (u32 i = 0; i < bytes; ++i) seen |= s[i];
    if (seen & (kPending | kReading)) report_state(w, c, lane, at, bytes, true);
    for (u32 i = 0; i < bytes; ++i) s[i] |= set;
    if (!b.racing) return;
    bool part = (bytes | at) & 3;
    u64 mine = entry_for(b, w.id, c->index, part);
    u32 first = at >> 2, last = (at + bytes - 1) >> 2;
    u64 safe = (u64(w.safe) + 1) << 39;
    u64 newest = 0;
    for (u32 i = first; i <= last; ++i) {
        u64 x = b.writers[i] > b.readers[i] ? b.writers[i] : b.readers[i];
        newest = x > newest ? x : newest;
    }
    if (newest >= safe) {
        for (u32 i = first; i <= last; ++i) {
            if (b.writers[i] >= safe) order(w, c, lane, i * 4, b.writers[i], true, true, part);
            if (w.suspect.instruction != kNone) return;
            if (b.readers[i] >= safe) order(w, c, lane, i * 4, b.readers[i], true, false, part);
        }
    }
    for (u32 i = first; i <= last; ++i) b.writers[i] = mine;
}

// Writes of 16 aligned bytes by the lanes of one instruction.
struct Writes16 {
    Warp& w;
    const Code* c;
    u8* state;
    u64* writers;
    const u64* readers;
    bool racing;
    u64 safe, mine;

    Writes16(Warp& w, const Code* c)
        : w(w),
          c(c),
          state(w.block->state.data()),
          writers(w.block->writers.data()),
          readers(w.block->readers.data()),
          racing(w.block->racing),
          safe((u64(w.safe) + 1) << 39),
          mine(entry_for(*w.block, w.id, c->index, false)) {}

    void touch(int lane, u32 at, u8 set = kInit) const {
        U2 s = load_vector<U2>(state + at), held = s & (kPending | kReading) * kEveryByte;
        if ((held[0] | held[1]) != 0) report_state(w, c, lane, at, 16, true);
        if (racing) {
            U4 last = load_vector<U4>(writers + (at >> 2)),
               read = load_vector<U4>(readers + (at >> 2));
            if (any((U4)(last >= safe) | (U4)(read >= safe)))
                return touch_write(w, c, lane, at, 16, set);
            const U4 entries = {mine, mine, mine, mine};
            std::memcpy(writers + (at >> 2), &entries, sizeof(entries));
        }
        s |= set * kEveryByte;
        std::memcpy(state + at, &s, sizeof(s));
    }
};

// ---- addresses ----

enum class Access : u8 { READ, WRITE, ATOMIC };

// Where the lanes of a memory instruction point: host addresses, checked and counted.
struct Located {
    u8* at[kLanes];
    bool contiguous;  // all 32 lanes, one after the other
};
void addresses(const Warp& w, const Code* c, u64* at);
void locate(Warp& w, const Code* c, u32 mask, u64* at, u32 bytes, Access access, Located* out);
// One access of a lane, for what is no plain load or store.
u8* locate_global(Warp& w, const Code* c, int lane, u64 at, u64 bytes, u32 align, Access access);
u8* locate_shared(Warp& w, const Code* c, int lane, u64 at, u32 bytes, u32 align, Access access);
// Sixteen aligned bytes of shared memory for each lane of `mask`, from its address (32 or 64 bits)
// to its offset there; the two may be one array.
template <class A>
void locate_shared16(Warp& w, const Code* c, u32 mask, const A* at, Access access, u32* offset);
void count_shared(Warp& w, const Code* c, u32 mask, const u32* offset, u32 bytes, u32 per_phase);
void count_global(Warp& w, const Code* c, u32 mask, const u64* at, u32 bytes);

}  // namespace ptx
