// Which warp of a block runs when: in turn, each until it waits or its turn ends.
#include "schedule.h"

#include <algorithm>

namespace ptx {

void stop(const Block& b, const Warp& w, i64 instruction, Fault f) {
    Report r;
    r.kind = f.kind;
    r.instruction = instruction;
    for (int i = 0; i < 3; ++i) r.block[i] = b.at[i];
    r.block_rank = b.rank;
    r.warp = int(w.id);
    r.lane = f.lane;
    r.address = f.address;
    r.other = f.other;
    r.message = std::move(f.message);
    throw Stopped{std::move(r)};
}

namespace {

constexpr i64 kTurn = 20000;  // warp instructions, so that polling warps cannot starve others
constexpr u32 kPollsPerSlice = 1024;  // of a block, before others get a slice
constexpr u32 kIdleRounds = 64;

template <bool kCount>
void run_splits(Warp& w, const Code*& c) {
    while (c != nullptr) {
        u32 mask = w.active;
        if (c->guard) {
            mask &= predicate(w, c->guard);
            if (kCount && mask) {
                Count& n = count_of(w, c->index);
                ++n.exec;
                n.lanes += __builtin_popcount(mask);
            }
            if (!mask) {
                ++c;
                continue;
            }
        }
        const Code* next = c->run(w, c, mask);
        if (next == nullptr && !w.over) next = pick(w);
        c = next;
    }
}

// A warp that has lanes parked and none that can go on: which mistake is it?
void judge_parked(Block& b, Warp& w) {
    const Code* code = b.launch->program->code.data();
    const Split* at = nullptr;
    for (const Split& s : w.others) {
        if (s.wait != Wait::SYNC) return;
        if (!at || (code[s.pc].op == Op::BAR && code[at->pc].op != Op::BAR)) at = &s;
    }
    if (!at) return;
    const Code& c = code[at->pc];
    bool barrier = c.op == Op::BAR;
    std::string message = barrier ? "only the lanes " + hex(at->mask) + " of the live lanes " +
                                        hex(w.live) + " of the warp reach this barrier"
                                  : "waits for lanes that never come: lanes " + hex(at->mask) +
                                        " are here, of the live lanes " + hex(w.live);
    if (barrier && !(b.launch->checks & check::BARRIER)) return;
    stop(b, w, at->pc,
         Fault{barrier ? Kind::DIVERGENT_BARRIER : Kind::SYNC_MASK, first_lane(at->mask), 0,
               message});
}

void turn(Block& b, Warp& w) {
    const Launch& launch = *b.launch;
    w.budget = launch.seed ? 1 + b.worker->random.below(kTurn / 8) : kTurn;
    i64 before = w.budget;
    w.waived = 0;
    w.over = false;
    w.idle = false;
    const Code* c = pick(w);
    if (c == nullptr) return;
    try {
        if (launch.counts & count::EXEC) {
            run_splits<true>(w, c);
        } else {
            run_splits<false>(w, c);
        }
    } catch (Fault& f) {
        stop(b, w, c->index, std::move(f));
    }
    u64 used = u64(std::max<i64>(1, before - w.budget - w.waived));
    b.steps += used;
    if (b.steps > launch.limits.steps) {
        u32 pc = w.others.empty() ? 0 : w.others.back().pc;
        stop(b, w, pc,
             Fault{Kind::STEP_LIMIT, w.live ? first_lane(w.live) : 0, 0,
                   "the block has run for more than " + std::to_string(launch.limits.steps) +
                       " warp instructions"});
    }
    if (w.live) judge_parked(b, w);
}

bool ready(const Warp& w) {
    for (const Split& s : w.others) {
        if (s.wait == Wait::READY) return true;
    }
    return false;
}

[[noreturn]] void deadlock(Block& b) {
    const Code* code = b.launch->program->code.data();
    Warp* first = nullptr;
    std::string who;
    u32 pc = 0;
    int lane = 0;
    u32 listed = 0;
    for (Warp& w : b.warps) {
        for (const Split& s : w.others) {
            if (!first || (code[s.pc].op == Op::BAR && code[pc].op != Op::BAR)) {
                first = &w;
                pc = s.pc;
                lane = first_lane(s.mask);
            }
            if (listed++ < 8) {
                who += (who.empty() ? "" : "; ") + std::string("warp ") + std::to_string(w.id) +
                       " waits at instruction " + std::to_string(s.pc);
                if (s.wait == Wait::BARRIER) who += " (barrier " + std::to_string(s.wait_on) + ")";
            }
        }
    }
    stop(b, *first, pc, Fault{Kind::DEADLOCK, lane, 0, "no warp of the block can go on: " + who});
}

}  // namespace

bool run_block(Block& b) {
    u32 idle_rounds = 0;
    Random& random = b.worker->random;
    while (b.live_warps) {
        bool progress = false;
        std::size_t n = b.warps.size();
        std::size_t offset = b.launch->seed ? random.below(u32(n)) : 0;
        for (std::size_t i = 0; i < n; ++i) {
            Warp& w = b.warps[(i + offset) % n];
            if (!w.live || !ready(w)) continue;
            turn(b, w);
            progress = progress || !w.idle;
        }
        if (progress) {
            idle_rounds = 0;
        } else if (complete_bulk(b)) {
            idle_rounds = 0;
        } else {
            bool any = false;
            for (const Warp& w : b.warps) any = any || (w.live && ready(w));
            if (b.live_warps && (!any || ++idle_rounds > kIdleRounds)) deadlock(b);
        }
        if (b.polls > kPollsPerSlice && b.launch->program->ordered && b.live_warps) {
            b.polls = 0;
            return false;
        }
    }
    finish_bulk(b);
    b.worker->steps += b.steps;
    return true;
}

}  // namespace ptx
