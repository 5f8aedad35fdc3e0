// Control flow: branches, calls, exits, and the splits of a warp whose lanes have diverged.
//
// A warp is a list of splits (pc, lanes). The one with the lowest rank in reverse post order runs
// first; splits at the same place merge at the next LABEL. A split that keeps branching backwards
// while others wait gives way after kBackEdges, for kLease labels: spin locks need that.
#include "resolve.h"

namespace ptx {
namespace {

constexpr u32 kBackEdges = 32;
constexpr u32 kLease = 64;

const Code* code_of(const Warp& w) { return w.block->launch->program->code.data(); }

bool same_calls(const std::vector<u32>& a, const std::vector<u32>& b) { return a == b; }

void wake_parked(Warp& w) {
    for (Split& s : w.others) {
        if (s.wait == Wait::SYNC) s.wait = Wait::READY;
    }
}

}  // namespace

void fork(Warp& w, u32 pc, u32 mask) {
    Split s;
    s.pc = pc;
    s.mask = mask;
    s.calls = w.calls;
    s.last_run = w.ticks;
    w.others.push_back(std::move(s));
    w.active &= ~mask;
    w.diverged = true;
}

namespace {

const Code* label(Warp& w, const Code* c, u32) {
    if (w.budget <= 0) {
        suspend(w, c->index, Wait::READY, 0);
        w.over = true;
        return nullptr;
    }
    if (w.diverged) {
        if (w.lease > 0) {
            --w.lease;
        } else {
            suspend(w, c->index, Wait::READY, 0);
            const Code* next = pick(w);
            if (next != c) return next;
        }
    }
    w.budget -= c->length;
    Count& n = count_of(w, c->index);
    ++n.exec;
    n.lanes += __builtin_popcount(w.active);
    return c + 1;
}

const Code* jump(Warp& w, const Code* from, u32 target) {
    const Code* to = code_of(w) + target;
    if (w.diverged && to->order <= from->order && ++w.back_edges >= kBackEdges) {
        w.back_edges = 0;
        Random& random = w.block->worker->random;
        suspend(w, target, Wait::READY, 0);
        // The one that has waited longest, in place of the lowest.
        Split* oldest = nullptr;
        for (Split& s : w.others) {
            if (s.wait == Wait::READY && (!oldest || s.last_run < oldest->last_run)) oldest = &s;
        }
        w.lease = w.block->launch->seed ? 1 + random.below(2 * kLease) : kLease;
        Split s = std::move(*oldest);
        w.others.erase(w.others.begin() + (oldest - w.others.data()));
        w.active = s.mask;
        w.calls = std::move(s.calls);
        w.diverged = !w.others.empty();
        return code_of(w) + s.pc;
    }
    return to;
}

const Code* branch(Warp& w, const Code* c, u32 mask) {
    if (mask == w.active) return jump(w, c, c->target);
    fork(w, c->target, mask);
    return c + 1;
}

const Code* branch_indexed(Warp& w, const Code* c, u32 mask) {
    const u32* index = row<u32>(w, c->s[0]);
    bool all = mask == w.active;
    u32 left = mask;
    while (left) {
        int l = first_lane(left);
        u32 same = 0;
        for (u32 m = left; m; m &= m - 1) {
            int k = first_lane(m);
            if (index[k] == index[l]) same |= 1u << k;
        }
        if (index[l] >= c->n_list)
            fail(Kind::ILLEGAL, l, index[l], "brx.idx beyond its table of targets");
        if (all && same == left) return jump(w, c, c->list[index[l]]);
        fork(w, c->list[index[l]], same);
        left &= ~same;
    }
    return c + 1;
}

const Code* call(Warp& w, const Code* c, u32 mask) {
    if (mask != w.active) {
        fork(w, c->index + 1, w.active & ~mask);
    }
    if (w.calls.size() >= w.block->launch->limits.nesting) {
        fail(Kind::NESTING_LIMIT, first_lane(mask), 0,
             "calls nest deeper than the limit of " +
                 std::to_string(w.block->launch->limits.nesting));
    }
    w.calls.push_back(c->index + 1);
    return code_of(w) + c->target;
}

const Code* exit_lanes(Warp& w, const Code* c, u32 mask) {
    w.live &= ~mask;
    w.active &= ~mask;
    wake_parked(w);
    ++w.block->events;
    barriers_after_exit(*w.block, w);
    if (w.active) return c + 1;
    w.calls.clear();
    return pick(w);
}

const Code* ret(Warp& w, const Code* c, u32 mask) {
    if (w.calls.empty()) return exit_lanes(w, c, mask);
    if (mask != w.active) fork(w, c->index + 1, w.active & ~mask);
    u32 back = w.calls.back();
    w.calls.pop_back();
    return code_of(w) + back;
}

const Code* trap(Warp&, const Code* c, u32 mask) {
    fail(Kind::TRAP, first_lane(mask), 0, c->op == Op::BRKPT ? "brkpt executed" : "trap executed");
}

const Code* nothing(Warp&, const Code* c, u32) { return c + 1; }

// Sleeping gives the other warps, and the other lanes, their turn.
const Code* sleep(Warp& w, const Code* c, u32) {
    polled(w, 16);
    return c + 1;
}

// Two blocks of a cluster of one meet at once.
const Code* cluster_barrier(Warp& w, const Code* c, u32) {
    ++w.block->events;
    return c + 1;
}

}  // namespace

void suspend(Warp& w, u32 pc, Wait wait, u32 wait_on) {
    Split s;
    s.pc = pc;
    s.mask = w.active;
    s.wait = wait;
    s.wait_on = wait_on;
    s.last_run = ++w.ticks;
    s.calls = std::move(w.calls);
    w.calls.clear();
    w.others.push_back(std::move(s));
    w.active = 0;
}

const Code* pick(Warp& w) {
    const Code* code = code_of(w);
    Split* best = nullptr;
    if (w.others.size() > 1 && w.block->launch->seed) {
        // Any of those that can go on, now and then: only the order of lowest rank makes them meet.
        u32 ready = 0;
        for (Split& s : w.others) ready += s.wait == Wait::READY;
        Random& random = w.block->worker->random;
        if (ready > 1 && random.below(8) == 0) {
            u32 chosen = random.below(ready);
            for (Split& s : w.others) {
                if (s.wait == Wait::READY && chosen-- == 0) best = &s;
            }
        }
    }
    if (!best) {
        for (Split& s : w.others) {
            if (s.wait != Wait::READY) continue;
            if (!best || code[s.pc].order < code[best->pc].order) best = &s;
        }
    }
    if (!best) return nullptr;
    Split chosen = std::move(*best);
    w.others.erase(w.others.begin() + (best - w.others.data()));
    for (std::size_t i = 0; i < w.others.size();) {
        Split& s = w.others[i];
        if (s.wait == Wait::READY && s.pc == chosen.pc && same_calls(s.calls, chosen.calls)) {
            chosen.mask |= s.mask;
            if (code[s.pc].op != Op::LABEL) --count_of(w, s.pc).delta;
            w.others.erase(w.others.begin() + i);
        } else {
            ++i;
        }
    }
    w.active = chosen.mask;
    w.calls = std::move(chosen.calls);
    w.diverged = !w.others.empty();
    w.lease = 0;
    return code + chosen.pc;
}

const Code* poll_failed(Warp& w, u32 pc) {
    w.idle = w.polled_events == w.block->events;
    w.polled_events = w.block->events;
    suspend(w, pc, Wait::READY, 0);
    w.over = true;
    return nullptr;
}

bool gather_others(Warp& w, const Code* c, u32 mask, u32 members, const Code** next) {
    u32 need = members & w.live;
    const Code* code = code_of(w);
    u32 here = mask;
    for (std::size_t i = 0; i < w.others.size();) {
        Split& s = w.others[i];
        if (s.wait != Wait::BARRIER && s.pc == c->index && same_calls(s.calls, w.calls)) {
            here |= s.mask;
            w.active |= s.mask;
            --count_of(w, c->index).delta;
            w.others.erase(w.others.begin() + i);
        } else {
            ++i;
        }
    }
    w.diverged = !w.others.empty();
    if ((need & ~here) == 0) {
        *next = c;  // again, for all of them
        return false;
    }
    u32 rest = w.active & ~here;
    if (rest) {
        fork(w, c->index, here);
        w.others.back().wait = Wait::SYNC;
        if (code[c->index + 1].op != Op::LABEL) ++count_of(w, c->index + 1).delta;
        *next = c + 1;
    } else {
        suspend(w, c->index, Wait::SYNC, members);
        *next = pick(w);
    }
    return false;
}

Form resolve_control(const Code& c) {
    switch (c.op) {
        case Op::LABEL:
            return {label, "--", "----"};
        case Op::BRA:
            return {branch, "--", "----"};
        case Op::BRX:
            return {branch_indexed, "--", "1---"};
        case Op::CALL:
            return {call, "--", "----"};
        case Op::RET:
            return {ret, "--", "----"};
        case Op::EXIT:
            return {exit_lanes, "--", "----"};
        case Op::TRAP:
        case Op::BRKPT:
            return {trap, "--", "----"};
        case Op::NANOSLEEP:
            return {sleep, "--", "----"};
        case Op::BARCLUSTER:
            return {cluster_barrier, "--", "----"};
        case Op::NOP:
        case Op::SETMAXNREG:
        case Op::GRIDDEP:
        case Op::MEMBAR:
        case Op::FENCE:
            return {nothing, "--", "----"};
        default:
            return {};
    }
}

}  // namespace ptx
