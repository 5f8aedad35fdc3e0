// A launch: its blocks on threads, and what they found and counted put together.
//
// The schedule is fixed by default. Blocks are independent jobs on several threads, unless the
// program has global effects whose order shows (atomics that return or add floats, polling): then
// one thread runs them in order of rank, and a block that keeps polling makes the next one
// resident. So neither results nor counters depend on the threads.
#include <algorithm>
#include <cfenv>
#include <thread>

#include "schedule.h"

namespace ptx {
namespace {

constexpr u64 kFruitless = 16;  // slices of each resident block that changed nothing

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
