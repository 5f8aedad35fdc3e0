// Setting up a block: its memory, registers and constants.
#include <algorithm>

#include "checks.h"
#include "schedule.h"

namespace ptx {
namespace {

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
        u64* wide = row<u64>(w, c.row * 128);
        u32* narrow = row<u32>(w, c.row * 128);
        Special which = static_cast<Special>(c.value);
        switch (c.kind) {
            case 0:
                std::fill_n(narrow, kLanes, u32(c.value));
                break;
            case 1:
                std::fill_n(wide, kLanes, c.value);
                break;
            case 2:
                for (int l = 0; l < kLanes; ++l) narrow[l] = special(launch, b, w.id, l, which);
                break;
            default:
                for (int l = 0; l < kLanes; ++l) wide[l] = special(launch, b, w.id, l, which);
                break;
        }
    }
}

}  // namespace

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

}  // namespace ptx
