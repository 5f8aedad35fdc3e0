// Memory counters: 32-byte sectors of global accesses, wavefronts of shared ones.
#include "checks.h"

namespace ptx {

namespace {

// A set of up to 64 numbers, cleared by construction.
struct SmallSet {
    u64 slot[128];
    bool used[128] = {};
    u32 size = 0;
    void add(u64 x) {
        u32 i = (x * 0x9E3779B97F4A7C15ull) >> 57;
        while (used[i] && slot[i] != x) i = (i + 1) & 127;
        if (!used[i]) {
            used[i] = true;
            slot[i] = x;
            ++size;
        }
    }
};

}  // namespace

// Accesses are aligned and at most 32 bytes, so each lies in one sector.
void count_global(Warp& w, const Code* c, u32 mask, const u64* at, u32 bytes) {
    MemoryCount& n = w.block->worker->memory[c->index];
    alignas(64) u64 packed[kLanes];
    u32 lanes = kLanes;
    if (mask != kFull) {
        lanes = 0;
        for (u32 m = mask; m; m &= m - 1) packed[lanes++] = at[first_lane(m)];
        at = packed;
    }
    u64 sectors = 1, places = 1, descents = 0;
    for (u32 i = 1; i < lanes; ++i) {
        u64 x = at[i], last = at[i - 1];
        descents += x < last;
        sectors += (x >> 5) != (last >> 5);
        places += x != last;
    }
    if (descents) {
        SmallSet a, b;
        for (u32 i = 0; i < lanes; ++i) {
            a.add(at[i] >> 5);
            b.add(at[i]);
        }
        sectors = a.size;
        places = b.size;
    }
    ++n.requests;
    n.sectors += sectors;
    n.unique += places * bytes;
    n.ideal += (places * bytes + 31) >> 5;
    n.bytes += u64(lanes) * bytes;
}

// Lanes are served `per_phase` at a time; within a phase a bank gives one word (of 4 bytes, or of
// the access where that is wider) a wavefront.
void count_shared(Warp& w, const Code* c, u32 mask, const u32* offset, u32 bytes, u32 per_phase) {
    MemoryCount& n = w.block->worker->memory[c->index];
    u32 unit_shift = bytes <= 4 ? 2 : bytes == 8 ? 3 : 4;
    u32 banks = 128u >> unit_shift;
    u64 waves = 0, ideal = 0, places = 0;
    u32 phase_mask = per_phase == 32 ? kFull : (1u << per_phase) - 1;
    alignas(64) u32 bank[kLanes];  // a bit each
    for (int l = 0; l < kLanes; ++l)
        bank[l] = (mask >> l & 1) << (offset[l] >> unit_shift & (banks - 1));
    for (u32 start = 0; start < 32; start += per_phase) {
        u32 m = mask & (phase_mask << start);
        if (!m) continue;
        u32 seen = 0, lanes = u32(__builtin_popcount(m));
        for (u32 l = start; l < start + per_phase; ++l) seen |= bank[l];
        if (u32(__builtin_popcount(seen)) == lanes) {  // every lane has a bank of its own
            waves += 1;
            ideal += 1;
            places += lanes;
            continue;
        }
        u32 units[kLanes];
        u8 next[kLanes], head[32], depth[32];
        std::memset(head, 0xFF, banks);
        std::memset(depth, 0, banks);
        u32 deepest = 1, k = 0;
        for (; m; m &= m - 1) {
            u32 unit = offset[first_lane(m)] >> unit_shift;
            u32 b = unit & (banks - 1);
            u8 i = head[b];
            while (i != 0xFF && units[i] != unit) i = next[i];
            if (i != 0xFF) continue;
            units[k] = unit;
            next[k] = head[b];
            head[b] = u8(k++);
            if (++depth[b] > deepest) deepest = depth[b];
        }
        waves += deepest;
        ideal += 1;
        places += k;
    }
    ++n.requests;
    n.sectors += waves;
    n.ideal += ideal;
    n.conflicts += waves - ideal;
    n.unique += places << unit_shift;
    n.bytes += u64(__builtin_popcount(mask)) * bytes;
}

}  // namespace ptx
