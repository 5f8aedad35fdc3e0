// Tensor copies (TMA), and the tensor maps that they read. A map has 128 bytes; what the hardware
// keeps in them is not public, so the layout is ours (TensorMap).
#include <algorithm>
#include <iterator>

#include "bulk.h"
#include "resolve.h"

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

// The map that a lane names, checked to be one that a copy of `c`'s rank can follow.
TensorMap map_of(Warp& w, const Code* c, int lane) {
    u64 named = row<u64>(w, c->s[1])[lane];
    u8* host;
    generic_host(w, c, lane, named, 128, 64, Access::READ, &host);
    TensorMap map;
    std::memcpy(&map, host, sizeof(map));
    u32 rank = c->n;
    if (map.rank_minus_one + 1 != rank || map.type >= std::size(kElementBytes) ||
        map.interleave != 0 || map.swizzle > 3) {
        fail(Kind::TMA, lane, named,
             "the tensor map has rank " + std::to_string(u64(map.rank_minus_one) + 1) +
                 ", element type " + std::to_string(map.type) + ", interleave " +
                 std::to_string(map.interleave) + ", swizzle " + std::to_string(map.swizzle) +
                 "; expected rank " + std::to_string(rank) + " and no interleave");
    }
    for (u32 i = 0; i < rank; ++i) {
        if (map.box[i] == 0 || map.box[i] > 256)
            fail(Kind::TMA, lane, map.box[i],
                 "the tensor map's box has an extent of " + std::to_string(map.box[i]) +
                     "; expected 1 to 256");
        if (map.element_stride[i] > 1)
            fail(Kind::TMA, lane, map.element_stride[i],
                 "element strides other than 1 are not supported");
    }
    u32 inner = map.box[0] * kElementBytes[map.type], width = map.swizzle ? 16u << map.swizzle : 0;
    if (inner % 16 || (width && inner > width)) {
        fail(Kind::TMA, lane, inner,
             "the box's rows have " + std::to_string(inner) + " bytes; expected a multiple of 16" +
                 (width ? ", at most " + std::to_string(width) : std::string()));
    }
    return map;
}

// Adds a row of the box, which is at `at` in shared memory before swizzling: its bytes from `begin`
// to `end` lie within the tensor, from `data` on.
void add_row(BulkCopy& copy, const TensorMap& map, u32 at, i64 begin, i64 end, u8* data) {
    i64 inner = i64(map.box[0]) * kElementBytes[map.type];
    for (i64 k = 0; k < inner; k += 16) {
        u32 chunk = swizzled(at + u32(k), map.swizzle);
        i64 from = std::max(k, begin), to = std::min(k + 16, end);
        if (to <= from) {
            copy.pieces.push_back({chunk, 16, nullptr});
            continue;
        }
        if (from > k) copy.pieces.push_back({chunk, u32(from - k), nullptr});
        copy.pieces.push_back({chunk + u32(from - k), u32(to - from), data + (from - begin)});
        if (to < k + 16) copy.pieces.push_back({chunk + u32(to - k), u32(k + 16 - to), nullptr});
    }
}

const Code* tensor_copy(Warp& w, const Code* c, u32 mask) {
    Tensor kind = static_cast<Tensor>(c->sub);
    if (kind == Tensor::PREFETCH) return c + 1;
    bool loads = kind == Tensor::LOAD;
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        TensorMap map = map_of(w, c, l);
        u32 rank = c->n, size = kElementBytes[map.type];
        u64 n_rows = 1;
        for (u32 i = 1; i < rank; ++i) n_rows *= map.box[i];
        u64 inner = u64(map.box[0]) * size, total = n_rows * inner;
        u32 shared = shared_offset(c, l, operand(w, c->s[0], l, c->has(flag::A64)));
        // A swizzle moves chunks within lines of 128 bytes, the last of which the box may not fill.
        check_shared_range(w, l, shared, map.swizzle ? (total + 127) / 128 * 128 : total, 128);
        i64 at[kMaxRank];
        for (u32 i = 0; i < rank; ++i) at[i] = row<i32>(w, c->list[i])[l];
        BulkCopy copy;
        u64 sectors = 0, moved = 0;
        u32 index[kMaxRank] = {};
        for (u64 r = 0; r < n_rows; ++r) {
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
            add_row(copy, map, shared + u32(r * inner), begin, end, data);
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

Form resolve_tensor(const Code& c) {
    char a = c.has(flag::A64) ? '2' : '1', s = c.has(flag::S64) ? '2' : '1',
         d = c.has(flag::D64) ? '2' : '1';
    switch (c.op) {
        case Op::CPTENSOR: {
            if (c.sub > 3 || c.n == 0 || c.n > kMaxRank || (c.sub == 2 && !reduces(c))) return {};
            return {tensor_copy,
                    "--",
                    {c.sub == 3 ? '-' : a, '2', c.sub == 0 ? d : '-', '-'},
                    std::string(c.n, '1')};
        }
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
