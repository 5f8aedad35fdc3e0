// Atomic updates of shared and global memory. On global memory they are atomic on the host too:
// integer reductions run on several threads. Lanes of a warp update in order.
#include <type_traits>

#include "checks.h"
#include "lanes.h"

namespace ptx {
namespace {

// How one element combines with an operand: on the bits U that memory holds.
template <class L, class U>
U combine(Atom how, U old, U x, U y) {
    using V = typename L::V;
    using R = typename L::R;
    auto get = [](U u) {
        if constexpr (sizeof(R) == sizeof(U)) {
            return L::get(bits<R>(u));
        } else {
            return L::get(R(u));
        }
    };
    auto put = [](V v) {
        if constexpr (sizeof(R) == sizeof(U)) {
            return bits<U>(L::put(v));
        } else {
            return U(L::put(v));
        }
    };
    switch (how) {
        case Atom::ADD:
            return put(get(old) + get(x));
        case Atom::MIN:
        case Atom::MAX: {
            V a = get(old), b = get(x);
            if (a != a) return x;
            if (b != b) return old;
            return (how == Atom::MIN ? b < a : b > a) ? x : old;
        }
        case Atom::AND:
            return old & x;
        case Atom::OR:
            return old | x;
        case Atom::XOR:
            return old ^ x;
        case Atom::EXCH:
            return x;
        case Atom::CAS:
            return old == x ? y : old;
        case Atom::INC:
            return get(old) >= get(x) ? U(0) : U(old + 1);
        case Atom::DEC:
            return old == 0 || get(old) > get(x) ? x : U(old - 1);
        default:
            return old;
    }
}
template <class L>
u32 combine_pair(Atom how, u32 old, u32 x) {
    u32 low = combine<L, u16>(how, u16(old), u16(x), 0);
    u32 high = combine<L, u16>(how, u16(old >> 16), u16(x >> 16), 0);
    return low | high << 16;
}

template <class L, class U, bool kPair>
U update(u8* at, Atom how, U x, U y) {
    U* p = reinterpret_cast<U*>(at);
    U old = __atomic_load_n(p, __ATOMIC_RELAXED), next;
    do {
        if constexpr (kPair) {
            next = combine_pair<L>(how, old, x);
        } else {
            next = combine<L, U>(how, old, x, y);
        }
    } while (
        !__atomic_compare_exchange_n(p, &old, next, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    return old;
}

template <class L, class U, bool kPair>
const Code* atomic(Warp& w, const Code* c, u32 mask) {
    using R = std::conditional_t<sizeof(U) == 8, u64, u32>;
    Block& b = *w.block;
    if (b.racing) acquire_clocks(w, b.atomics);
    alignas(64) u64 at[kLanes];
    Located to;
    addresses(w, c, at);
    locate(w, c, mask, at, c->n * u32(sizeof(U)), Access::ATOMIC, &to);
    w.suspect = Suspect{};
    Atom how = static_cast<Atom>(c->sub);
    bool returns = c->op == Op::ATOM;
    u32 shift = returns && c->n > 1 ? c->n : 0;
    bool changed = false;
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        for (int k = 0; k < c->n; ++k) {
            u32 operand = c->n > 1 ? c->list[shift + k] : c->s[1];
            U x = U(row<R>(w, operand)[l]);
            U y = how == Atom::CAS ? U(row<R>(w, c->s[2])[l]) : U(0);
            U old = update<L, U, kPair>(to.at[l] + k * sizeof(U), how, x, y);
            changed = changed || (how == Atom::CAS    ? old == x && x != y
                                  : how == Atom::EXCH ? old != x
                                                      : x != 0);
            if (returns) row<R>(w, c->n > 1 ? c->list[k] : c->d[0])[l] = old;
        }
    }
    if (changed) {
        ++b.events;
        ++b.worker->changes;
    } else {
        polled(w, 1);
    }
    if (b.racing) release_clocks(w, b.atomics);
    return c + 1;
}

bool allowed(Type t, Atom how) {
    bool floating = is_float(t);
    switch (how) {
        case Atom::ADD:
            return t != Type::B32 && t != Type::B64;
        case Atom::MIN:
        case Atom::MAX:
            return t != Type::F32 && t != Type::F64;
        case Atom::AND:
        case Atom::OR:
        case Atom::XOR:
            return !floating;
        case Atom::EXCH:
        case Atom::CAS:
            return !floating;
        case Atom::INC:
        case Atom::DEC:
            return t == Type::U32;
        default:
            return false;
    }
}

Handler handler_of(Type t) {
    switch (t) {
        case Type::B16:
        case Type::U16:
            return atomic<LU16, u16, false>;
        case Type::U32:
        case Type::B32:
            return atomic<LU32, u32, false>;
        case Type::S32:
            return atomic<LS32, u32, false>;
        case Type::U64:
        case Type::B64:
            return atomic<LU64, u64, false>;
        case Type::S64:
            return atomic<LS64, u64, false>;
        case Type::F32:
            return atomic<LF32, u32, false>;
        case Type::F64:
            return atomic<LF64, u64, false>;
        case Type::F16:
            return atomic<LF16, u16, false>;
        case Type::BF16:
            return atomic<LBF16, u16, false>;
        case Type::F16X2:
            return atomic<LF16, u32, true>;
        case Type::BF16X2:
            return atomic<LBF16, u32, true>;
        default:
            return nullptr;
    }
}

}  // namespace

Form resolve_atomic(const Code& c) {
    if (c.sub >= static_cast<u8>(Atom::COUNT) || !allowed(c.type, static_cast<Atom>(c.sub)))
        return {};
    if (c.space != Space::GLOBAL && c.space != Space::SHARED && c.space != Space::GENERIC)
        return {};
    if (c.flags & (flag::D64 | flag::S64)) return {};
    Atom how = static_cast<Atom>(c.sub);
    char k = letter(c.type), written = k == '2' ? 'B' : 'A';
    Form f;
    f.run = handler_of(c.type);
    f.s = {c.has(flag::A64) ? '2' : '1', k, how == Atom::CAS ? k : '-', '-'};
    bool returns = c.op == Op::ATOM;
    if (c.n > 1) {
        if ((c.n != 2 && c.n != 4 && c.n != 8) || how == Atom::CAS || c.n * bytes_of(c.type) > 16)
            return {};
        f.s[1] = '-';
        f.list = (returns ? std::string(c.n, written) : "") + std::string(c.n, k);
    } else if (c.n != 1) {
        return {};
    } else if (returns) {
        f.d = {written, '-'};
    }
    return f;
}

}  // namespace ptx
