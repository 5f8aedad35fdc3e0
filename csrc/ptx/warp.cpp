// What the lanes of a warp do together: shuffles, votes, matches, reductions; printing and
// assertions, which read strings of the program.
#include "checks.h"
#include "lanes.h"

namespace ptx {
namespace {

enum class Shuffle : u8 { UP, DOWN, BFLY, IDX };

// Whether the lanes of the member mask in operand `s[k]` are all here; false: return `*next`.
bool meet(Warp& w, const Code* c, u32 mask, int k, u32* members, const Code** next) {
    if (c->s[k] == kNone) {
        *members = mask;
        return true;
    }
    *members = row<u32>(w, c->s[k])[first_lane(mask)];
    if (mask & ~*members) {
        fail(Kind::SYNC_MASK, first_lane(mask & ~*members), *members,
             "executes with the member mask " + hex(*members) + ", in which the lane is not");
    }
    return gather_lanes(w, c, mask, *members, next);
}

// Lanes may name different members in one instruction (tiles of a warp): each group runs by its
// own.
template <Handler kRun, int kOperand>
const Code* by_members(Warp& w, const Code* c, u32 mask) {
    if (c->s[kOperand] == kNone) return kRun(w, c, mask);
    const u32* members = row<u32>(w, c->s[kOperand]);
    u32 first = members[first_lane(mask)];
    alignas(64) i32 equal[kLanes];
    for (int l = 0; l < kLanes; ++l) equal[l] = members[l] == first ? -1 : 0;
    u32 same = mask_of(equal);
    if ((mask & ~same) == 0) return kRun(w, c, mask);
    bool complete = true;
    for (u32 m = mask; m; m &= m - 1)
        complete = complete && (members[first_lane(m)] & w.live & ~mask) == 0;
    if (!complete) {  // the other groups become splits of their own, and meet whom they wait for
        fork(w, c->index, mask & ~same);
        ++count_of(w, c->index).delta;
        return kRun(w, c, mask & same);
    }
    for (u32 left = mask; left;) {
        u32 group = 0, wanted = members[first_lane(left)];
        for (u32 m = left; m; m &= m - 1)
            group |= u32(members[first_lane(m)] == wanted) << first_lane(m);
        kRun(w, c, group);
        left &= ~group;
    }
    return c + 1;
}

// For each lane the value of another.
void exchange(const u32* value, const u32* from, u32* to) {
#if defined(__AVX2__)
    // Each vector of eight lanes gives its candidate. Bits 3 and 4 of a lane's number, as signs,
    // choose among them: a gather takes several times as long.
    __m256i eight[4];
    for (int v = 0; v < 4; ++v)
        eight[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(value) + v);
    for (int v = 0; v < 4; ++v) {
        __m256i lane = _mm256_load_si256(reinterpret_cast<const __m256i*>(from) + v);
        __m256 x[4];
        for (int k = 0; k < 4; ++k)
            x[k] = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(eight[k], lane));
        __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(lane, 28));
        __m256 bit4 = _mm256_castsi256_ps(_mm256_slli_epi32(lane, 27));
        __m256 low = _mm256_blendv_ps(x[0], x[1], bit3), high = _mm256_blendv_ps(x[2], x[3], bit3);
        _mm256_store_ps(reinterpret_cast<float*>(to) + 8 * v, _mm256_blendv_ps(low, high, bit4));
    }
#else
    for (int l = 0; l < kLanes; ++l) to[l] = value[from[l]];
#endif
}

template <Shuffle kMode>
const Code* shuffle(Warp& w, const Code* c, u32 mask) {
    u32 members;
    const Code* next;
    if (!meet(w, c, mask, 3, &members, &next)) return next;
    const u32* a = row<u32>(w, c->s[0]);
    const u32* b = row<u32>(w, c->s[1]);
    const u32* e = row<u32>(w, c->s[2]);
    alignas(64) u32 t[kLanes], from[kLanes];
    alignas(64) i32 inside[kLanes];
    for (int l = 0; l < kLanes; ++l) {
        i32 lane = l, by = b[l] & 31, clamp = e[l] & 31, segment = e[l] >> 8 & 31;
        i32 top = (lane & segment) | (clamp & ~segment);
        i32 j = kMode == Shuffle::UP     ? lane - by
                : kMode == Shuffle::DOWN ? lane + by
                : kMode == Shuffle::BFLY ? lane ^ by
                                         : (lane & segment) | (by & ~segment);
        bool in = kMode == Shuffle::UP ? j >= top : j <= top;
        inside[l] = in ? -1 : 0;
        from[l] = u32(in ? j : lane) & 31;
    }
    exchange(a, from, t);
    fill<u32>(w, c->d[0], mask, [&](int l) { return t[l]; });
    set_predicate(w, c->d[1], mask, mask_of(inside));
    return c + 1;
}

constexpr Handler kShuffles[] = {
    by_members<shuffle<Shuffle::UP>, 3>, by_members<shuffle<Shuffle::DOWN>, 3>,
    by_members<shuffle<Shuffle::BFLY>, 3>, by_members<shuffle<Shuffle::IDX>, 3>};

enum class Vote : u8 { ALL, ANY, UNI, BALLOT };

const Code* vote(Warp& w, const Code* c, u32 mask) {
    u32 members;
    const Code* next;
    if (!meet(w, c, mask, 1, &members, &next)) return next;
    u32 asked = members & mask, p = predicate(w, c->s[0]) & asked;
    switch (static_cast<Vote>(c->sub)) {
        case Vote::ALL:
            set_predicate(w, c->d[0], mask, p == asked ? kFull : 0);
            break;
        case Vote::ANY:
            set_predicate(w, c->d[0], mask, p ? kFull : 0);
            break;
        case Vote::UNI:
            set_predicate(w, c->d[0], mask, p == asked || p == 0 ? kFull : 0);
            break;
        case Vote::BALLOT:
            fill<u32>(w, c->d[0], mask, [=](int) { return p; });
            break;
    }
    return c + 1;
}

template <class T>
const Code* match(Warp& w, const Code* c, u32 mask) {
    u32 members;
    const Code* next;
    if (!meet(w, c, mask, 1, &members, &next)) return next;
    T a[kLanes];
    std::memcpy(a, w.regs + c->s[0], sizeof(a));
    u32 first_equal = 0;
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        u32 same = 0;
        for (u32 k = mask; k; k &= k - 1) {
            if (a[first_lane(k)] == a[l]) same |= 1u << first_lane(k);
        }
        if (l == first_lane(mask)) first_equal = same;
        if (c->sub == 0) row<u32>(w, c->d[0])[l] = same;
    }
    if (c->sub == 1) {
        bool all = first_equal == mask;
        fill<u32>(w, c->d[0], mask, [=](int) { return all ? mask : 0u; });
        set_predicate(w, c->d[1], mask, all ? kFull : 0);
    }
    return c + 1;
}

enum class Reduce : u8 { ADD, MIN, MAX, AND, OR, XOR };

const Code* redux(Warp& w, const Code* c, u32 mask) {
    u32 members;
    const Code* next;
    if (!meet(w, c, mask, 1, &members, &next)) return next;
    const u32* a = row<u32>(w, c->s[0]);
    Reduce how = static_cast<Reduce>(c->sub);
    u32 out = 0;
    bool first = true;
    for (u32 m = mask; m; m &= m - 1) {
        u32 x = a[first_lane(m)];
        if (c->type == Type::F32 && c->has(flag::RELU)) x &= 0x7FFFFFFF;  // .abs
        if (first) {
            out = x;
            first = false;
            continue;
        }
        if (c->type == Type::F32) {
            float f = bits<float>(out), g = bits<float>(x);
            bool nan = f != f || g != g;
            if (nan) {
                out = c->has(flag::NANP) ? 0x7FFFFFFF : f != f ? x : out;
            } else {
                out = (how == Reduce::MIN ? g < f : g > f) ? x : out;
            }
            continue;
        }
        bool less = c->type == Type::S32 ? i32(x) < i32(out) : x < out;
        switch (how) {
            case Reduce::ADD:
                out += x;
                break;
            case Reduce::MIN:
                out = less ? x : out;
                break;
            case Reduce::MAX:
                out = less ? out : x;
                break;
            case Reduce::AND:
                out &= x;
                break;
            case Reduce::OR:
                out |= x;
                break;
            case Reduce::XOR:
                out ^= x;
                break;
        }
    }
    fill<u32>(w, c->d[0], mask, [=](int) { return out; });
    return c + 1;
}

const Code* elect(Warp& w, const Code* c, u32 mask) {
    u32 members;
    const Code* next;
    if (!meet(w, c, mask, 0, &members, &next)) return next;
    u32 leader = first_lane(mask);
    fill<u32>(w, c->d[0], mask, [=](int) { return leader; });
    set_predicate(w, c->d[1], mask, 1u << leader);
    return c + 1;
}

const Code* active_mask(Warp& w, const Code* c, u32 mask) {
    fill<u32>(w, c->d[0], mask, [=](int) { return mask; });
    return c + 1;
}

// ---- strings and arguments in the program's memory ----

const u8* peek(Warp& w, const Code* c, int lane, u64 at, u32 bytes) {
    Code view = *c;
    view.space = Space::GENERIC;
    alignas(64) u64 all[kLanes] = {};
    all[lane] = at;
    Located out;
    bool count = w.block->worker->count_memory;
    w.block->worker->count_memory = false;  // the printing is not the kernel's traffic
    locate(w, &view, 1u << lane, all, bytes, Access::READ, &out);
    w.block->worker->count_memory = count;
    return out.at[lane];
}

std::string text_at(Warp& w, const Code* c, int lane, u64 at) {
    std::string out;
    while (out.size() < 4096) {
        char x = static_cast<char>(*peek(w, c, lane, at + out.size(), 1));
        if (x == 0) break;
        out += x;
    }
    return out;
}

// printf's formats, with arguments packed as C would pass them in a structure.
std::string formatted(Warp& w, const Code* c, int lane, const std::string& format, u64 arguments) {
    std::string out;
    u64 at = arguments;
    auto take = [&](u32 bytes) {
        at = (at + bytes - 1) / bytes * bytes;
        u64 x = 0;
        std::memcpy(&x, peek(w, c, lane, at, bytes), bytes);
        at += bytes;
        return x;
    };
    for (std::size_t i = 0; i < format.size(); ++i) {
        if (format[i] != '%') {
            out += format[i];
            continue;
        }
        if (i + 1 < format.size() && format[i + 1] == '%') {
            out += '%';
            ++i;
            continue;
        }
        std::string spec = "%";
        bool is_long = false;
        for (++i; i < format.size(); ++i) {
            char x = format[i];
            if (x == '*') {
                int width = int(i32(take(4)));
                spec += std::to_string(width > 512 ? 512 : width < -512 ? -512 : width);
            } else if (std::strchr("+- #0123456789.", x) != nullptr) {
                spec += x;
            } else if (x == 'l' || x == 'z' || x == 'j' || x == 't') {
                is_long = true;
            } else if (x != 'h') {
                break;
            }
        }
        if (i >= format.size() || spec.size() > 16) return out + spec;
        char buffer[1024];
        char kind = format[i];
        buffer[0] = 0;
        switch (kind) {
            case 'd':
            case 'i': {
                long long x = is_long ? static_cast<long long>(take(8)) : i32(take(4));
                std::snprintf(buffer, sizeof(buffer), (spec + "lld").c_str(), x);
                break;
            }
            case 'u':
            case 'x':
            case 'X':
            case 'o': {
                unsigned long long x = is_long ? take(8) : take(4);
                std::snprintf(buffer, sizeof(buffer), (spec + "ll" + kind).c_str(), x);
                break;
            }
            case 'c':
                std::snprintf(buffer, sizeof(buffer), (spec + "c").c_str(), int(take(4) & 0xFF));
                break;
            case 'p':
                std::snprintf(buffer, sizeof(buffer), "0x%llx",
                              static_cast<unsigned long long>(take(8)));
                break;
            case 's':
                std::snprintf(buffer, sizeof(buffer), (spec + "s").c_str(),
                              text_at(w, c, lane, take(8)).c_str());
                break;
            case 'e':
            case 'E':
            case 'f':
            case 'F':
            case 'g':
            case 'G':
            case 'a':
            case 'A':
                std::snprintf(buffer, sizeof(buffer), (spec + kind).c_str(), bits<double>(take(8)));
                break;
            default:
                return out + spec + kind;
        }
        out += buffer;
    }
    return out;
}

const Code* print(Warp& w, const Code* c, u32 mask) {
    Worker& worker = *w.block->worker;
    for (u32 m = mask; m; m &= m - 1) {
        int l = first_lane(m);
        std::string format = text_at(w, c, l, row<u64>(w, c->s[0])[l]);
        std::string text = formatted(w, c, l, format, row<u64>(w, c->s[1])[l]);
        auto& all = worker.printed;
        if (all.empty() || all.back().first != w.block->rank) all.emplace_back(w.block->rank, "");
        if (all.back().second.size() + text.size() <= w.block->launch->limits.print_bytes)
            all.back().second += text;
        row<u32>(w, c->d[0])[l] = 1;
    }
    return c + 1;
}

const Code* assertion(Warp& w, const Code* c, u32 mask) {
    int l = first_lane(mask);
    std::string message = text_at(w, c, l, row<u64>(w, c->s[0])[l]);
    std::string file = text_at(w, c, l, row<u64>(w, c->s[1])[l]);
    std::string function = text_at(w, c, l, row<u64>(w, c->s[3])[l]);
    fail(Kind::ASSERT, l, 0,
         "assertion failed: " + message + " (" + file + ":" +
             std::to_string(row<u32>(w, c->s[2])[l]) + (function.empty() ? "" : ", " + function) +
             ")");
}

}  // namespace

Form resolve_warp(const Code& c) {
    bool wide = bytes_of(c.type) == 8;
    switch (c.op) {
        case Op::SHFL:
            return {c.sub < 4 ? kShuffles[c.sub] : nullptr, "1P", "111A"};
        case Op::VOTE:
            return {c.sub < 4 ? by_members<vote, 1> : nullptr, c.sub == 3 ? "1-" : "p-", "pA--"};
        case Op::MATCH:
            return {wide ? by_members<match<u64>, 1> : by_members<match<u32>, 1>, "1P",
                    wide ? "21--" : "11--"};
        case Op::REDUX: {
            bool known = c.sub < 6 && (c.type != Type::F32 || c.sub == 1 || c.sub == 2);
            return {known ? by_members<redux, 1> : nullptr, "1-", "11--"};
        }
        case Op::ELECT:
            return {by_members<elect, 0>, "AP", "1---"};
        case Op::ACTIVEMASK:
            return {active_mask, "1-", "----"};
        case Op::VPRINTF:
            return {print, "A-", "22--"};
        case Op::ASSERTFAIL:
            return {assertion, "--", "2212"};
        default:
            return {};
    }
}

}  // namespace ptx
