// Bulk copies.
//
// A load into shared memory is carried out when somebody waits on its mbarrier (or when nothing
// else can go on), a store when its group is waited for: until then the bytes are marked.
#include "bulk.h"

#include <type_traits>

#include "resolve.h"

namespace ptx {

void check_shared_range(Warp& w, int lane, u32 at, u64 bytes, u32 align) {
    u32 size = w.block->shared_bytes;
    if (at > size || size - at < bytes) {
        fail(Kind::OUT_OF_BOUNDS, lane, at,
             "a bulk copy of " + std::to_string(bytes) + " bytes at " + std::to_string(at) +
                 " of shared memory; the block has " + std::to_string(size) + " bytes");
    }
    if (at & (align - 1))
        fail(Kind::MISALIGNED, lane, at,
             "a bulk copy at " + std::to_string(at) +
                 " of shared memory, which is not a multiple of " + std::to_string(align));
}

// ---- issuing ----

void issue_load(Warp& w, const Code* c, int lane, u32 at, u32 bytes, u32 mbarrier, BulkCopy copy) {
    Block& b = *w.block;
    mbarrier_at(w, c, lane, mbarrier);
    if (b.checking) touch_write(w, c, lane, at, bytes, kPending);
    w.suspect = Suspect{};
    copy.lane = u32(lane);
    copy.instruction = c->index;
    copy.mbarrier = mbarrier;
    copy.bytes = bytes;
    if (b.racing) release_clocks(w, copy.clocks);
    in_flight(b, bytes);
    b.bulk.push_back(std::move(copy));
    ++b.events;
}

void issue_store(Warp& w, const Code* c, int lane, u32 at, u32 bytes, BulkCopy copy) {
    Block& b = *w.block;
    if (b.checking) {
        touch_read(w, c, lane, at, bytes);
        for (u32 i = 0; i < bytes; ++i) b.state[at + i] |= kReading;
    }
    copy.lane = u32(lane);
    copy.instruction = c->index;
    copy.bytes = bytes;
    in_flight(b, bytes);
    w.bulk_open.push_back(std::move(copy));
}

namespace {

// ---- carrying out ----

template <class T>
void reduce_elements(Atom how, u8* to, const u8* from, u32 bytes) {
    for (u32 i = 0; i + sizeof(T) <= bytes; i += sizeof(T)) {
        T x, y;
        std::memcpy(&x, to + i, sizeof(T));
        std::memcpy(&y, from + i, sizeof(T));
        if constexpr (std::is_integral_v<T>) {
            switch (how) {
                case Atom::AND:
                    x &= y;
                    break;
                case Atom::OR:
                    x |= y;
                    break;
                case Atom::XOR:
                    x ^= y;
                    break;
                case Atom::INC:
                    x = x >= y ? 0 : x + 1;
                    break;
                case Atom::DEC:
                    x = x == 0 || x > y ? y : x - 1;
                    break;
                default:
                    break;
            }
        }
        if (how == Atom::ADD) x = T(x + y);
        if (how == Atom::MIN) x = y < x ? y : x;
        if (how == Atom::MAX) x = y > x ? y : x;
        std::memcpy(to + i, &x, sizeof(T));
    }
}
void reduce_halves(Atom how, Type t, u8* to, const u8* from, u32 bytes) {
    bool half = t == Type::F16;
    for (u32 i = 0; i + 2 <= bytes; i += 2) {
        u16 p, q;
        std::memcpy(&p, to + i, 2);
        std::memcpy(&q, from + i, 2);
        float x = half ? half_to_float(p) : bf16_to_float(p),
              y = half ? half_to_float(q) : bf16_to_float(q);
        float z = how == Atom::ADD ? x + y : how == Atom::MIN ? (y < x ? y : x) : (y > x ? y : x);
        u16 out = u16(half ? float_to_half(z) : float_to_bf16(z));
        std::memcpy(to + i, &out, 2);
    }
}
void reduce_bytes(Atom how, Type t, u8* to, const u8* from, u32 bytes) {
    switch (t) {
        case Type::F16:
        case Type::BF16:
            reduce_halves(how, t, to, from, bytes);
            break;
        case Type::F32:
            reduce_elements<float>(how, to, from, bytes);
            break;
        case Type::F64:
            reduce_elements<double>(how, to, from, bytes);
            break;
        case Type::S32:
            reduce_elements<i32>(how, to, from, bytes);
            break;
        case Type::S64:
            reduce_elements<i64>(how, to, from, bytes);
            break;
        case Type::U64:
        case Type::B64:
            reduce_elements<u64>(how, to, from, bytes);
            break;
        default:
            reduce_elements<u32>(how, to, from, bytes);
            break;
    }
}

void finish_load(Block& b, const BulkCopy& copy) {
    u32 stamp = b.now++;
    for (const BulkCopy::Piece& p : copy.pieces) {
        u8* to = b.shared.data() + p.shared;
        if (p.other) {
            std::memcpy(to, p.other, p.bytes);
        } else {
            std::memset(to, 0, p.bytes);
        }
        if (b.checking) std::memset(b.state.data() + p.shared, kInit, p.bytes);
        if (b.racing) {
            u64 entry = u64(stamp) << 39 | u64(kBulkAgent) << 32 | copy.instruction;
            for (u32 i = p.shared >> 2; i <= (p.shared + p.bytes - 1) >> 2; ++i)
                b.writers[i] = entry;
        }
    }
    in_flight(b, -i64(copy.bytes));
    if (b.racing) {
        Clocks& clocks = b.mbarrier_clocks[copy.mbarrier];
        clocks.join(copy.clocks);
        clocks.at[kBulkAgent] = stamp;
    }
    u8* p = b.shared.data() + copy.mbarrier;
    Mbarrier barrier = Mbarrier::load(p);
    barrier.bytes -= i32(copy.bytes);
    barrier.settle();
    barrier.store(p);
    ++b.events;
}

void finish_store(Block& b, const BulkCopy& copy) {
    for (const BulkCopy::Piece& p : copy.pieces) {
        const u8* from = b.shared.data() + p.shared;
        if (p.other && copy.reduce != Atom::CAS) {
            reduce_bytes(copy.reduce, copy.type, p.other, from, p.bytes);
        } else if (p.other) {
            std::memcpy(p.other, from, p.bytes);
        }
        if (b.checking) {
            for (u32 i = 0; i < p.bytes; ++i) b.state[p.shared + i] &= u8(~kReading);
        }
    }
    in_flight(b, -i64(copy.bytes));
}

// ---- cp.async.bulk ----

enum class Bulk : u8 { LOAD, STORE, WITHIN, REDUCE };

const Code* bulk_copy(Warp& w, const Code* c, u32 mask) {
    Bulk kind = static_cast<Bulk>(c->sub);
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        u64 to = operand(w, c->s[0], l, c->has(flag::A64)),
            from = operand(w, c->s[1], l, c->has(flag::S64));
        u32 bytes = row<u32>(w, c->s[2])[l];
        if (bytes % 16)
            fail(Kind::ILLEGAL, l, bytes,
                 "cp.async.bulk of " + std::to_string(bytes) + " bytes; expected a multiple of 16");
        if (bytes == 0) continue;
        BulkCopy copy;
        bool loads = kind == Bulk::LOAD || kind == Bulk::WITHIN;
        u32 shared = shared_offset(c, l, loads ? to : from);
        check_shared_range(w, l, shared, bytes, 16);
        u8* other;
        if (kind == Bulk::WITHIN) {
            u32 source = shared_offset(c, l, from);
            check_shared_range(w, l, source, bytes, 16);
            if (w.block->checking) touch_read(w, c, l, source, bytes);
            other = w.block->shared.data() + source;
        } else {
            other = locate_global(w, c, l, loads ? from : to, bytes, 16,
                                  loads ? Access::READ : Access::WRITE);
        }
        copy.pieces.push_back({shared, bytes, other});
        if (kind == Bulk::REDUCE) {
            copy.reduce = static_cast<Atom>(c->aux);
            copy.type = c->type;
        }
        if (loads) {
            issue_load(w, c, l, shared, bytes,
                       shared_offset(c, l, operand(w, c->s[3], l, c->has(flag::D64))),
                       std::move(copy));
        } else {
            issue_store(w, c, l, shared, bytes, std::move(copy));
        }
        if (w.block->worker->count_memory && kind != Bulk::WITHIN) {
            MemoryCount& n = w.block->worker->memory[c->index];
            ++n.requests;
            n.sectors += bytes / 32 + (bytes % 32 != 0);
            n.ideal += bytes / 32 + (bytes % 32 != 0);
            n.unique += bytes;
            n.bytes += bytes;
        }
    }
    return c + 1;
}

const Code* commit_stores(Warp& w, const Code* c, u32 mask) {
    for (u32 m = mask; m; m &= m - 1) {
        BulkGroup group;
        group.lane = u32(first_lane(m));
        std::vector<BulkCopy> kept;
        for (BulkCopy& copy : w.bulk_open)
            (copy.lane == group.lane ? group.copies : kept).push_back(std::move(copy));
        w.bulk_open.swap(kept);
        if (!group.copies.empty()) w.bulk_groups.push_back(std::move(group));
    }
    return c + 1;
}

const Code* wait_stores(Warp& w, const Code* c, u32 mask) {
    u32 seen[kLanes] = {};
    std::vector<bool> ready(w.bulk_groups.size());
    for (std::size_t g = w.bulk_groups.size(); g-- > 0;) {
        u32 lane = w.bulk_groups[g].lane;
        ready[g] = (mask >> lane & 1) && seen[lane]++ >= u32(c->imm);
    }
    std::deque<BulkGroup> kept;
    for (std::size_t g = 0; g < ready.size(); ++g) {
        if (ready[g]) {
            for (const BulkCopy& copy : w.bulk_groups[g].copies) finish_store(*w.block, copy);
        } else {
            kept.push_back(std::move(w.bulk_groups[g]));
        }
    }
    w.bulk_groups.swap(kept);
    return c + 1;
}

}  // namespace

bool complete_bulk_on(Block& b, u32 mbarrier) {
    if (b.bulk.empty()) return false;
    if (b.launch->seed && b.worker->random.below(3) == 0) return false;  // still on their way
    std::vector<BulkCopy> now, kept;
    for (BulkCopy& copy : b.bulk)
        (copy.mbarrier == mbarrier ? now : kept).push_back(std::move(copy));
    b.bulk.swap(kept);
    for (const BulkCopy& copy : now) finish_load(b, copy);
    return !now.empty();
}

bool complete_bulk(Block& b) {
    std::vector<BulkCopy> all;
    all.swap(b.bulk);
    for (const BulkCopy& copy : all) finish_load(b, copy);
    return !all.empty();
}

void finish_bulk(Block& b) {
    for (Warp& w : b.warps) {
        for (BulkGroup& group : w.bulk_groups) {
            for (const BulkCopy& copy : group.copies) finish_store(b, copy);
        }
        for (const BulkCopy& copy : w.bulk_open) finish_store(b, copy);
        w.bulk_groups.clear();
        w.bulk_open.clear();
    }
    complete_bulk(b);
}

Form resolve_bulk(const Code& c) {
    char a = c.has(flag::A64) ? '2' : '1', s = c.has(flag::S64) ? '2' : '1',
         d = c.has(flag::D64) ? '2' : '1';
    switch (c.op) {
        case Op::CPBULK: {
            if (c.sub > 3 || (c.sub == 3 && !reduces(c))) return {};
            bool loads = c.sub == 0 || c.sub == 2;
            return {bulk_copy, "--", {a, s, '1', loads ? d : '-'}};
        }
        case Op::CPBULK_COMMIT:
            return {commit_stores, "--", "----"};
        default:
            return {c.imm >= 0 ? wait_stores : nullptr, "--", "----"};
    }
}

}  // namespace ptx
