#include "checks.h"

namespace ptx {

std::string hex(u64 value) {
    char text[24];
    std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

void report_state(const Warp& w, const Code*, int lane, u32 at, u32 bytes, bool write) {
    const Block& b = *w.block;
    for (u32 i = at; i < at + bytes; ++i) {
        u8 s = b.state[i];
        std::string where = "shared memory at " + std::to_string(i);
        if (s & kPending) {
            fail(Kind::PENDING, lane, i,
                 std::string(write ? "writes" : "reads") + " " + where +
                     ", which an asynchronous copy that was not waited for is writing");
        }
        if (write && (s & kReading)) {
            fail(Kind::PENDING, lane, i,
                 "writes " + where +
                     ", which an asynchronous operation that was not waited for is reading");
        }
        if (!write && !(s & kInit) && (b.launch->checks & check::UNINIT)) {
            fail(Kind::UNINITIALIZED, lane, i, "reads " + where + ", which nothing has written");
        }
    }
    // Reached when a write's flags changed in between; nothing is wrong then.
    fail(Kind::PENDING, lane, at, "accesses shared memory that an asynchronous operation holds");
}

void report_race(Warp& w, const Code*, int lane, u32 at, u64 entry, bool write, bool other_write,
                 bool part) {
    if (part && (entry >> 38 & 1)) return;  // maybe different parts of one word
    u32 other = static_cast<u32>(entry);
    if (write && other_write) {
        if (w.suspect.instruction == kNone) w.suspect = {other, agent_of(entry), lane, at};
        return;
    }
    std::string who =
        agent_of(entry) == kBulkAgent ? "a bulk copy" : "warp " + std::to_string(agent_of(entry));
    throw Fault{Kind::RACE, lane, at,
                std::string(write ? "writes" : "reads") + " shared memory at " +
                    std::to_string(at) + ", which " + who + (other_write ? " wrote" : " read") +
                    " with no barrier in between",
                other};
}

// ---- addresses ----

void addresses(const Warp& w, const Code* c, u64* at) {
    u64 shift = static_cast<u64>(c->imm);
    if (c->has(flag::A64)) {
        const u64* a = row<u64>(w, c->s[0]);
        for (int l = 0; l < kLanes; ++l) at[l] = a[l] + shift;
    } else {
        const u32* a = row<u32>(w, c->s[0]);
        u32 small = static_cast<u32>(shift);
        for (int l = 0; l < kLanes; ++l) at[l] = a[l] + small;
    }
}

namespace {

[[noreturn]] void out_of_bounds(const Warp& w, int lane, u64 at, u64 bytes, Access access) {
    const Launch& launch = *w.block->launch;
    std::string what = access == Access::READ    ? "reads "
                       : access == Access::WRITE ? "writes "
                                                 : "updates ";
    what += std::to_string(bytes) + " bytes at " + hex(at);
    const Range* below = nullptr;
    for (const Range& r : launch.ranges) {
        if (r.base <= at) below = &r;
    }
    if (at < 4096) {
        what += ": a null pointer";
    } else if (below && at >= below->base + below->bytes &&
               at - below->base - below->bytes < (1u << 16)) {
        what += ": " + std::to_string(at - below->base - below->bytes) +
                " bytes beyond the end of array " + std::to_string(below->id) + " (" +
                std::to_string(below->bytes) + " bytes)";
    } else if (below && at < below->base + below->bytes) {
        what += ": over the end of array " + std::to_string(below->id) + " (" +
                std::to_string(below->bytes) + " bytes)";
    } else {
        for (const Range& r : launch.ranges) {
            if (r.base > at && r.base - at < (1u << 16)) {
                what += ": " + std::to_string(r.base - at) + " bytes before array " +
                        std::to_string(r.id);
                fail(Kind::OUT_OF_BOUNDS, lane, at, what);
            }
        }
        what += ": in none of the arrays that were passed";
    }
    fail(Kind::OUT_OF_BOUNDS, lane, at, what);
}

[[noreturn]] void misaligned(int lane, u64 at, u64 align, const char* space) {
    fail(Kind::MISALIGNED, lane, at,
         "accesses " + std::string(space) + " memory at " + hex(at) +
             ", which is not a multiple of " + std::to_string(align));
}

const Range* range_of(const Warp& w, u32 instruction, u64 at, u64 bytes) {
    const Launch& launch = *w.block->launch;
    u32& cached = w.block->worker->range_of[instruction];
    const std::vector<Range>& ranges = launch.ranges;
    if (cached < ranges.size()) {
        const Range& r = ranges[cached];
        if (at - r.base <= r.bytes && r.bytes - (at - r.base) >= bytes) return &r;
    }
    std::size_t low = 0, high = ranges.size();
    while (low < high) {
        std::size_t mid = (low + high) / 2;
        if (ranges[mid].base <= at) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    if (low == 0) return nullptr;
    const Range& r = ranges[low - 1];
    if (at - r.base > r.bytes || r.bytes - (at - r.base) < bytes) return nullptr;
    cached = static_cast<u32>(low - 1);
    return &r;
}

inline void shared_bounds(const Warp& w, int lane, u64 at, u64 bytes, u64 align, Access access) {
    u64 size = w.block->shared_bytes;
    if (__builtin_expect(at > size || size - at < bytes, 0)) {
        std::string verb = access == Access::READ ? "reads " : "writes ";
        fail(Kind::OUT_OF_BOUNDS, lane, at,
             verb + std::to_string(bytes) + " bytes of shared memory at " + std::to_string(at) +
                 "; the block has " + std::to_string(size) + " bytes");
    }
    if (at & (align - 1)) misaligned(lane, at, align, "shared");
}

bool is_contiguous(const u64* at, u32 bytes) {
    u64 bad = 0, first = at[0];
    for (int l = 0; l < kLanes; ++l) bad |= at[l] ^ (first + u64(l) * bytes);
    return bad == 0;
}

void locate_all_global(Warp& w, const Code* c, u32 mask, const u64* at, u32 bytes, Access access,
                       Located* out) {
    if (mask == kFull && is_contiguous(at, bytes)) {
        const Range* r = range_of(w, c->index, at[0], u64(bytes) * kLanes);
        if (r && (at[0] & (bytes - 1)) == 0 && !(access != Access::READ && (r->flags & 1))) {
            u8* host = reinterpret_cast<u8*>(r->host) + (at[0] - r->base);
            for (int l = 0; l < kLanes; ++l) out->at[l] = host + l * bytes;
            out->contiguous = true;
            if (w.block->worker->count_memory) {
                MemoryCount& n = w.block->worker->memory[c->index];
                u64 total = u64(bytes) * kLanes,
                    sectors = ((at[0] + total - 1) >> 5) - (at[0] >> 5) + 1;
                ++n.requests;
                n.sectors += sectors;
                n.unique += total;
                n.ideal += total >> 5 ? total >> 5 : 1;
                n.bytes += total;
            }
            return;
        }
    }
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        out->at[l] = locate_global(w, c, l, at[l], bytes, bytes, access);
    }
    if (w.block->worker->count_memory) count_global(w, c, mask, at, bytes);
}

void locate_all_shared(Warp& w, const Code* c, u32 mask, const u64* at, u32 bytes, Access access,
                       Located* out) {
    Block& b = *w.block;
    u8* base = b.shared.data();
    if (mask == kFull && is_contiguous(at, bytes)) {
        u64 total = u64(bytes) * kLanes;
        if (at[0] <= b.shared_bytes && b.shared_bytes - at[0] >= total &&
            (at[0] & (bytes - 1)) == 0) {
            if (b.checking) {
                if (access != Access::WRITE) touch_read(w, c, 0, u32(at[0]), u32(total));
                if (access != Access::READ) touch_write(w, c, 0, u32(at[0]), u32(total));
            }
            for (int l = 0; l < kLanes; ++l) out->at[l] = base + at[0] + l * bytes;
            out->contiguous = true;
            if (b.worker->count_memory) {
                MemoryCount& n = b.worker->memory[c->index];
                u64 waves = (total + 127) >> 7;
                ++n.requests;
                n.sectors += waves;
                n.ideal += waves;
                n.unique += total;
                n.bytes += total;
            }
            return;
        }
    }
    alignas(64) u32 offset[kLanes] = {};
    if (bytes == 16) {
        locate_shared16(w, c, mask, at, access, offset);
    } else {
        for (u32 m = mask; m; m &= m - 1) {
            int l = first_lane(m);
            shared_bounds(w, l, at[l], bytes, bytes, access);
            offset[l] = u32(at[l]);
            if (!b.checking) continue;
            if (access != Access::WRITE) touch_read(w, c, l, offset[l], bytes);
            if (access != Access::READ) touch_write(w, c, l, offset[l], bytes);
        }
    }
    for (u32 m = mask; m; m &= m - 1) out->at[first_lane(m)] = base + offset[first_lane(m)];
    if (b.worker->count_memory) {
        count_shared(w, c, mask, offset, bytes, bytes <= 4 ? 32 : bytes == 8 ? 16 : 8);
    }
}

}  // namespace

u8* locate_global(Warp& w, const Code* c, int lane, u64 at, u64 bytes, u32 align, Access access) {
    const Range* r = range_of(w, c->index, at, bytes);
    if (!r) out_of_bounds(w, lane, at, bytes, access);
    if (at & (align - 1)) misaligned(lane, at, align, "global");
    if (access != Access::READ && (r->flags & 1)) {
        fail(Kind::READ_ONLY, lane, at,
             "writes " + hex(at) + " in array " + std::to_string(r->id) + ", which is read-only");
    }
    return reinterpret_cast<u8*>(r->host) + (at - r->base);
}

u8* locate_shared(Warp& w, const Code* c, int lane, u64 at, u32 bytes, u32 align, Access access) {
    Block& b = *w.block;
    shared_bounds(w, lane, at, bytes, align, access);
    if (b.checking) {
        if (access != Access::WRITE) touch_read(w, c, lane, u32(at), bytes);
        if (access != Access::READ) touch_write(w, c, lane, u32(at), bytes);
    }
    return b.shared.data() + at;
}

template <class A>
void locate_shared16(Warp& w, const Code* c, u32 mask, const A* at, Access access, u32* offset) {
    Block& b = *w.block;
    const A limit = b.shared_bytes >= 16 ? b.shared_bytes - 16 : 0;
    A bad = b.shared_bytes < 16;
    // All lanes, as that vectorises: those outside of the mask only make it look closer.
    for (int l = 0; l < kLanes; ++l) bad |= A(at[l] > limit) | (at[l] & 15);
    for (u32 m = bad ? mask : 0; m; m &= m - 1)
        shared_bounds(w, first_lane(m), at[first_lane(m)], 16, 16, access);
#pragma GCC ivdep
    for (int l = 0; l < kLanes; ++l) offset[l] = u32(at[l]);
    if (!b.checking) return;
    if (access != Access::WRITE) touch_read16(w, c, mask, offset);
    if (access == Access::READ) return;
    Writes16 writes(w, c);
    for (u32 m = mask; m; m &= m - 1) writes.touch(first_lane(m), offset[first_lane(m)]);
}
template void locate_shared16(Warp&, const Code*, u32, const u32*, Access, u32*);
template void locate_shared16(Warp&, const Code*, u32, const u64*, Access, u32*);

void locate(Warp& w, const Code* c, u32 mask, u64* at, u32 bytes, Access access, Located* out) {
    out->contiguous = false;
    const Launch& launch = *w.block->launch;
    switch (c->space) {
        case Space::GLOBAL:
        case Space::CONST:
            locate_all_global(w, c, mask, at, bytes, access, out);
            return;
        case Space::SHARED:
            locate_all_shared(w, c, mask, at, bytes, access, out);
            return;
        case Space::LOCAL: {
            u64 size = launch.program->local_bytes;
            for (u32 m = mask; m; m &= m - 1) {
                int l = first_lane(m);
                if (at[l] > size || size - at[l] < bytes) {
                    fail(Kind::OUT_OF_BOUNDS, l, at[l],
                         "accesses local memory at " + std::to_string(at[l]) + "; a thread has " +
                             std::to_string(size) + " bytes");
                }
                if (at[l] & (bytes - 1)) misaligned(l, at[l], bytes, "local");
                out->at[l] = w.local.data() + l * size + at[l];
            }
            return;
        }
        case Space::PARAM:
            for (u32 m = mask; m; m &= m - 1) {
                int l = first_lane(m);
                u64 size = launch.params.size();
                if (at[l] > size || size - at[l] < bytes) {
                    fail(Kind::OUT_OF_BOUNDS, l, at[l],
                         "reads the parameters at " + std::to_string(at[l]) + "; there are " +
                             std::to_string(size) + " bytes");
                }
                if (access != Access::READ)
                    fail(Kind::READ_ONLY, l, at[l], "writes a parameter of the kernel");
                out->at[l] = const_cast<u8*>(launch.params.data()) + at[l];
            }
            return;
        default:
            break;
    }
    // Generic: lanes that point into one window together, each kind in turn.
    Located part;
    Code view = *c;
    for (Space space : {Space::GLOBAL, Space::SHARED, Space::LOCAL, Space::PARAM}) {
        u64 window = space == Space::SHARED  ? kSharedWindow
                     : space == Space::LOCAL ? kLocalWindow
                     : space == Space::PARAM ? kParamWindow
                                             : 0;
        u32 here = 0;
        alignas(64) u64 inner[kLanes] = {};
        for (u32 m = mask; m; m &= m - 1) {
            int l = first_lane(m);
            u64 high = at[l] >> 32 << 32;
            bool windowed = high == kSharedWindow || high == kLocalWindow || high == kParamWindow;
            if (space == Space::GLOBAL ? windowed : high != window) continue;
            here |= 1u << l;
            inner[l] = at[l] - window;
        }
        if (!here) continue;
        view.space = space;
        locate(w, &view, here, inner, bytes, access, &part);
        for (u32 m = here; m; m &= m - 1) out->at[first_lane(m)] = part.at[first_lane(m)];
        if (here == mask) out->contiguous = part.contiguous;
    }
}

}  // namespace ptx
