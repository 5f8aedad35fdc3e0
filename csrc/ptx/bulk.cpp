// Bulk copies and tensor copies (TMA).
//
// A load into shared memory is carried out when somebody waits on its mbarrier (or when nothing
// else can go on), a store when its group is waited for: until then the bytes are marked. Tensor
// maps are 128 bytes; what the hardware keeps in them is not public, so the layout is ours
// (TensorMap).
#include <algorithm>
#include <iterator>
#include <type_traits>

#include "async.h"
#include "lanes.h"

namespace ptx {
namespace {

constexpr u32 kMaxRank = 5;

struct TensorMap {
    u64 address;
    u32 rank_minus_one;
    u32 type;
    u32 interleave;
    u32 swizzle;  // 0 none, 1, 2, 3: 32, 64, 128 bytes
    u32 fill;     // 1: NaN beyond the bounds
    u32 box[kMaxRank];
    u32 element_stride[kMaxRank];
    u32 dim[kMaxRank];
    u64 stride[kMaxRank - 1];  // bytes
    u64 unused;
};
static_assert(sizeof(TensorMap) == 128, "the size the PTX ISA gives a tensor map");

constexpr u32 kElementBytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 4, 8, 2, 4, 4};
constexpr Type kElementTypes[] = {Type::U8,   Type::U16, Type::U32, Type::S32, Type::U64,
                                  Type::S64,  Type::F16, Type::F32, Type::F32, Type::F64,
                                  Type::BF16, Type::F32, Type::F32};

u64 generic_host(Warp& w, const Code* c, int lane, u64 at, u64 bytes, u32 align, Access access,
                 u8** host) {
    u64 high = at >> 32 << 32;
    if (high == kSharedWindow) {
        *host = locate_shared(w, c, lane, at - kSharedWindow, u32(bytes), align, access);
    } else if (high == kParamWindow) {
        const std::vector<u8>& params = w.block->launch->params;
        u64 offset = at - kParamWindow;
        if (offset > params.size() || params.size() - offset < bytes || access != Access::READ) {
            fail(Kind::OUT_OF_BOUNDS, lane, at,
                 "accesses the kernel's parameters at " + std::to_string(offset) + "; there are " +
                     std::to_string(params.size()) + " bytes");
        }
        *host = const_cast<u8*>(params.data()) + offset;
    } else {
        *host = locate_global(w, c, lane, at, bytes, align, access);
    }
    return at;
}

u64 operand(const Warp& w, u32 offset, int lane, bool wide) {
    return wide ? row<u64>(w, offset)[lane] : row<u32>(w, offset)[lane];
}

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

// ---- tensor copies ----

enum class Tensor : u8 { LOAD, STORE, REDUCE, PREFETCH };

// XORs the 16-byte chunk's number within its row of the swizzle: by absolute address.
u32 swizzled(u32 at, u32 mode) {
    switch (mode) {
        case 1:
            return at ^ ((at >> 7 & 1) << 4);
        case 2:
            return at ^ ((at >> 7 & 3) << 4);
        case 3:
            return at ^ ((at >> 7 & 7) << 4);
        default:
            return at;
    }
}

const Code* tensor_copy(Warp& w, const Code* c, u32 mask) {
    Tensor kind = static_cast<Tensor>(c->sub);
    if (kind == Tensor::PREFETCH) return c + 1;
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        u8* host;
        generic_host(w, c, l, row<u64>(w, c->s[1])[l], 128, 64, Access::READ, &host);
        TensorMap map;
        std::memcpy(&map, host, sizeof(map));
        u32 rank = c->n;
        if (map.rank_minus_one + 1 != rank || map.type >= std::size(kElementBytes) ||
            map.interleave != 0 || map.swizzle > 3) {
            fail(Kind::TMA, l, row<u64>(w, c->s[1])[l],
                 "the tensor map has rank " + std::to_string(u64(map.rank_minus_one) + 1) +
                     ", element type " + std::to_string(map.type) + ", interleave " +
                     std::to_string(map.interleave) + ", swizzle " + std::to_string(map.swizzle) +
                     "; expected rank " + std::to_string(rank) + " and no interleave");
        }
        u32 size = kElementBytes[map.type];
        u64 elements = 1;
        for (u32 i = 0; i < rank; ++i) {
            if (map.box[i] == 0 || map.box[i] > 256)
                fail(Kind::TMA, l, map.box[i],
                     "the tensor map's box has an extent of " + std::to_string(map.box[i]) +
                         "; expected 1 to 256");
            if (map.element_stride[i] > 1)
                fail(Kind::TMA, l, map.element_stride[i],
                     "element strides other than 1 are not supported");
            elements *= map.box[i];
        }
        u64 inner = u64(map.box[0]) * size, total = elements * size;
        u32 width = map.swizzle ? 16u << map.swizzle : 0;
        if (inner % 16 || (width && inner > width)) {
            fail(Kind::TMA, l, inner,
                 "the box's rows have " + std::to_string(inner) +
                     " bytes; expected a multiple of 16" +
                     (width ? ", at most " + std::to_string(width) : std::string()));
        }
        u32 shared = shared_offset(c, l, operand(w, c->s[0], l, c->has(flag::A64)));
        check_shared_range(w, l, shared, total, 128);
        i64 at[kMaxRank];
        for (u32 i = 0; i < rank; ++i) at[i] = row<i32>(w, c->list[i])[l];
        BulkCopy copy;
        bool loads = kind == Tensor::LOAD;
        u64 sectors = 0, moved = 0;
        u32 index[kMaxRank] = {};
        for (u64 r = 0; r < elements / map.box[0]; ++r) {
            bool inside = true;
            u64 offset = 0;
            for (u32 i = 1; i < rank; ++i) {
                i64 x = at[i] + index[i];
                inside = inside && x >= 0 && x < i64(map.dim[i]);
                offset += u64(x) * map.stride[i - 1];
            }
            // The part of the row that lies within the tensor, in bytes from the row's start.
            i64 begin = std::max<i64>(0, -at[0]) * size;
            i64 end = std::min<i64>(map.box[0], i64(map.dim[0]) - at[0]) * size;
            if (!inside || end < begin) begin = end = 0;
            u8* data = nullptr;
            if (end > begin) {
                u64 device = map.address + offset + u64(at[0] * size + begin);
                data = locate_global(w, c, l, device, u64(end - begin), size,
                                     loads ? Access::READ : Access::WRITE);
                sectors += ((device + u64(end - begin) - 1) >> 5) - (device >> 5) + 1;
                moved += u64(end - begin);
            }
            for (i64 k = 0; k < i64(inner); k += 16) {
                u32 chunk = swizzled(shared + u32(r * inner) + u32(k), map.swizzle);
                i64 from = std::max(k, begin), to = std::min(k + 16, end);
                if (to <= from) {
                    copy.pieces.push_back({chunk, 16, nullptr});
                    continue;
                }
                if (from > k) copy.pieces.push_back({chunk, u32(from - k), nullptr});
                copy.pieces.push_back(
                    {chunk + u32(from - k), u32(to - from), data + (from - begin)});
                if (to < k + 16)
                    copy.pieces.push_back({chunk + u32(to - k), u32(k + 16 - to), nullptr});
            }
            for (u32 i = 1; i < rank; ++i) {
                if (++index[i] < map.box[i]) break;
                index[i] = 0;
            }
        }
        if (loads) {
            issue_load(w, c, l, shared, u32(total),
                       shared_offset(c, l, operand(w, c->s[2], l, c->has(flag::D64))),
                       std::move(copy));
        } else {
            if (kind == Tensor::REDUCE) {
                copy.reduce = static_cast<Atom>(c->aux);
                copy.type = kElementTypes[map.type];
            }
            issue_store(w, c, l, shared, u32(total), std::move(copy));
        }
        if (w.block->worker->count_memory) {
            MemoryCount& n = w.block->worker->memory[c->index];
            ++n.requests;
            n.sectors += sectors;
            n.ideal += (moved + 31) / 32;
            n.unique += moved;
            n.bytes += moved;
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

// ---- tensor maps made on the device ----

enum class Field : u8 {
    ADDRESS,
    RANK,
    BOX_DIM,
    GLOBAL_DIM,
    GLOBAL_STRIDE,
    ELEMENT_STRIDE,
    ELEMTYPE,
    INTERLEAVE,
    SWIZZLE,
    FILL,
    COUNT
};

const Code* replace_field(Warp& w, const Code* c, u32 mask) {
    Field field = static_cast<Field>(c->sub);
    bool wide = field == Field::ADDRESS || field == Field::GLOBAL_STRIDE;
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        u64 at = operand(w, c->s[0], l, c->has(flag::A64));
        u64 value = operand(w, c->s[1], l, wide);
        u8* host;
        if (c->space == Space::SHARED) {
            host = locate_shared(w, c, l, at, 128, 64, Access::WRITE);
            w.suspect = Suspect{};
        } else {
            generic_host(w, c, l, at, 128, 64, Access::WRITE, &host);
        }
        TensorMap map;
        std::memcpy(&map, host, sizeof(map));
        u32 i = c->aux;
        switch (field) {
            case Field::ADDRESS:
                map.address = value;
                break;
            case Field::RANK:
                map.rank_minus_one = u32(value);
                break;
            case Field::BOX_DIM:
                map.box[i] = u32(value);
                break;
            case Field::GLOBAL_DIM:
                map.dim[i] = u32(value);
                break;
            case Field::GLOBAL_STRIDE:
                map.stride[i] = value;
                break;
            case Field::ELEMENT_STRIDE:
                map.element_stride[i] = u32(value);
                break;
            case Field::ELEMTYPE:
                map.type = u32(value);
                break;
            case Field::INTERLEAVE:
                map.interleave = u32(value);
                break;
            case Field::SWIZZLE:
                map.swizzle = u32(value);
                break;
            default:
                map.fill = u32(value);
                break;
        }
        std::memcpy(host, &map, sizeof(map));
    }
    return c + 1;
}

// One copy for the warp: the lanes name the same addresses.
const Code* copy_map(Warp& w, const Code* c, u32 mask) {
    const Code* next;
    if (!gather_lanes(w, c, mask, kFull, &next)) return next;
    int l = first_lane(mask);
    u8 *to, *from;
    generic_host(w, c, l, row<u64>(w, c->s[0])[l], 128, 128, Access::WRITE, &to);
    u32 shared = shared_offset(c, l, operand(w, c->s[1], l, c->has(flag::S64)));
    from = locate_shared(w, c, l, shared, 128, 128, Access::READ);
    std::memcpy(to, from, 128);
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
    bool reduces = c.aux < static_cast<u32>(Atom::CAS) && c.aux != static_cast<u32>(Atom::EXCH);
    switch (c.op) {
        case Op::CPBULK: {
            if (c.sub > 3 || (c.sub == 3 && !reduces)) return {};
            bool loads = c.sub == 0 || c.sub == 2;
            return {bulk_copy, "--", {a, s, '1', loads ? d : '-'}};
        }
        case Op::CPTENSOR: {
            if (c.sub > 3 || c.n == 0 || c.n > kMaxRank || (c.sub == 2 && !reduces)) return {};
            return {tensor_copy,
                    "--",
                    {c.sub == 3 ? '-' : a, '2', c.sub == 0 ? d : '-', '-'},
                    std::string(c.n, '1')};
        }
        case Op::CPBULK_COMMIT:
            return {commit_stores, "--", "----"};
        case Op::CPBULK_WAIT:
            return {c.imm >= 0 ? wait_stores : nullptr, "--", "----"};
        case Op::TENSORMAP_REPLACE: {
            if (c.sub >= static_cast<u8>(Field::COUNT)) return {};
            Field field = static_cast<Field>(c.sub);
            u32 limit = field == Field::GLOBAL_STRIDE ? kMaxRank - 1 : kMaxRank;
            if (c.aux >= limit) return {};
            bool wide = field == Field::ADDRESS || field == Field::GLOBAL_STRIDE;
            return {replace_field, "--", {a, wide ? '2' : '1', '-', '-'}};
        }
        default:
            return {copy_map, "--", {'2', s, '-', '-'}};
    }
}

}  // namespace ptx
