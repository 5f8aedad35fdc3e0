// The state of a launch: decoded code, warps with their divergent splits, blocks, workers.
#pragma once

#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace ptx {

struct Warp;
struct Block;
struct Code;

// Runs one instruction for the lanes of `mask` (never empty) and returns the next one, or null when
// the current split of the warp cannot go on.
using Handler = const Code* (*)(Warp&, const Code*, u32 mask);

// An instruction with its operands resolved: rows as byte offsets into a warp's registers.
struct Code {
    Handler run;
    u32 (*compare)(const Warp&, const Code*);  // of SETP and SET: a bit a lane
    u32 guard;                                 // predicate operand, bit 31 negates; 0 = always
    u32 index;
    u32 d[2];
    u32 s[4];
    i64 imm;
    const u32* list;
    u32 n_list;
    u32 target;
    u32 aux;
    u32 order;
    u32 length;  // of a LABEL: instructions in its block
    Op op;
    u16 flags;
    Type type;
    Type type2;
    u8 sub;
    Round round;
    Space space;
    u8 n;
    bool same_left;  // of an mma: its A is that of the instruction before

    bool has(u16 bit) const { return (flags & bit) != 0; }
};

// An error of the program that runs, thrown by handlers.
struct Fault {
    Kind kind;
    int lane;
    u64 address;
    std::string message;
    i64 other = -1;  // another instruction, for races
};

struct Report {
    Kind kind;
    i64 instruction;
    u32 block[3];
    u64 block_rank;
    int warp;
    int lane;
    u64 address;
    i64 other;
    std::string message;
};

// ---- the program ----

struct Program {
    std::vector<Code> code;
    std::vector<u32> pool;
    std::vector<Constant> constants;
    u32 n_rows = 0;
    u32 n_preds = 0;  // without the scratch predicate
    u32 entry = 0;
    u32 static_shared = 0;
    u32 local_bytes = 0;
    u32 param_bytes = 0;
    bool ordered = false;       // has global effects whose order shows: blocks run on one thread
    bool async_shared = false;  // uses bulk copies or wgmma

    std::size_t register_bytes() const { return n_rows * std::size_t{128}; }
};

struct LoadError {
    i64 instruction;
    std::string message;
};

std::unique_ptr<Program> load_program(const Instruction* code, std::size_t n, const u32* pool,
                                      std::size_t n_pool, const Constant* constants,
                                      std::size_t n_constants, u32 n_rows, u32 n_preds, u32 entry,
                                      u32 static_shared, u32 local_bytes, u32 param_bytes);

// ---- counters ----

struct MemoryCount {
    u64 requests, sectors, unique, ideal, conflicts, bytes;
};

// `exec` and `lanes` of a LABEL are its block's; of a guarded instruction its own. `delta` is what
// merging and splitting in the middle of a block changes from there to the block's end.
struct Count {
    i64 exec, lanes, delta;
};

// ---- a launch ----

struct Limits {
    u64 steps = 20'000'000'000ull;  // warp instructions
    u32 nesting = 64;
    u32 resident = 64;
    u64 print_bytes = 1 << 20;
};

struct Launch {
    const Program* program;
    u32 grid[3];
    u32 block[3];
    std::vector<u8> params;
    u32 dynamic_shared;
    std::vector<Range> ranges;
    u64 seed;
    u32 checks;
    u32 counts;
    Limits limits;
    u32 threads;

    u32 block_threads() const { return block[0] * block[1] * block[2]; }
    u32 shared_bytes() const { return program->static_shared + dynamic_shared; }
};

struct Result {
    std::vector<Report> reports;
    std::vector<Count> counts;
    std::vector<MemoryCount> memory;
    u64 barriers = 0;
    u64 in_flight_max = 0;
    u64 steps = 0;
    u32 threads = 1;
    std::string printed;
};

Result run_launch(const Launch& launch);

// Small and fast (splitmix64); only schedules are drawn from it.
struct Random {
    u64 state;
    u64 next() {
        u64 z = (state += 0x9E3779B97F4A7C15ull);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        return z ^ (z >> 31);
    }
    u32 below(u32 n) { return static_cast<u32>((next() >> 32) * n >> 32); }
};

// ---- happens-before, for races in shared memory ----

// One clock a warp, and one for bulk copies.
constexpr int kAgents = 33;
constexpr int kBulkAgent = 32;
struct Clocks {
    std::array<u32, kAgents> at{};
    void join(const Clocks& o) {
        for (int i = 0; i < kAgents; ++i) at[i] = at[i] > o.at[i] ? at[i] : o.at[i];
    }
};

// ---- warps ----

enum class Wait : u8 { READY, SYNC, BARRIER };

// Lanes of a warp that run together from `pc`.
struct Split {
    u32 pc = 0;
    u32 mask = 0;
    Wait wait = Wait::READY;
    u32 wait_on = 0;  // SYNC of bar.warp: its member mask; BARRIER: its number
    u64 last_run = 0;
    std::vector<u32> calls;
};

// What a cp.async has read for the lanes of `mask`, and not written yet.
struct Copy {
    u32 mask;
    u32 bytes;
    u32 instruction;
    u32 to[kLanes];  // in shared memory
    u8 data[kLanes][16];

    Copy() {}  // what it holds is filled in: clearing it would cost as much as the copy
};

// A group of cp.async copies: committed by the lanes of `mask`, in order.
struct CopyGroup {
    u32 mask = 0;
    std::vector<Copy> copies;
};

// A bulk copy that has been issued and not been carried out: pieces of shared memory, and where
// each comes from or goes to.
struct BulkCopy {
    struct Piece {
        u32 shared;
        u32 bytes;
        u8* other;  // null: zeros
    };
    std::vector<Piece> pieces;
    u32 lane = 0;
    u32 instruction = 0;
    u32 mbarrier = 0;  // that is told of `bytes` when a load is done
    u32 bytes = 0;
    Atom reduce = Atom::CAS;  // of a store; CAS: none
    Type type = Type::NO;     // of a reduction
    Clocks clocks;            // of the warp that issued it
};

// Bulk stores that a lane has committed together.
struct BulkGroup {
    u32 lane;
    std::vector<BulkCopy> copies;
};

// Two unordered writes to one place, which are a race unless they write the same.
struct Suspect {
    u32 instruction = kNone;  // the other write
    u32 warp = 0;
    int lane = 0;
    u32 at = 0;
};

struct Warp {
    u8* regs = nullptr;
    u32* preds = nullptr;
    u32 active = 0;  // lanes of the current split
    u32 live = 0;    // lanes that have not exited
    i64 budget = 0;  // warp instructions left in this turn
    i64 waived = 0;  // taken from it for polling
    bool diverged = false;
    Block* block = nullptr;
    u32 id = 0;

    u32 carry = 0;  // the condition code of add.cc, a bit a lane
    u32 back_edges = 0;
    u32 lease = 0;  // labels that a split out of turn may still pass
    std::vector<Split> others;
    std::vector<u32> calls;  // return addresses of the current split
    bool over = false;       // the turn ends
    bool idle = false;       // its last turn only polled
    u64 polled_events = ~0ull;
    u64 ticks = 0;

    CopyGroup open;  // copies not yet committed
    std::deque<CopyGroup> groups;
    std::vector<Copy> landed;         // empty: the memory of a group that is done, for the next one
    std::vector<BulkCopy> bulk_open;  // stores not yet committed
    std::deque<BulkGroup> bulk_groups;
    // A of the latest mma of 16-bit numbers, as floats, and the instruction if all lanes ran it.
    alignas(32) std::array<float, 16 * 16> left;
    u32 left_of = kNone;
    std::vector<u8> local;  // [lane][local_bytes]
    std::vector<u8> storage;
    std::vector<u32> pred_storage;
    Suspect suspect;
    Clocks clocks;
    u32 safe = 0;  // everything in shared memory up to this stamp is ordered before now
};

// ---- blocks ----

struct Barrier {
    u32 arrived = 0;    // threads
    u32 expected = 0;   // 0: all of the block
    bool open = false;  // somebody has arrived
    u32 instruction = 0;
    u32 accumulated = 0;  // of a reduction: popcount
    bool all = true, any = false;
    Clocks clocks;
};

struct Worker;

struct Block {
    const Launch* launch = nullptr;
    Worker* worker = nullptr;
    u64 rank = 0;
    u32 at[3] = {};
    std::vector<Warp> warps;
    std::vector<u8> shared;
    u32 shared_bytes = 0;
    std::vector<u8> state;     // a byte each: kInit, kPending, kReading
    std::vector<u64> writers;  // the last of each word of shared memory: see checks.h
    std::vector<u64> readers;
    u32 now = 1;
    bool checking = false;  // whether `state` is looked at
    bool racing = false;    // whether races are looked for
    u64 state_mask = 0;     // what a read looks at in eight bytes of `state`, and must find
    u64 state_want = 0;
    std::array<Barrier, 16> barriers;
    std::unordered_map<u32, Clocks> mbarrier_clocks;
    Clocks atomics;              // released and acquired by atomic and volatile accesses
    std::vector<BulkCopy> bulk;  // on their way into shared memory
    u64 in_flight = 0;
    u64 events = 0;  // grows whenever a waiting warp might go on
    u32 live_warps = 0;
    u32 polls = 0;
    u64 steps = 0;
};

struct Worker {
    const Launch* launch = nullptr;
    std::vector<Count> counts;
    std::vector<MemoryCount> memory;
    std::vector<u32> range_of;  // an instruction's last range
    u64 barriers = 0;
    u64 in_flight_max = 0;
    u64 steps = 0;
    u64 changes = 0;  // made by atomics and by stores that others may poll for
    bool count_memory = false;
    Random random{0};
    std::vector<std::pair<u64, std::string>> printed;  // by a block's rank
};

// ---- registers, as handlers see them ----

template <class T>
inline T* row(const Warp& w, u32 offset) {
    return reinterpret_cast<T*>(w.regs + offset);
}

inline u32 predicate(const Warp& w, u32 operand) {
    return w.preds[operand & ~kNegated] ^ (operand & kNegated ? kFull : 0u);
}

inline void set_predicate(Warp& w, u32 index, u32 mask, u32 value) {
    w.preds[index] = (w.preds[index] & ~mask) | (value & mask);
}

inline int first_lane(u32 mask) { return __builtin_ctz(mask); }

[[noreturn]] inline void fail(Kind kind, int lane, u64 address, std::string message) {
    throw Fault{kind, lane, address, std::move(message)};
}

std::string hex(u64 value);

// ---- what control flow offers to other handlers (control.cpp) ----

// Whether the lanes that `members` names are all here. If not, the lanes of `mask` have been parked
// (or others joined them), and the handler must return `next`.
bool gather_others(Warp& w, const Code* c, u32 mask, u32 members, const Code** next);
inline bool gather_lanes(Warp& w, const Code* c, u32 mask, u32 members, const Code** next) {
    return (members & w.live & ~mask) == 0 || gather_others(w, c, mask, members, next);
}

// The lanes of `mask` leave for `pc`; what is left of the current split stays.
void fork(Warp& w, u32 pc, u32 mask);
// Puts the current split aside, to go on at `pc`.
void suspend(Warp& w, u32 pc, Wait wait, u32 wait_on);
// The next split that can go on, merged with those at the same place; null if there is none.
const Code* pick(Warp& w);
// Ends the warp's turn after a poll that found nothing: it goes on at `pc` later.
const Code* poll_failed(Warp& w, u32 pc);
// A warp's operations up to now are ordered before what acquires `to` later, and the reverse.
void release_clocks(Warp& w, Clocks& to);
void acquire_clocks(Warp& w, const Clocks& from);
// Opens or counts towards a barrier; used by exits too.
void barriers_after_exit(Block& b, Warp& w);

// Carries out the bulk copies on their way into shared memory; whether there were any (bulk.cpp).
bool complete_bulk(Block& b);
// Those that complete on one mbarrier.
bool complete_bulk_on(Block& b, u32 mbarrier);
// At the end of a block: what its bulk copies still have to write.
void finish_bulk(Block& b);

// Counts accesses that may be polling for what others write. They take from the warp's turn, so
// that the others get theirs.
inline void polled(Warp& w, u32 times) {
    constexpr u32 kCost = 64;
    w.budget -= times * kCost;
    w.waived += times * kCost;
    w.block->polls += times;
}

inline Count& count_of(const Warp& w, u32 index) { return w.block->worker->counts[index]; }

}  // namespace ptx
