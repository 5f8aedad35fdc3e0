// cp.async and mbarriers.
//
// The copies of cp.async read global memory at once and write shared memory when they are waited
// for; until then the bytes are marked pending, so an early read is found although the stale value
// is there. Groups are a thread's own: a group lists the lanes that still wait for it.
#include "async.h"

#include <algorithm>

#include "lanes.h"

namespace ptx {

void in_flight(Block& b, i64 bytes) {
    b.in_flight += u64(bytes);
    if (b.in_flight > b.worker->in_flight_max) b.worker->in_flight_max = b.in_flight;
}

u32 shared_offset(const Code*, int lane, u64 at) {
    u64 high = at >> 32 << 32;
    if (high == kSharedWindow) at -= kSharedWindow;
    if (at >> 32)
        fail(Kind::OUT_OF_BOUNDS, lane, at, "the address " + hex(at) + " is not in shared memory");
    return u32(at);
}

namespace {

// ---- cp.async ----

template <u32 kBytes>
void land(Warp& w, const Copy& copy, u32 lanes) {
    Block& b = *w.block;
    u8* shared = b.shared.data();
    for (u32 m = lanes; m; m &= m - 1) {
        int l = first_lane(m);
        std::memcpy(shared + copy.to[l], copy.data[l], kBytes);
    }
    u8* state = b.state.data();
    for (u32 m = b.checking ? lanes : 0; m; m &= m - 1)
        std::memset(state + copy.to[first_lane(m)], kInit, kBytes);
    u64* writers = b.writers.data();
    const u64 mine = entry_for(b, w.id, copy.instruction, false);
    const U4 entries = {mine, mine, mine, mine};
    for (u32 m = b.racing ? lanes : 0; m; m &= m - 1)
        std::memcpy(writers + (copy.to[first_lane(m)] >> 2), &entries, kBytes / 4 * sizeof(mine));
}

// The common case of a copy: all lanes take 16 bytes each from one array. Whether it was that.
bool read_whole(Warp& w, const Code* c, u32 wanted, const u64* from, Copy& copy) {
    const std::vector<Range>& ranges = w.block->launch->ranges;
    u32 cached = w.block->worker->range_of[c->index];
    if (copy.mask != kFull || copy.bytes != 16 || wanted != kFull || cached >= ranges.size())
        return false;
    const Range& range = ranges[cached];
    if (range.bytes < 16) return false;
    const u64 base = range.base, limit = range.bytes - 16;
    u64 bad = 0;
    for (int l = 0; l < kLanes; ++l) bad |= u64(from[l] - base > limit) | (from[l] & 15);
    if (bad) return false;
    const u8* host = reinterpret_cast<const u8*>(range.host);
    for (int l = 0; l < kLanes; ++l) std::memcpy(copy.data[l], host + (from[l] - base), 16);
    return true;
}

void read_lane(Warp& w, const Code* c, int l, u64 from, u32 wanted, Copy& copy) {
    std::memset(copy.data[l], 0, sizeof(copy.data[l]));
    if (!wanted) return;
    const u8* host = locate_global(w, c, l, from, wanted, copy.bytes, Access::READ);
    std::memcpy(copy.data[l], host, wanted);
}

// Whether all lanes write where they may.
bool targets_fit(const Block& b, const u64* to, u32 bytes) {
    if (b.shared_bytes < bytes) return false;
    const u64 limit = b.shared_bytes - bytes, low = bytes - 1;
    u64 bad = 0;
    for (int l = 0; l < kLanes; ++l) bad |= u64(to[l] > limit) | (to[l] & low);
    return bad == 0;
}

void check_target(Warp& w, int lane, u32 to, u32 bytes) {
    const Block& b = *w.block;
    if (to > b.shared_bytes || b.shared_bytes - to < bytes) {
        fail(Kind::OUT_OF_BOUNDS, lane, to,
             "cp.async writes " + std::to_string(bytes) + " bytes of shared memory at " +
                 std::to_string(to) + "; the block has " + std::to_string(b.shared_bytes) +
                 " bytes");
    }
    if (to & (bytes - 1))
        fail(Kind::MISALIGNED, lane, to,
             "cp.async writes shared memory at " + std::to_string(to) +
                 ", which is not a multiple of " + std::to_string(bytes));
}

const Code* copy_async(Warp& w, const Code* c, u32 mask) {
    Block& b = *w.block;
    u32 bytes = c->n;
    i64 displacement = i32(c->aux);
    bool ignores = c->has(flag::SAT);
    u32 ignored = ignores && c->s[2] != kNone ? predicate(w, c->s[2]) : 0;
    const u32* sizes = !ignores && c->s[2] != kNone ? row<u32>(w, c->s[2]) : nullptr;
    const u64* global = row<u64>(w, c->s[1]);
    alignas(64) u64 to[kLanes], from[kLanes];
    alignas(64) u32 wanted[kLanes];
    addresses(w, c, to);
    alignas(64) i32 all[kLanes], some[kLanes];
    for (int l = 0; l < kLanes; ++l) from[l] = global[l] + u64(displacement);
    for (int l = 0; l < kLanes; ++l) wanted[l] = sizes ? sizes[l] : ignored >> l & 1 ? 0 : bytes;
    for (int l = 0; l < kLanes; ++l) {
        all[l] = wanted[l] == bytes ? -1 : 0;
        some[l] = wanted[l] != 0 ? -1 : 0;
    }
    u32 whole = mask_of(all), reading = mask_of(some);
    Copy& copy = w.open.copies.emplace_back();
    copy.mask = mask;
    copy.bytes = bytes;
    copy.instruction = c->index;
    bool done = read_whole(w, c, whole, from, copy), fit = targets_fit(b, to, bytes);
    for (int l = 0; l < kLanes; ++l) copy.to[l] = u32(to[l]);
    Writes16 writes(w, c);
    for (u32 m = done && fit && !b.checking ? 0 : mask; m; m &= m - 1) {
        int l = first_lane(m);
        if (wanted[l] > bytes)
            fail(Kind::ILLEGAL, l, wanted[l],
                 "cp.async of " + std::to_string(bytes) + " bytes with a source of " +
                     std::to_string(wanted[l]));
        if (!fit) copy.to[l] = shared_offset(c, l, to[l]);
        if (!done) read_lane(w, c, l, from[l], wanted[l], copy);
        if (!fit) check_target(w, l, copy.to[l], bytes);
        if (b.checking && bytes == 16) {
            writes.touch(l, copy.to[l], kPending);
        } else if (b.checking) {
            touch_write(w, c, l, copy.to[l], bytes, kPending);
        }
    }
    w.suspect = Suspect{};
    in_flight(b, i64(bytes) * __builtin_popcount(mask));
    if (b.worker->count_memory && (reading & mask)) count_global(w, c, reading & mask, from, bytes);
    return c + 1;
}

void drop_empty(std::vector<Copy>& copies) {
    auto empty = [](const Copy& copy) { return copy.mask == 0; };
    copies.erase(std::remove_if(copies.begin(), copies.end(), empty), copies.end());
}

void land_for(Warp& w, std::vector<Copy>& copies, u32 lanes) {
    i64 bytes = 0;
    for (Copy& copy : copies) {
        u32 now = copy.mask & lanes;
        (copy.bytes == 16 ? land<16> : copy.bytes == 8 ? land<8> : land<4>)(w, copy, now);
        bytes += i64(copy.bytes) * __builtin_popcount(now);
        copy.mask &= ~lanes;
    }
    drop_empty(copies);
    in_flight(*w.block, -bytes);
}

const Code* commit(Warp& w, const Code* c, u32 mask) {
    CopyGroup group;
    group.mask = mask;
    if (mask == w.live) {
        group.copies.swap(w.open.copies);
        w.open.copies.swap(w.landed);
    } else {
        group.copies = w.open.copies;
        for (Copy& copy : group.copies) copy.mask &= mask;
        for (Copy& copy : w.open.copies) copy.mask &= ~mask;
        drop_empty(group.copies);
        drop_empty(w.open.copies);
    }
    w.groups.push_back(std::move(group));
    return c + 1;
}

// All but the latest `newest` groups of each lane of `mask`.
void wait_groups(Warp& w, u32 mask, u32 newest) {
    alignas(64) u32 seen[kLanes] = {};
    std::vector<u32> ready(w.groups.size());
    for (std::size_t g = w.groups.size(); g-- > 0;) {
        const u32 here = w.groups[g].mask & mask;
        alignas(64) i32 done[kLanes];
        for (int l = 0; l < kLanes; ++l) {
            u32 one = here >> l & 1;
            done[l] = one && seen[l] >= newest ? -1 : 0;
            seen[l] += one;
        }
        ready[g] = mask_of(done);
    }
    for (std::size_t g = 0; g < w.groups.size(); ++g) {  // oldest first: the last write stands
        if (!ready[g]) continue;
        CopyGroup& group = w.groups[g];
        land_for(w, group.copies, ready[g]);
        group.mask &= ~ready[g];
    }
    while (!w.groups.empty() && w.groups.front().mask == 0) {
        w.landed.swap(w.groups.front().copies);
        w.landed.clear();  // copies of lanes that exited before they waited
        w.groups.pop_front();
    }
}

const Code* wait(Warp& w, const Code* c, u32 mask) {
    wait_groups(w, mask, c->imm < 0 ? 0 : u32(c->imm));
    if (c->imm < 0) land_for(w, w.open.copies, mask);
    return c + 1;
}

// The copies land now, in place of some time before the barrier's phase ends.
const Code* arrive_after_copies(Warp& w, const Code* c, u32 mask) {
    wait_groups(w, mask, 0);
    land_for(w, w.open.copies, mask);
    alignas(64) u64 at[kLanes];
    addresses(w, c, at);
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        u32 where = shared_offset(c, l, at[l]);
        if (!c->has(flag::SAT)) {  // without .noinc the arrival is one that was not expected
            u8* p = mbarrier_at(w, c, l, where);
            Mbarrier b = Mbarrier::load(p);
            ++b.pending;
            b.store(p);
        }
        arrive(w, c, l, where, 1, false);
    }
    return c + 1;
}

// ---- mbarrier ----

const Code* mbarrier(Warp& w, const Code* c, u32 mask) {
    Block& block = *w.block;
    MbarOp op = static_cast<MbarOp>(c->sub);
    alignas(64) u64 at[kLanes];
    addresses(w, c, at);
    u32 passed = 0;
    bool waits = op >= MbarOp::TEST_WAIT && op <= MbarOp::TRY_WAIT_PARITY;
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        u32 where = shared_offset(c, l, at[l]);
        auto operand = [&](int k, u32 absent) {
            return c->s[k] == kNone ? absent : row<u32>(w, c->s[k])[l];
        };
        if (op == MbarOp::INIT) {
            u32 count = operand(1, 0);
            if (count == 0 || count > 0xFFFFF)
                fail(Kind::ILLEGAL, l, count,
                     "mbarrier.init with a count of " + std::to_string(count) +
                         "; expected 1 to 2^20 - 1");
            u8* p = locate_shared(w, c, l, where, 8, 8, Access::WRITE);
            w.suspect = Suspect{};
            Mbarrier{count, count, 0, 0}.store(p);
            ++block.events;
            continue;
        }
        u8* p = mbarrier_at(w, c, l, where);
        Mbarrier b = Mbarrier::load(p);
        switch (op) {
            case MbarOp::INVAL:
                if (block.checking) std::memset(block.state.data() + where, 0, 8);
                break;
            case MbarOp::ARRIVE:
            case MbarOp::ARRIVE_DROP:
            case MbarOp::ARRIVE_EXPECT:
                if (c->d[0] != kNone) row<u64>(w, c->d[0])[l] = b.value();
                if (op == MbarOp::ARRIVE_EXPECT) {
                    b.bytes += i32(operand(1, 0));
                    b.store(p);
                }
                arrive(w, c, l, where, operand(op == MbarOp::ARRIVE_EXPECT ? 2 : 1, 1),
                       op == MbarOp::ARRIVE_DROP);
                break;
            case MbarOp::EXPECT_TX:
            case MbarOp::COMPLETE_TX:
                b.bytes += op == MbarOp::EXPECT_TX ? i32(operand(1, 0)) : -i32(operand(1, 0));
                b.settle();
                b.store(p);
                ++block.events;
                break;
            default: {
                bool by_parity = op == MbarOp::TEST_WAIT_PARITY || op == MbarOp::TRY_WAIT_PARITY;
                u32 phase = by_parity ? row<u32>(w, c->s[1])[l] & 1
                                      : Mbarrier::from(row<u64>(w, c->s[1])[l]).phase;
                if (b.phase == phase && complete_bulk_on(block, where)) b = Mbarrier::load(p);
                if (b.phase == phase) break;
                passed |= 1u << l;
                if (block.racing) acquire_clocks(w, block.mbarrier_clocks[where]);
            }
        }
    }
    if (!waits) return c + 1;
    set_predicate(w, c->d[0], mask, passed);
    if (passed == mask) return c + 1;
    return poll_failed(w, c->index + 1);
}

const Code* pending_count(Warp& w, const Code* c, u32 mask) {
    const u64* state = row<u64>(w, c->s[1]);
    fill<u32>(w, c->d[0], mask, [=](int l) { return Mbarrier::from(state[l]).pending; });
    return c + 1;
}

}  // namespace

u8* mbarrier_at(Warp& w, const Code*, int lane, u32 at) {
    Block& b = *w.block;
    if (at > b.shared_bytes || b.shared_bytes - at < 8) {
        fail(Kind::OUT_OF_BOUNDS, lane, at,
             "an mbarrier at " + std::to_string(at) + "; the block has " +
                 std::to_string(b.shared_bytes) + " bytes of shared memory");
    }
    if (at & 7)
        fail(Kind::MISALIGNED, lane, at,
             "an mbarrier at " + std::to_string(at) + ", which is not a multiple of 8");
    if ((b.launch->checks & check::UNINIT) && !(b.state[at] & kInit)) {
        fail(Kind::UNINITIALIZED, lane, at,
             "uses an mbarrier at " + std::to_string(at) + ", which was not initialised");
    }
    return b.shared.data() + at;
}

void arrive(Warp& w, const Code* c, int lane, u32 at, u32 count, bool drop) {
    u8* p = mbarrier_at(w, c, lane, at);
    Mbarrier b = Mbarrier::load(p);
    if (count == 0 || count > b.pending) {
        fail(Kind::BARRIER_MISMATCH, lane, at,
             std::to_string(count) + " arrivals at an mbarrier that waits for " +
                 std::to_string(b.pending) + " of " + std::to_string(b.expected));
    }
    if (w.block->racing) release_clocks(w, w.block->mbarrier_clocks[at]);
    b.pending -= count;
    if (drop) b.expected -= count;
    b.settle();
    b.store(p);
    ++w.block->events;
}

Form resolve_async(const Code& c) {
    std::string at = c.has(flag::A64) ? "2" : "1";
    switch (c.op) {
        case Op::CPASYNC:
            if (c.n != 4 && c.n != 8 && c.n != 16) return {};
            return {copy_async, "--", at + "2" + (c.has(flag::SAT) ? "P" : "A") + "-"};
        case Op::CPASYNC_COMMIT:
            return {commit, "--", "----"};
        case Op::CPASYNC_WAIT:
            return {wait, "--", "----"};
        case Op::CPASYNC_MBAR:
            return {arrive_after_copies, "--", at + "---"};
        default:
            break;
    }
    if (c.sub > static_cast<u8>(MbarOp::PENDING_COUNT)) return {};
    switch (static_cast<MbarOp>(c.sub)) {
        case MbarOp::INIT:
            return {mbarrier, "--", at + "1--"};
        case MbarOp::INVAL:
            return {mbarrier, "--", at + "---"};
        case MbarOp::ARRIVE:
        case MbarOp::ARRIVE_DROP:
        case MbarOp::ARRIVE_EXPECT:
            return {mbarrier, "B-", at + "AA-"};
        case MbarOp::EXPECT_TX:
        case MbarOp::COMPLETE_TX:
            return {mbarrier, "--", at + "1--"};
        case MbarOp::TEST_WAIT:
        case MbarOp::TRY_WAIT:
            return {mbarrier, "P-", at + "2--"};
        case MbarOp::TEST_WAIT_PARITY:
        case MbarOp::TRY_WAIT_PARITY:
            return {mbarrier, "P-", at + "1--"};
        default:
            return {pending_count, "1-", "-2--"};
    }
}

}  // namespace ptx
