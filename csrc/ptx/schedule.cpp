// Who runs when: warps of a block in turn, blocks one after the other on each thread.
//
// The default schedule is fixed: a warp runs until it waits or its turn ends. Blocks are
// independent jobs on several threads, unless the program has global effects whose order shows
// (atomics that return or add floats, polling): then one thread runs them in order of rank, and a
// block that keeps polling makes the next one resident. So neither results nor counters depend on
// the threads.
#include <algorithm>
#include <cfenv>
#include <thread>

#include "checks.h"
#include "lanes.h"

namespace ptx {
namespace {

constexpr i64 kTurn = 20000;  // warp instructions, so that polling warps cannot starve others
constexpr u32 kPollsPerSlice = 1024;  // of a block, before others get a slice
constexpr u32 kIdleRounds = 64;
constexpr u64 kFruitless = 16;  // slices of each resident block that changed nothing

// ---- setting up ----

u32 special(const Launch& launch, const Block& b, u32 warp, int lane, Special which) {
    u32 thread = warp * 32 + lane;
    const u32* n = launch.block;
    switch (which) {
        case Special::TID_X:
            return thread % n[0];
        case Special::TID_Y:
            return thread / n[0] % n[1];
        case Special::TID_Z:
            return thread / (n[0] * n[1]);
        case Special::NTID_X:
            return n[0];
        case Special::NTID_Y:
            return n[1];
        case Special::NTID_Z:
            return n[2];
        case Special::CTAID_X:
        case Special::CLUSTERID_X:
            return b.at[0];
        case Special::CTAID_Y:
        case Special::CLUSTERID_Y:
            return b.at[1];
        case Special::CTAID_Z:
        case Special::CLUSTERID_Z:
            return b.at[2];
        case Special::NCTAID_X:
        case Special::NCLUSTERID_X:
            return launch.grid[0];
        case Special::NCTAID_Y:
        case Special::NCLUSTERID_Y:
            return launch.grid[1];
        case Special::NCTAID_Z:
        case Special::NCLUSTERID_Z:
            return launch.grid[2];
        case Special::LANEID:
            return lane;
        case Special::WARPID:
            return warp;
        case Special::NWARPID:
            return (launch.block_threads() + 31) / 32;
        case Special::LANEMASK_EQ:
            return 1u << lane;
        case Special::LANEMASK_LT:
            return (1u << lane) - 1;
        case Special::LANEMASK_LE:
            return (2u << lane) - 1;
        case Special::LANEMASK_GT:
            return ~((2u << lane) - 1);
        case Special::LANEMASK_GE:
            return ~((1u << lane) - 1);
        case Special::NSMID:
        case Special::CLUSTER_NCTAID_X:
        case Special::CLUSTER_NCTAID_Y:
        case Special::CLUSTER_NCTAID_Z:
        case Special::CLUSTER_NCTARANK:
            return 1;
        case Special::DYNAMIC_SMEM_SIZE:
            return launch.dynamic_shared;
        case Special::TOTAL_SMEM_SIZE:
            return launch.shared_bytes();
        default:
            return 0;
    }
}

void set_constants(const Launch& launch, const Block& b, Warp& w) {
    for (const Constant& c : launch.program->constants) {
        bool two = c.kind == 1 || c.kind == 3;
        for (int l = 0; l < kLanes; ++l) {
            u64 x =
                c.kind >= 2 ? special(launch, b, w.id, l, static_cast<Special>(c.value)) : c.value;
            if (two) {
                row<u64>(w, c.row * 128)[l] = x;
            } else {
                row<u32>(w, c.row * 128)[l] = u32(x);
            }
        }
    }
}

void allocate(Block& b, const Launch& launch, Worker& worker) {
    const Program& p = *launch.program;
    b.launch = &launch;
    b.worker = &worker;
    b.shared_bytes = launch.shared_bytes();
    b.shared.resize(b.shared_bytes + 64);
    b.checking = (launch.checks & (check::UNINIT | check::PENDING | check::RACE)) != 0;
    u8 mask = (launch.checks & check::UNINIT ? kInit : 0) |
              (launch.checks & check::PENDING ? kPending : 0);
    b.state_mask = mask * kEveryByte;
    b.state_want = (mask & kInit) * kEveryByte;
    if (b.checking) b.state.resize(b.shared_bytes + 64);
    if (launch.checks & check::RACE) {
        b.writers.resize(b.shared_bytes / 4 + 16);
        b.readers.resize(b.shared_bytes / 4 + 16);
    }
    u32 threads = launch.block_threads();
    b.warps.resize((threads + 31) / 32);
    for (u32 i = 0; i < b.warps.size(); ++i) {
        Warp& w = b.warps[i];
        w.id = i;
        w.block = &b;
        w.storage.resize(p.register_bytes() + 64);
        w.regs = w.storage.data() + (-reinterpret_cast<std::uintptr_t>(w.storage.data()) & 63);
        w.pred_storage.resize(p.n_preds + 1);
        w.preds = w.pred_storage.data();
        w.local.resize(std::size_t{kLanes} * p.local_bytes + 64);
    }
}

void start(Block& b, u64 rank) {
    const Launch& launch = *b.launch;
    const Program& p = *launch.program;
    b.rank = rank;
    b.at[0] = u32(rank % launch.grid[0]);
    b.at[1] = u32(rank / launch.grid[0] % launch.grid[1]);
    b.at[2] = u32(rank / launch.grid[0] / launch.grid[1]);
    std::fill(b.shared.begin(), b.shared.end(), u8(0));
    std::fill(b.state.begin(), b.state.end(), u8(0));
    std::fill(b.writers.begin(), b.writers.end(), u64(0));
    std::fill(b.readers.begin(), b.readers.end(), u64(0));
    b.racing = (launch.checks & check::RACE) != 0 && b.warps.size() <= kBulkAgent;
    b.now = 1;
    b.barriers.fill(Barrier{});
    b.mbarrier_clocks.clear();
    b.atomics = Clocks{};
    b.bulk.clear();
    b.in_flight = b.events = b.steps = 0;
    b.polls = 0;
    b.live_warps = u32(b.warps.size());
    u32 threads = launch.block_threads();
    for (Warp& w : b.warps) {
        std::memset(w.regs, 0, p.register_bytes());
        std::fill(w.pred_storage.begin(), w.pred_storage.end(), 0u);
        w.preds[0] = kFull;
        std::fill(w.local.begin(), w.local.end(), u8(0));
        u32 left = threads - w.id * 32;
        w.live = left >= 32 ? kFull : (1u << left) - 1;
        w.active = 0;
        w.carry = w.back_edges = w.lease = w.safe = 0;
        w.ticks = 0;
        w.diverged = w.idle = w.over = false;
        w.polled_events = ~0ull;
        w.calls.clear();
        w.others.clear();
        w.open = CopyGroup{};
        w.groups.clear();
        w.bulk_groups.clear();
        w.bulk_open.clear();
        w.clocks = Clocks{};
        w.suspect = Suspect{};
        Split s;
        s.pc = p.entry;
        s.mask = w.live;
        w.others.push_back(std::move(s));
        // Constants are never written, so a block that takes over the registers of another only
        // needs them again because they were cleared.
        set_constants(launch, b, w);
    }
}

// ---- running ----

struct Stopped {
    Report report;
};

[[noreturn]] void stop(const Block& b, const Warp& w, i64 instruction, Fault f) {
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

// Until the block is done (true) or wants other blocks to run.
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

struct Shared {
    std::atomic<u64> next{0};
    std::atomic<u64> stop_at{~0ull};
};

// Blocks in order of rank, with others beside them while they wait for one another.
void run_ordered(const Launch& launch, Worker& worker, u64 n_blocks, std::vector<Report>& reports) {
    std::deque<std::unique_ptr<Block>> resident;
    std::unique_ptr<Block> spare;
    u64 next = 0, fruitless = 0, changes = 0;
    auto admit = [&] {
        std::unique_ptr<Block> b = std::move(spare);
        if (!b) {
            b = std::make_unique<Block>();
            allocate(*b, launch, worker);
        }
        start(*b, next++);
        resident.push_back(std::move(b));
    };
    std::size_t turn_of = 0;
    try {
        while (next < n_blocks || !resident.empty()) {
            if (resident.empty()) admit();
            turn_of = turn_of % resident.size();
            Block& b = *resident[turn_of];
            if (run_block(b)) {
                spare = std::move(resident[turn_of]);
                resident.erase(resident.begin() + turn_of);
                fruitless = 0;
                continue;
            }
            ++turn_of;
            fruitless = worker.changes == changes ? fruitless + 1 : 0;
            changes = worker.changes;
            if (next < n_blocks && resident.size() < launch.limits.resident) {
                admit();
            } else if (next < n_blocks && fruitless > kFruitless * resident.size()) {
                u32 pc = 0;
                Warp* w = &b.warps[0];
                for (Warp& x : b.warps) {
                    if (!x.others.empty()) {
                        w = &x;
                        pc = x.others.back().pc;
                        break;
                    }
                }
                stop(b, *w, pc,
                     Fault{Kind::NOT_RESIDENT, w->live ? first_lane(w->live) : 0, 0,
                           "the " + std::to_string(resident.size()) +
                               " resident blocks all wait, perhaps for one of the " +
                               std::to_string(n_blocks - next) + " that have not started"});
            }
        }
    } catch (Stopped& s) {
        if (s.report.kind == Kind::STEP_LIMIT && next < n_blocks && resident.size() > 1) {
            s.report.message += "; " + std::to_string(n_blocks - next) + " blocks have not started";
        }
        reports.push_back(std::move(s.report));
    }
}

void run_independent(const Launch& launch, Worker& worker, Shared& shared, u64 n_blocks,
                     std::vector<Report>& reports) {
    Block b;
    allocate(b, launch, worker);
    for (;;) {
        u64 rank = shared.next++;
        if (rank >= n_blocks || rank > shared.stop_at) return;
        start(b, rank);
        if (launch.seed) worker.random.state = launch.seed * 0x9E3779B97F4A7C15ull + rank;
        try {
            run_block(b);
        } catch (Stopped& s) {
            u64 before = shared.stop_at;
            while (rank < before && !shared.stop_at.compare_exchange_weak(before, rank)) {
            }
            reports.push_back(std::move(s.report));
        }
    }
}

}  // namespace

Result run_launch(const Launch& launch) {
    const Program& p = *launch.program;
    u64 n_blocks = u64(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    u32 threads =
        launch.threads ? launch.threads : std::max(1u, std::thread::hardware_concurrency());
    if (p.ordered) threads = 1;
    threads = u32(std::min<u64>(threads, n_blocks));
    std::size_t n = p.code.size();
    std::vector<Worker> workers(threads);
    std::vector<std::vector<Report>> reports(threads);
    for (Worker& w : workers) {
        w.launch = &launch;
        w.counts.resize(n);
        w.memory.resize(n);
        w.range_of.resize(n);
        w.count_memory = (launch.counts & count::MEMORY) != 0;
        w.random.state = launch.seed;
    }
    Shared shared;
    std::exception_ptr broken;
    std::atomic<bool> failed{false};
    auto work = [&](u32 i) {
        // Denormals are kept and rounding is to nearest, whatever the caller's mode is.
        std::fenv_t mode;
        std::fegetenv(&mode);
        std::fesetenv(FE_DFL_ENV);
        try {
            if (p.ordered) {
                run_ordered(launch, workers[i], n_blocks, reports[i]);
            } else {
                run_independent(launch, workers[i], shared, n_blocks, reports[i]);
            }
        } catch (...) {
            if (!failed.exchange(true)) broken = std::current_exception();
            shared.stop_at = 0;
        }
        std::fesetenv(&mode);
    };
    std::vector<std::thread> pool;
    for (u32 i = 1; i < threads; ++i) pool.emplace_back(work, i);
    work(0);
    for (std::thread& t : pool) t.join();
    if (broken) std::rethrow_exception(broken);

    Result out;
    out.threads = threads;
    for (auto& some : reports) {
        for (Report& r : some) out.reports.push_back(std::move(r));
    }
    std::sort(out.reports.begin(), out.reports.end(),
              [](const Report& a, const Report& b) { return a.block_rank < b.block_rank; });
    // Blocks after the first that failed may or may not have run: only that one is reported.
    if (out.reports.size() > 1) out.reports.resize(1);
    out.counts.resize(n);
    out.memory.resize(n);
    for (Worker& w : workers) {
        for (std::size_t i = 0; i < n; ++i) {
            out.counts[i].exec += w.counts[i].exec;
            out.counts[i].lanes += w.counts[i].lanes;
            out.counts[i].delta += w.counts[i].delta;
            u64* to = &out.memory[i].requests;
            const u64* from = &w.memory[i].requests;
            for (int k = 0; k < 6; ++k) to[k] += from[k];
        }
        out.barriers += w.barriers;
        out.steps += w.steps;
        out.in_flight_max = std::max(out.in_flight_max, w.in_flight_max);
    }
    std::vector<std::pair<u64, std::string>> texts;
    for (Worker& w : workers) {
        for (auto& text : w.printed) texts.push_back(std::move(text));
    }
    std::stable_sort(texts.begin(), texts.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (auto& text : texts) {
        if (out.printed.size() < launch.limits.print_bytes) out.printed += text.second;
    }
    return out;
}

}  // namespace ptx
