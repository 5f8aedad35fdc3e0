// Moves, packing, addresses between spaces, clocks.
#include "lanes.h"

namespace ptx {
namespace {

template <class R>
const Code* mov(Warp& w, const Code* c, u32 mask) {
    const R* a = row<R>(w, c->s[0]);
    fill<R>(w, c->d[0], mask, [=](int l) { return a[l]; });
    return c + 1;
}

const Code* mov_wide(Warp& w, const Code* c, u32 mask) {  // 128 bits: two 64-bit registers
    mov<u64>(w, c, mask);
    Code high = *c;
    high.s[0] += 256;
    high.d[0] += 256;
    mov<u64>(w, &high, mask);
    return c + 1;
}

const Code* mov_predicate(Warp& w, const Code* c, u32 mask) {
    set_predicate(w, c->d[0], mask, predicate(w, c->s[0]));
    return c + 1;
}

const Code* pack_halves(Warp& w, const Code* c, u32 mask) {
    const u32* a = row<u32>(w, c->list[0]);
    const u32* b = row<u32>(w, c->list[1]);
    fill<u32>(w, c->d[0], mask, [=](int l) { return (a[l] & 0xFFFF) | b[l] << 16; });
    return c + 1;
}

const Code* pack_words(Warp& w, const Code* c, u32 mask) {
    const u32* a = row<u32>(w, c->list[0]);
    const u32* b = row<u32>(w, c->list[1]);
    fill<u64>(w, c->d[0], mask, [=](int l) { return a[l] | u64(b[l]) << 32; });
    return c + 1;
}

// Any other number of parts, a lane at a time.
const Code* pack(Warp& w, const Code* c, u32 mask) {
    int whole = bytes_of(c->type), part = whole / c->n;
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        u8 value[16] = {};
        for (int i = 0; i < c->n; ++i) {
            const u8* from = w.regs + c->list[i] + l * (part == 8 ? 8 : 4);
            std::memcpy(value + i * part, from, part);
        }
        if (whole == 16) {
            std::memcpy(w.regs + c->d[0] + l * 8, value, 8);
            std::memcpy(w.regs + c->d[0] + 256 + l * 8, value + 8, 8);
        } else {
            std::memcpy(w.regs + c->d[0] + l * (whole == 8 ? 8 : 4), value, whole == 8 ? 8 : 4);
        }
    }
    return c + 1;
}

const Code* unpack_halves(Warp& w, const Code* c, u32 mask) {
    alignas(64) u32 a[kLanes];
    std::memcpy(a, w.regs + c->s[0], sizeof(a));  // a destination may be the source
    fill<u32>(w, c->list[0], mask, [&](int l) { return a[l] & 0xFFFF; });
    fill<u32>(w, c->list[1], mask, [&](int l) { return a[l] >> 16; });
    return c + 1;
}

const Code* unpack_words(Warp& w, const Code* c, u32 mask) {
    alignas(64) u64 a[kLanes];
    std::memcpy(a, w.regs + c->s[0], sizeof(a));
    fill<u32>(w, c->list[0], mask, [&](int l) { return u32(a[l]); });
    fill<u32>(w, c->list[1], mask, [&](int l) { return u32(a[l] >> 32); });
    return c + 1;
}

const Code* unpack(Warp& w, const Code* c, u32 mask) {
    int whole = bytes_of(c->type), part = whole / c->n;
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        u8 value[16] = {};
        if (whole == 16) {
            std::memcpy(value, w.regs + c->s[0] + l * 8, 8);
            std::memcpy(value + 8, w.regs + c->s[0] + 256 + l * 8, 8);
        } else {
            std::memcpy(value, w.regs + c->s[0] + l * (whole == 8 ? 8 : 4), whole);
        }
        for (int i = 0; i < c->n; ++i) {
            u64 x = 0;
            std::memcpy(&x, value + i * part, part);
            std::memcpy(w.regs + c->list[i] + l * (part == 8 ? 8 : 4), &x, part == 8 ? 8 : 4);
        }
    }
    return c + 1;
}

u64 window(Space space) {
    return space == Space::SHARED  ? kSharedWindow
           : space == Space::LOCAL ? kLocalWindow
           : space == Space::PARAM ? kParamWindow
                                   : 0;
}

const Code* cvta(Warp& w, const Code* c, u32 mask) {
    u64 base = window(c->space);
    bool from64 = c->has(flag::A64), to64 = c->has(flag::D64), to_generic = c->sub == 0;
    alignas(64) u64 t[kLanes];
    for (int l = 0; l < kLanes; ++l) {
        u64 x = from64 ? row<u64>(w, c->s[0])[l] : row<u32>(w, c->s[0])[l];
        t[l] = to_generic ? x + base : x - base;
    }
    if (to64) {
        fill<u64>(w, c->d[0], mask, [&](int l) { return t[l]; });
    } else {
        fill<u32>(w, c->d[0], mask, [&](int l) { return u32(t[l]); });
    }
    return c + 1;
}

const Code* isspacep(Warp& w, const Code* c, u32 mask) {
    u32 out = 0;
    for (int l = 0; l < kLanes; ++l) {
        u64 x = c->has(flag::A64) ? row<u64>(w, c->s[0])[l] : row<u32>(w, c->s[0])[l];
        u64 at = x >> 32 << 32;
        bool windowed = at == kSharedWindow || at == kLocalWindow || at == kParamWindow;
        bool yes = c->space == Space::GLOBAL || c->space == Space::CONST ? !windowed
                                                                         : at == window(c->space);
        out |= u32(yes) << l;
    }
    set_predicate(w, c->d[0], mask, out);
    return c + 1;
}

// A clock that counts what the block has executed: the same in every run.
const Code* clock_now(Warp& w, const Code* c, u32 mask) {
    u64 now = ++w.ticks * 16;
    if (c->sub == 2) now >>= 32;
    if (letter(c->type) == '2') {
        fill<u64>(w, c->d[0], mask, [=](int) { return now; });
    } else {
        fill<u32>(w, c->d[0], mask, [=](int) { return u32(now); });
    }
    return c + 1;
}

// Clusters have one block: an address is its own image in block 0.
const Code* ctarank(Warp& w, const Code* c, u32 mask) {
    fill<u32>(w, c->d[0], mask, [](int) { return 0u; });
    return c + 1;
}

}  // namespace

Form resolve_move(const Code& c) {
    char k = letter(c.type);
    std::string d{k, '-'}, s{k, '-', '-', '-'};
    int whole = bytes_of(c.type);
    switch (c.op) {
        case Op::MOV:
            if (c.type == Type::PRED) return {mov_predicate, "p-", "p---"};
            return {k == '4' ? mov_wide : k == '2' ? mov<u64> : mov<u32>, d, s};
        case Op::PACK:
        case Op::UNPACK: {
            if (c.n == 0 || c.n > 16 || whole % c.n || c.n_list != c.n) return {};
            int part = whole / c.n;
            if (c.n == 1) return {};
            std::string list(c.n, part == 8 ? '2' : '1');
            bool halves = whole == 4 && c.n == 2, words = whole == 8 && c.n == 2;
            if (c.op == Op::PACK)
                return {halves ? pack_halves : words ? pack_words : pack, d, "----", list};
            for (char& e : list) e = e == '2' ? 'B' : 'A';
            return {halves ? unpack_halves : words ? unpack_words : unpack, "--", s, list};
        }
        case Op::CVTA:
            return {cvta, c.has(flag::D64) ? "2-" : "1-", c.has(flag::A64) ? "2---" : "1---"};
        case Op::ISSPACEP:
            return {isspacep, "p-", c.has(flag::A64) ? "2---" : "1---"};
        case Op::CLOCK:
            return {clock_now, d, "----"};
        case Op::MAPA:
            return {k == '2' ? mov<u64> : mov<u32>, d, s};
        case Op::GETCTARANK:
            return {ctarank, "1-", s};
        default:
            return {};
    }
}

}  // namespace ptx
