// Loads and stores of registers, in every space.
#include "checks.h"
#include "lanes.h"

#include <type_traits>

namespace ptx {
namespace {

// Accesses that other warps and blocks may be ordered by.
bool synchronizes(const Code* c) {
    Sem sem = static_cast<Sem>(c->aux & 15);
    return sem != Sem::WEAK;
}

void before_synchronizing(Warp& w) {
    if (w.block->racing) acquire_clocks(w, w.block->atomics);
}

// As many 32-bit lanes as there are bytes: from one structure a lane to one row a member.
template <int N>
void scatter_words(Warp& w, const u32* rows, const u8* from) {
    for (int k = 0; k < N; ++k) {
        u32* d = row<u32>(w, rows[k]);
        const u32* words = reinterpret_cast<const u32*>(from);
#pragma GCC ivdep
        for (int l = 0; l < kLanes; ++l) d[l] = words[l * N + k];
    }
}
template <int N>
void gather_words(Warp& w, const u32* rows, u8* to) {
    u32* words = reinterpret_cast<u32*>(to);
    const u32* s[N];
    for (int k = 0; k < N; ++k) s[k] = row<u32>(w, rows[k]);
#pragma GCC ivdep
    for (int l = 0; l < kLanes; ++l) {
        for (int k = 0; k < N; ++k) words[l * N + k] = s[k][l];
    }
}

// Memory element E into lanes of R; `kNarrow`: a signed byte into a 16-bit register.
template <class E, class R, bool kNarrow>
const Code* load(Warp& w, const Code* c, u32 mask) {
    alignas(64) u64 at[kLanes];
    Located from;
    bool sync = synchronizes(c);
    if (sync) {
        polled(w, 1);
        before_synchronizing(w);
    }
    addresses(w, c, at);
    locate(w, c, mask, at, c->n * u32(sizeof(E)), Access::READ, &from);
    const u32* rows = c->n == 1 ? c->d : c->list;
    if constexpr (std::is_same_v<E, u32> && std::is_same_v<R, u32>) {
        if (from.contiguous) {
            switch (c->n) {
                case 1:
                    std::memcpy(row<u32>(w, rows[0]), from.at[0], 128);
                    return c + 1;
                case 2:
                    scatter_words<2>(w, rows, from.at[0]);
                    return c + 1;
                case 4:
                    scatter_words<4>(w, rows, from.at[0]);
                    return c + 1;
                default:
                    break;
            }
        }
    }
    for (int k = 0; k < c->n; ++k) {
        R* d = row<R>(w, rows[k]);
        for (u32 m = mask; m; m &= m - 1) {
            int l = first_lane(m);
            E x;
            std::memcpy(&x, from.at[l] + k * sizeof(E), sizeof(E));
            d[l] = kNarrow ? R(u16(x)) : R(x);
        }
    }
    return c + 1;
}

// Two unordered writes are no race if memory holds the same after the second.
void settle_suspect(Warp& w, bool same) {
    Suspect s = w.suspect;
    w.suspect = Suspect{};
    if (same) return;
    throw Fault{Kind::RACE, s.lane, s.at,
                "writes shared memory at " + std::to_string(s.at) + ", which warp " +
                    std::to_string(s.warp) + " wrote with no barrier in between",
                s.instruction};
}

template <class E, class R>
const Code* store(Warp& w, const Code* c, u32 mask) {
    alignas(64) u64 at[kLanes];
    Located to;
    bool sync = synchronizes(c);
    if (sync) before_synchronizing(w);
    addresses(w, c, at);
    locate(w, c, mask, at, c->n * u32(sizeof(E)), Access::WRITE, &to);
    const u32* rows = c->n == 1 ? c->s + 1 : c->list;
    bool suspect = w.suspect.instruction != kNone;
    u8 before[kLanes][32];
    u32 bytes = c->n * u32(sizeof(E));
    for (u32 m = suspect ? mask : 0; m; m &= m - 1)
        std::memcpy(before[first_lane(m)], to.at[first_lane(m)], bytes);
    bool done = false;
    if constexpr (std::is_same_v<E, u32> && std::is_same_v<R, u32>) {
        if (to.contiguous) {
            done = true;
            switch (c->n) {
                case 1:
                    std::memcpy(to.at[0], row<u32>(w, rows[0]), 128);
                    break;
                case 2:
                    gather_words<2>(w, rows, to.at[0]);
                    break;
                case 4:
                    gather_words<4>(w, rows, to.at[0]);
                    break;
                default:
                    done = false;
            }
        }
    }
    for (int k = 0; k < c->n && !done; ++k) {
        const R* s = row<R>(w, rows[k]);
        for (u32 m = mask; m; m &= m - 1) {
            int l = first_lane(m);
            E x = E(s[l]);
            std::memcpy(to.at[l] + k * sizeof(E), &x, sizeof(E));
        }
    }
    if (suspect) {
        bool same = true;
        for (u32 m = mask; m; m &= m - 1)
            same = same && std::memcmp(before[first_lane(m)], to.at[first_lane(m)], bytes) == 0;
        settle_suspect(w, same);
    }
    if (sync) {
        ++w.block->events;
        ++w.block->worker->changes;
        if (w.block->racing) release_clocks(w, w.block->atomics);
    }
    return c + 1;
}

Handler load_of(const Code& c) {
    bool wide = c.has(flag::D64);
    switch (c.type) {
        case Type::S8:
            return wide                ? load<i8, i64, false>
                   : c.has(flag::WIDE) ? load<i8, i32, false>
                                       : load<i8, u32, true>;
        case Type::S16:
            return wide                ? load<i16, i64, false>
                   : c.has(flag::WIDE) ? load<i16, i32, false>
                                       : load<u16, u32, false>;
        case Type::S32:
            return wide ? load<i32, i64, false> : load<u32, u32, false>;
        default:
            break;
    }
    switch (bytes_of(c.type)) {
        case 1:
            return wide ? load<u8, u64, false> : load<u8, u32, false>;
        case 2:
            return wide ? load<u16, u64, false> : load<u16, u32, false>;
        case 4:
            return wide ? load<u32, u64, false> : load<u32, u32, false>;
        case 8:
            return load<u64, u64, false>;
        default:
            return nullptr;
    }
}

Handler store_of(const Code& c) {
    bool wide = c.has(flag::S64);
    switch (bytes_of(c.type)) {
        case 1:
            return wide ? store<u8, u64> : store<u8, u32>;
        case 2:
            return wide ? store<u16, u64> : store<u16, u32>;
        case 4:
            return wide ? store<u32, u64> : store<u32, u32>;
        case 8:
            return store<u64, u64>;
        default:
            return nullptr;
    }
}

}  // namespace

Form resolve_memory(const Code& c) {
    bool is_load = c.op == Op::LD;
    int bytes = bytes_of(c.type);
    if (c.n != 1 && c.n != 2 && c.n != 4 && c.n != 8) return {};
    if (c.type == Type::PRED || bytes > 8 || bytes * c.n > 32 || c.space > Space::CONST) return {};
    char address = c.has(flag::A64) ? '2' : '1';
    char data = bytes == 8 || c.has(is_load ? flag::D64 : flag::S64) ? '2' : '1';
    Form f;
    f.run = is_load ? load_of(c) : store_of(c);
    f.s = {address, '-', '-', '-'};
    if (c.n > 1) {
        if (c.n_list != c.n) return {};
        f.list = std::string(c.n, is_load ? (data == '2' ? 'B' : 'A') : data);
    } else if (is_load) {
        f.d = {data == '2' ? 'B' : 'A', '-'};
    } else {
        f.s[1] = data;
    }
    return f;
}

}  // namespace ptx
