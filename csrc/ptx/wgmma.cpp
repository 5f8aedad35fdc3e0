// wgmma.mma_async: each warp computes its 16 of the 64 rows, at once; the groups that software
// waits for are therefore always complete.
#include "checks.h"
#include "matrix.h"

namespace ptx {
namespace {

// Where a matrix operand lies in shared memory (PTX ISA, "Matrix Descriptor Format").
struct Descriptor {
    u32 start, lbo, sbo, mode;
    explicit Descriptor(u64 d)
        : start(u32(d & 0x3FFF) << 4),
          lbo(u32(d >> 16 & 0x3FFF) << 4),
          sbo(u32(d >> 32 & 0x3FFF) << 4),
          mode(u32(d >> 62)) {}

    u32 width() const { return mode == 1 ? 128 : mode == 2 ? 64 : mode == 3 ? 32 : 16; }

    // The address of the 16-byte chunk with `k` (and `mn`) of elements of `size` bytes.
    u32 chunk(u32 mn, u32 k, u32 size, bool mn_major) const {
        u32 w = width(), at;
        if (!mn_major) {
            u32 byte = k * size;
            at = mode == 0 ? start + mn / 8 * sbo + byte / 16 * lbo + mn % 8 * 16
                           : start + mn / 8 * sbo + mn % 8 * w + byte;
        } else {
            u32 per = w / size;
            at = mode == 0 ? start + mn / per * sbo + k % 8 * 16 + k / 8 * lbo
                           : start + mn / per * lbo + mn % per * size + k % 8 * w + k / 8 * sbo;
        }
        u32 mask = mode == 1 ? 7 : mode == 2 ? 3 : mode == 3 ? 1 : 0;
        return at ^ (at >> 7 & mask) << 4;
    }
};

struct Source {
    Warp& w;
    const Code* c;
    int lane;
    const u8* chunk(u32 at) const {
        Block& b = *w.block;
        if (at > b.shared_bytes || b.shared_bytes - at < 16) {
            fail(Kind::OUT_OF_BOUNDS, lane, at,
                 "a matrix descriptor reaches " + std::to_string(at) +
                     " of shared memory; the block has " + std::to_string(b.shared_bytes) +
                     " bytes");
        }
        if (b.checking) touch_read(w, c, lane, at, 16);
        return b.shared.data() + at;
    }
};

V8 eight_of(const u8* p, Type t) {
    if (t == Type::F16) return eight_halves(p);
    if (t == Type::BF16) return eight_bf16(p);
    V8 out;
    int size = bytes_of(t);
    for (int i = 0; i < 8; ++i) out[i] = element_of(p + i * size, t);
    return out;
}

// Eight values along mn or k that start at a chunk; 32-bit elements take two chunks.
void load_eight(const Source& s, const Descriptor& d, u32 mn, u32 k, Type t, bool mn_major,
                float* to) {
    u32 size = u32(bytes_of(t)), per = 16 / size;
    u8 raw[32];
    u32 chunks = (8 + per - 1) / per;
    for (u32 i = 0; i < chunks; ++i) {
        u32 step = i * per;
        u32 at = mn_major ? d.chunk(mn + step, k, size, true) : d.chunk(mn, k + step, size, false);
        std::memcpy(raw + 16 * i, s.chunk(at & ~15u), 16);
    }
    V8 x = eight_of(raw + (size == 1 && !mn_major ? k % 16 : 0), t);
    std::memcpy(to, &x, 32);
}

// A as 16 rows of `depth` floats.
void load_a(Warp& w, const Code* c, const Source& s, u32 depth, float* to) {
    Type t = c->type2;
    u32 size = u32(bytes_of(t));
    if (c->n == 1) {
        const u32* a = c->list + c->n_list - 4;
        u32 per = 16 / size;
        for (u32 r = 0; r < 4; ++r) {
            for (u32 x = 0; x < 8 * per; ++x) {
                u32 i = (r & 1) * 8 + x / per, k = (r >> 1) * per + x % per;
                to[i * 32 + k] = element_of(w.regs + a[r] + 16 * (x / per) + x % per * size, t);
            }
        }
    } else {
        Descriptor d(row<u64>(w, c->s[0])[s.lane]);
        u32 first = w.id % 4 * 16;
        bool mn_major = c->imm >> 2 & 1;
        if (mn_major) {
            for (u32 k = 0; k < depth; ++k) {
                for (u32 i = 0; i < 16; i += 8) {
                    float column[8];
                    load_eight(s, d, first + i, k, t, true, column);
                    for (u32 j = 0; j < 8; ++j) to[(i + j) * 32 + k] = column[j];
                }
            }
        } else {
            for (u32 i = 0; i < 16; ++i) {
                for (u32 k = 0; k < depth; k += 8)
                    load_eight(s, d, first + i, k, t, false, to + i * 32 + k);
            }
        }
    }
    if (c->imm & 1) {
        for (u32 i = 0; i < 16 * 32; ++i) to[i] = -to[i];
    }
}

// Eight columns of B, in their places: `depth` rows of eight.
void load_b(const Code* c, const Source& s, const Descriptor& d, u32 n, u32 depth, V8* to) {
    Type t = static_cast<Type>(c->sub);
    bool mn_major = c->imm >> 3 & 1;
    if (mn_major) {
        for (u32 k = 0; k < depth; ++k) {
            load_eight(s, d, n, k, t, true, reinterpret_cast<float*>(to + k));
            to[k] = place_columns(to[k]);
        }
    } else {
        for (u32 k = 0; k < depth; k += 8) {
            for (u32 j = 0; j < 8; ++j) {
                V8* row = to + k + place_of(int(j));
                load_eight(s, d, n + j, k, t, false, reinterpret_cast<float*>(row));
            }
            transpose8(to + k);
        }
    }
    if (c->imm & 2) {
        for (u32 k = 0; k < depth; ++k) to[k] = -to[k];
    }
}

int columns_of(const Code& c) { return int(c.aux >> 8 & 0xFFF); }

const Code* wgmma_float(Warp& w, const Code* c, u32 mask) {
    const Code* next;
    if (!gather_lanes(w, c, mask, kFull, &next)) return next;
    int lane = first_lane(mask);
    Source s{w, c, lane};
    u32 depth = c->aux & 0xFF;
    bool packed = c->type == Type::F16, add = predicate(w, c->s[2]) >> lane & 1;
    alignas(32) float a[16 * 32] = {};
    load_a(w, c, s, depth, a);
    Descriptor d(row<u64>(w, c->s[1])[lane]);
    V8 b[32];
    for (int n = 0; n < columns_of(*c); n += 8) {
        load_b(c, s, d, u32(n), depth, b);
        for (int half = 0; half < 2; ++half) {
            V8 rows[8] = {};
            alignas(32) float even[kLanes], odd[kLanes];
            const u32* out = c->list + (packed ? n / 4 + half : n / 2 + 2 * half);
            if (add && packed) {
                const u32* p = row<u32>(w, out[0]);
                for (int l = 0; l < kLanes; ++l) {
                    even[l] = half_to_float(p[l] & 0xFFFF);
                    odd[l] = half_to_float(p[l] >> 16);
                }
                rows_of_fragment(even, odd, rows);
            } else if (add) {
                rows_of_fragment(row<float>(w, out[0]), row<float>(w, out[1]), rows);
            }
            multiply_rows(rows, a + half * 8 * 32, 32, b, int(depth));
            fragment_of_rows(rows, even, odd);
            if (packed) {
                fill<u32>(w, out[0], mask, [&](int l) {
                    return float_to_half(even[l]) | float_to_half(odd[l]) << 16;
                });
            } else {
                fill<float>(w, out[0], mask, [&](int l) { return even[l]; });
                fill<float>(w, out[1], mask, [&](int l) { return odd[l]; });
            }
        }
    }
    return c + 1;
}

const Code* wgmma_integer(Warp& w, const Code* c, u32 mask) {
    const Code* next;
    if (!gather_lanes(w, c, mask, kFull, &next)) return next;
    int lane = first_lane(mask);
    Source s{w, c, lane};
    bool add = predicate(w, c->s[2]) >> lane & 1;
    bool signed_a = c->type2 == Type::S8, signed_b = static_cast<Type>(c->sub) == Type::S8;
    i32 a[16][32], b[8][32];
    if (c->n == 1) {
        const u32* list = c->list + c->n_list - 4;
        for (u32 r = 0; r < 4; ++r) {
            const u8* p = w.regs + list[r];
            for (u32 x = 0; x < 128; ++x)
                a[(r & 1) * 8 + x / 16][(r >> 1) * 16 + x % 16] =
                    signed_a ? i32(i8(p[x])) : i32(p[x]);
        }
    } else {
        Descriptor d(row<u64>(w, c->s[0])[lane]);
        for (u32 i = 0; i < 16; ++i) {
            for (u32 k = 0; k < 32; k += 16) {
                const u8* p = s.chunk(d.chunk(w.id % 4 * 16 + i, k, 1, false) & ~15u);
                for (u32 x = 0; x < 16; ++x) a[i][k + x] = signed_a ? i32(i8(p[x])) : i32(p[x]);
            }
        }
    }
    Descriptor d(row<u64>(w, c->s[1])[lane]);
    for (int n = 0; n < columns_of(*c); n += 8) {
        for (u32 j = 0; j < 8; ++j) {
            for (u32 k = 0; k < 32; k += 16) {
                const u8* p = s.chunk(d.chunk(u32(n) + j, k, 1, false) & ~15u);
                for (u32 x = 0; x < 16; ++x) b[j][k + x] = signed_b ? i32(i8(p[x])) : i32(p[x]);
            }
        }
        for (int r = 0; r < 4; ++r) {
            u32 out = c->list[n / 2 + r];
            fill<i32>(w, out, mask, [&](int l) {
                i64 sum = add ? row<i32>(w, out)[l] : 0;
                for (int k = 0; k < 32; ++k)
                    sum += a[r / 2 * 8 + l / 4][k] * b[2 * (l % 4) + r % 2][k];
                if (c->has(flag::SAT))
                    sum = sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum;
                return i32(sum);
            });
        }
    }
    return c + 1;
}

const Code* together(Warp& w, const Code* c, u32 mask) {
    const Code* next;
    if (!gather_lanes(w, c, mask, kFull, &next)) return next;
    return c + 1;
}

}  // namespace

Form resolve_wgmma(const Code& c) {
    if (c.op != Op::WGMMA) return {together, "--", "----"};
    Type a = c.type2, b = static_cast<Type>(c.sub < static_cast<u8>(Type::COUNT) ? c.sub : 0);
    int m = int(c.aux >> 20), n = columns_of(c), k = int(c.aux & 0xFF);
    Form f;
    if (m != 64 || n < 8 || n > 256 || n % 8 || c.n > 1 || k * bytes_of(a) != 32) return f;
    bool eight = a == Type::E4M3 || a == Type::E5M2, integers = a == Type::S8 || a == Type::U8;
    if (a == Type::F16 || a == Type::BF16 || a == Type::TF32 || eight) {
        bool same = eight ? b == Type::E4M3 || b == Type::E5M2 : a == b;
        if (!same ||
            (c.type != Type::F32 && (c.type != Type::F16 || a == Type::BF16 || a == Type::TF32)))
            return f;
        if ((c.imm & 12) && a != Type::F16 && a != Type::BF16) return f;  // only these transpose
        f.run = wgmma_float;
    } else if (integers && (b == Type::S8 || b == Type::U8) && c.type == Type::S32) {
        if (c.imm & 15) return f;
        f.run = wgmma_integer;
    } else {
        return f;
    }
    f.list = std::string(c.type == Type::F16 ? n / 4 : n / 2, 'A') + (c.n == 1 ? "1111" : "");
    f.s = {c.n == 1 ? '-' : '2', '2', 'p', '-'};
    return f;
}

}  // namespace ptx
