// Barriers of a block and of a warp.
//
// An arrival counts a whole warp (32 threads) when all of the warp's live lanes arrive, and lanes
// otherwise. A count of none means every warp that has not exited.
#include "lanes.h"

namespace ptx {

void release_clocks(Warp& w, Clocks& to) {
    w.clocks.at[w.id] = w.block->now++;
    to.join(w.clocks);
}

void acquire_clocks(Warp& w, const Clocks& from) {
    w.clocks.join(from);
    u32 safe = ~0u;
    for (std::size_t i = 0; i < w.block->warps.size(); ++i) {
        const Warp& other = w.block->warps[i];
        bool over = other.live == 0 && w.clocks.at[i] >= other.clocks.at[i];
        if (i != w.id && !over && w.clocks.at[i] < safe) safe = w.clocks.at[i];
    }
    if (w.clocks.at[kBulkAgent] < safe && w.block->launch->program->async_shared) {
        safe = w.clocks.at[kBulkAgent];
    }
    w.safe = safe;
}

namespace {

const Code* code_of(const Block& b) { return b.launch->program->code.data(); }

// Whether every live warp has all of its lanes at barrier `id`.
bool everybody_waits(const Block& b, u32 id) {
    for (const Warp& w : b.warps) {
        u32 waiting = 0;
        for (const Split& s : w.others) {
            if (s.wait == Wait::BARRIER && s.wait_on == id) waiting |= s.mask;
        }
        if (waiting != w.live) return false;
    }
    return true;
}

void open_up(Block& b, u32 id) {
    Barrier& barrier = b.barriers[id];
    ++b.events;
    ++b.worker->barriers;
    // Warps that wait with all their lanes have done nothing since they arrived: for all of them
    // the barrier is one moment, up to which `safe` can go.
    for (Warp& w : b.warps) {
        for (const Split& s : w.others) {
            if (s.wait == Wait::BARRIER && s.wait_on == id && s.mask == w.live) {
                w.clocks.at[w.id] = barrier.clocks.at[w.id] = b.now;
            }
        }
    }
    ++b.now;
    for (Warp& w : b.warps) {
        bool waited = false;
        for (Split& s : w.others) {
            if (s.wait != Wait::BARRIER || s.wait_on != id) continue;
            const Code* c = code_of(b) + s.pc;
            waited = true;
            s.wait = Wait::READY;
            ++s.pc;
            switch (static_cast<BarOp>(c->sub)) {
                case BarOp::RED_POPC:
                    fill<u32>(w, c->d[0], s.mask, [&](int) { return barrier.accumulated; });
                    break;
                case BarOp::RED_AND:
                    set_predicate(w, c->d[0], s.mask, barrier.all ? kFull : 0);
                    break;
                case BarOp::RED_OR:
                    set_predicate(w, c->d[0], s.mask, barrier.any ? kFull : 0);
                    break;
                default:
                    break;
            }
        }
        if (waited) acquire_clocks(w, barrier.clocks);
    }
    Clocks clocks = barrier.clocks;  // later users of the barrier come after these
    barrier = Barrier{};
    barrier.clocks = clocks;
}

void settle(Block& b, u32 id) {
    Barrier& barrier = b.barriers[id];
    if (!barrier.open) return;
    bool done = barrier.expected ? barrier.arrived >= barrier.expected : everybody_waits(b, id);
    if (done) open_up(b, id);
}

const Code* bar(Warp& w, const Code* c, u32 mask) {
    Block& b = *w.block;
    const Code* next;
    if (c->has(flag::ALIGNED) && !gather_lanes(w, c, mask, w.live, &next)) return next;
    int lane = first_lane(mask);
    u32 id = row<u32>(w, c->s[0])[lane];
    u32 expected = c->s[1] == kNone ? 0 : row<u32>(w, c->s[1])[lane];
    BarOp op = static_cast<BarOp>(c->sub);
    if (id >= b.barriers.size())
        fail(Kind::ILLEGAL, lane, id, "barrier " + std::to_string(id) + ": there are 16");
    if (expected % 32 != 0 || (op == BarOp::ARRIVE && expected == 0)) {
        fail(Kind::ILLEGAL, lane, id,
             "barrier " + std::to_string(id) + ": " + std::to_string(expected) +
                 " threads; expected a multiple of 32" + (op == BarOp::ARRIVE ? " above 0" : ""));
    }
    Barrier& barrier = b.barriers[id];
    if (!barrier.open) {
        barrier.open = true;
        barrier.expected = expected;
        barrier.instruction = c->index;
    } else if (barrier.expected != expected && (b.launch->checks & check::BARRIER)) {
        throw Fault{Kind::BARRIER_MISMATCH, lane, id,
                    "barrier " + std::to_string(id) + " waits for " +
                        (barrier.expected ? std::to_string(barrier.expected) + " threads"
                                          : std::string("the whole block")) +
                        ", this arrival says " +
                        (expected ? std::to_string(expected) : std::string("the whole block")),
                    barrier.instruction};
    }
    barrier.arrived += mask == w.live ? 32 : __builtin_popcount(mask);
    if (barrier.expected && barrier.arrived > barrier.expected &&
        (b.launch->checks & check::BARRIER)) {
        throw Fault{Kind::BARRIER_MISMATCH, lane, id,
                    "barrier " + std::to_string(id) + " waits for " +
                        std::to_string(barrier.expected) + " threads, " +
                        std::to_string(barrier.arrived) + " have arrived",
                    barrier.instruction};
    }
    if (op >= BarOp::RED_POPC) {
        u32 p = predicate(w, c->s[2]) & mask;
        barrier.accumulated += __builtin_popcount(p);
        barrier.all = barrier.all && p == mask;
        barrier.any = barrier.any || p != 0;
    }
    ++b.events;
    release_clocks(w, barrier.clocks);
    if (op == BarOp::ARRIVE) {
        settle(b, id);
        return c + 1;
    }
    u32 rest = w.active & ~mask;
    w.active = mask;
    std::vector<u32> calls = w.calls;
    suspend(w, c->index, Wait::BARRIER, id);
    if (rest) {  // a guard that holds for some lanes only
        Split s;
        s.pc = c->index + 1;
        s.mask = rest;
        s.calls = std::move(calls);
        w.others.push_back(std::move(s));
        if (c[1].op != Op::LABEL) ++count_of(w, c->index + 1).delta;
    }
    settle(b, id);
    return pick(w);
}

// All lanes named by the mask meet, wherever they wait.
const Code* bar_warp(Warp& w, const Code* c, u32 mask) {
    const u32* masks = row<u32>(w, c->s[0]);
    u32 members = masks[first_lane(mask)], same = 0;
    for (int l = 0; l < kLanes; ++l) same |= u32(masks[l] == members) << l;
    if (mask & ~same) {
        bool complete = true;
        for (u32 m = mask; m; m &= m - 1)
            complete = complete && (masks[first_lane(m)] & w.live & ~mask) == 0;
        if (complete) return c + 1;
        fork(w, c->index, mask & ~same);
        ++count_of(w, c->index).delta;
        mask &= same;
    }
    u32 need = members & w.live;
    if ((need & ~mask) == 0) return c + 1;
    const Code* code = code_of(*w.block);
    u32 here = mask;
    for (const Split& s : w.others) {
        if (s.wait == Wait::SYNC && code[s.pc].op == Op::BARWARP && s.pc != c->index &&
            (s.mask & need))
            here |= s.mask;
    }
    if ((need & ~here) == 0) {
        for (Split& s : w.others) {
            if (s.wait == Wait::SYNC && code[s.pc].op == Op::BARWARP && s.pc != c->index &&
                (s.mask & need)) {
                s.wait = Wait::READY;
                ++s.pc;
            }
        }
        return c + 1;
    }
    const Code* next;
    gather_lanes(w, c, mask, members, &next);
    return next;
}

}  // namespace

void barriers_after_exit(Block& b, Warp& w) {
    if (w.live != 0) {
        for (u32 id = 0; id < b.barriers.size(); ++id) settle(b, id);
        return;
    }
    --b.live_warps;
    // What the warp did comes before whatever the others do after their next barrier.
    Clocks done;
    release_clocks(w, done);
    for (u32 id = 0; id < b.barriers.size(); ++id) {
        b.barriers[id].clocks.join(done);
        if (b.live_warps) settle(b, id);
    }
}

Form resolve_barrier(const Code& c) {
    if (c.op == Op::BARWARP) return {bar_warp, "--", "1---"};
    if (c.sub > static_cast<u8>(BarOp::RED_OR)) return {};
    bool reduces = c.sub >= static_cast<u8>(BarOp::RED_POPC);
    const char* d = c.sub == static_cast<u8>(BarOp::RED_POPC) ? "1-" : reduces ? "p-" : "--";
    return {bar, d, reduces ? "1Ap-" : "1A--"};
}

}  // namespace ptx
