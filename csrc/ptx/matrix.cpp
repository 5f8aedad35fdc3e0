// mma.sync, ldmatrix, stmatrix, movmatrix.
//
// A fragment register, seen as 32 lanes × 32 bits, is a row-major matrix of 8 rows × 16 bytes: row
// l/4, bytes 4(l%4) onwards. A has its registers in the order (rows 0–7, 8–15) within each 16 bytes
// of k; B is n-major, a register for each 16 bytes of k. Sources: PTX ISA, "Matrix Fragments".
#include "checks.h"
#include "matrix.h"

namespace ptx {
namespace {

struct Shape {
    int m, n, k;
};
Shape shape_of(const Code& c) {
    return {int(c.aux >> 16), int(c.aux >> 8 & 0xFF), int(c.aux & 0xFF)};
}

template <class L8>
void halves_to_rows(const u8* fragment, float* to, int stride, L8 load) {
    for (int i = 0; i < 8; ++i) {
        V8 x = load(fragment + 16 * i);
        std::memcpy(to + i * stride, &x, 32);
    }
}

// Of its own, so that what the mask needs is not prepared where all lanes are there.
__attribute__((noinline)) void keep(Warp& w, u32 mask, u32 offset, const void* x) {
    const u32* lanes = static_cast<const u32*>(x);
    fill<u32>(w, offset, mask, [=](int l) { return lanes[l]; });
}

// m16n8k16 and m16n8k8 with 16-bit operands and float accumulators.
template <bool kBrain>
const Code* mma_half(Warp& w, const Code* c, u32 mask) {
    const Code* next;
    if (!gather_lanes(w, c, mask, kFull, &next)) return next;
    auto load = [](const u8* p) { return kBrain ? eight_bf16(p) : eight_halves(p); };
    int chunks = int(c->aux & 0xFF) / 8;
    const u32* d = c->list;
    const u32* a = d + 4;
    const u32* b = a + 2 * chunks;
    const u32* e = b + chunks;
    float* left = w.left.data();
    if (!c->same_left || w.left_of != c->index - 1) {
        for (int r = 0; r < 2 * chunks; ++r)
            halves_to_rows(w.regs + a[r], left + (r & 1) * 8 * 16 + (r >> 1) * 8, 16, load);
    }
    w.left_of = mask == kFull ? c->index : kNone;
    V8 right[16];
    for (int r = 0; r < chunks; ++r) {
        for (int i = 0; i < 8; ++i) right[8 * r + place_of(i)] = load(w.regs + b[r] + 16 * i);
        transpose8(right + 8 * r);
    }
    for (int half = 0; half < 2; ++half) {
        V8 rows[8];
        rows_of_fragment(row<float>(w, e[2 * half]), row<float>(w, e[2 * half + 1]), rows);
        multiply_rows(rows, left + half * 8 * 16, 16, right, 8 * chunks);
        if (mask == kFull) {
            fragment_of_rows(rows, row<float>(w, d[2 * half]), row<float>(w, d[2 * half + 1]));
        } else {
            alignas(32) float even[kLanes], odd[kLanes];
            fragment_of_rows(rows, even, odd);
            keep(w, mask, d[2 * half], even);
            keep(w, mask, d[2 * half + 1], odd);
        }
    }
    return c + 1;
}

// Every other shape with float accumulators (or float16, rounded at the end).
const Code* mma_float(Warp& w, const Code* c, u32 mask) {
    const Code* next;
    if (!gather_lanes(w, c, mask, kFull, &next)) return next;
    Shape s = shape_of(*c);
    Type tb = static_cast<Type>(c->sub);
    int ea = bytes_of(c->type2), per = 16 / ea;
    int halves = s.m / 8;
    int chunks = (s.k + per - 1) / per;
    bool packed = c->type == Type::F16;
    int nd = packed ? halves : 2 * halves;
    const u32* d = c->list;
    const u32* a = d + nd;
    const u32* b = a + halves * chunks;
    const u32* e = b + chunks;
    alignas(32) float left[16 * 32] = {};
    V8 right[32] = {};
    for (int r = 0; r < halves * chunks; ++r) {
        for (int x = 0; x < 8 * per; ++x) {
            int i = x / per, k = r / halves * per + x % per;
            left[((r % halves) * 8 + i) * 32 + k] =
                element_of(w.regs + a[r] + 16 * i + (x % per) * ea, c->type2);
        }
    }
    for (int r = 0; r < chunks; ++r) {
        for (int x = 0; x < 8 * per; ++x) {
            right[r * per + x % per][place_of(x / per)] =
                element_of(w.regs + b[r] + 16 * (x / per) + (x % per) * ea, tb);
        }
    }
    for (int half = 0; half < halves; ++half) {
        V8 rows[8];
        alignas(32) float even[kLanes], odd[kLanes];
        if (packed) {
            const u32* p = row<u32>(w, e[half]);
            for (int l = 0; l < kLanes; ++l) {
                even[l] = half_to_float(p[l] & 0xFFFF);
                odd[l] = half_to_float(p[l] >> 16);
            }
            rows_of_fragment(even, odd, rows);
        } else {
            rows_of_fragment(row<float>(w, e[2 * half]), row<float>(w, e[2 * half + 1]), rows);
        }
        multiply_rows(rows, left + half * 8 * 32, 32, right, s.k);
        fragment_of_rows(rows, even, odd);
        if (packed) {
            fill<u32>(w, d[half], mask,
                      [&](int l) { return float_to_half(even[l]) | float_to_half(odd[l]) << 16; });
        } else {
            keep(w, mask, d[2 * half], even);
            keep(w, mask, d[2 * half + 1], odd);
        }
    }
    return c + 1;
}

const Code* mma_integer(Warp& w, const Code* c, u32 mask) {
    const Code* next;
    if (!gather_lanes(w, c, mask, kFull, &next)) return next;
    Shape s = shape_of(*c);
    bool signed_a = c->type2 == Type::S8, signed_b = static_cast<Type>(c->sub) == Type::S8;
    int halves = s.m / 8, chunks = s.k / 16;
    const u32* d = c->list;
    const u32* a = d + 2 * halves;
    const u32* b = a + halves * chunks;
    const u32* e = b + chunks;
    i32 left[16][32], right[8][32];
    for (int r = 0; r < halves * chunks; ++r) {
        const u8* p = w.regs + a[r];
        for (int x = 0; x < 128; ++x) {
            left[(r % halves) * 8 + x / 16][r / halves * 16 + x % 16] =
                signed_a ? i32(i8(p[x])) : i32(p[x]);
        }
    }
    for (int r = 0; r < chunks; ++r) {
        const u8* p = w.regs + b[r];
        for (int x = 0; x < 128; ++x)
            right[x / 16][r * 16 + x % 16] = signed_b ? i32(i8(p[x])) : i32(p[x]);
    }
    i32 out[4][kLanes];
    for (int r = 0; r < 2 * halves; ++r) {
        const i32* add = row<i32>(w, e[r]);
        for (int l = 0; l < kLanes; ++l) {
            const i32* x = left[(r / 2) * 8 + l / 4];
            const i32* y = right[2 * (l % 4) + r % 2];
            i32 dot = 0;
            for (int k = 0; k < s.k; ++k) dot += x[k] * y[k];
            i64 sum = i64(add[l]) + dot;
            if (c->has(flag::SAT))
                sum = sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum;
            out[r][l] = i32(sum);
        }
    }
    for (int r = 0; r < 2 * halves; ++r) {
        fill<i32>(w, d[r], mask, [&](int l) { return out[r][l]; });
    }
    return c + 1;
}

// m8n8k4 in double precision.
const Code* mma_double(Warp& w, const Code* c, u32 mask) {
    const Code* next;
    if (!gather_lanes(w, c, mask, kFull, &next)) return next;
    const u32* list = c->list;
    const double* a = row<double>(w, list[2]);
    const double* b = row<double>(w, list[3]);
    double out[2][kLanes];
    for (int r = 0; r < 2; ++r) {
        const double* e = row<double>(w, list[4 + r]);
        for (int l = 0; l < kLanes; ++l) {
            double sum = e[l];
            for (int k = 0; k < 4; ++k)
                sum = __builtin_fma(a[l / 4 * 4 + k], b[(2 * (l % 4) + r) * 4 + k], sum);
            out[r][l] = sum;
        }
    }
    for (int r = 0; r < 2; ++r) fill<double>(w, list[r], mask, [&](int l) { return out[r][l]; });
    return c + 1;
}

// ---- between shared memory and fragments ----

// The eight rows of 16 bytes at these offsets, as columns.
void transpose_halves(const u8* base, const u32* row, u8* to) {
#if defined(__AVX2__)
    __m128i r[8], t[8];
    for (int i = 0; i < 8; ++i)
        r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(base + row[i]));
    for (int pass = 0; pass < 3; ++pass) {  // rows i and i + 4, interleaved
        for (int i = 0; i < 4; ++i) {
            t[2 * i] = _mm_unpacklo_epi16(r[i], r[i + 4]);
            t[2 * i + 1] = _mm_unpackhi_epi16(r[i], r[i + 4]);
        }
        for (int i = 0; i < 8; ++i) r[i] = t[i];
    }
    for (int i = 0; i < 8; ++i) _mm_store_si128(reinterpret_cast<__m128i*>(to) + i, r[i]);
#else
    u16 x[8][8], y[8][8];
    for (int i = 0; i < 8; ++i) std::memcpy(x[i], base + row[i], 16);
    for (int i = 0; i < 8; ++i) {
        for (int j = 0; j < 8; ++j) y[j][i] = x[i][j];
    }
    std::memcpy(to, y, 128);
#endif
}
// A fragment register, in place.
void transpose_halves(u8* matrix) {
    constexpr u32 row[8] = {0, 16, 32, 48, 64, 80, 96, 112};
    transpose_halves(matrix, row, matrix);
}

// Where the rows of the matrices lie in shared memory.
void locate_rows(Warp& w, const Code* c, Access access, u32* offset) {
    u32 named = c->n == 4 ? kFull : (1u << 8 * c->n) - 1;
    if (c->has(flag::A64)) {
        alignas(64) u64 at[kLanes];
        addresses(w, c, at);
        for (int l = 0; l < kLanes; ++l)
            at[l] -= at[l] >> 32 << 32 == kSharedWindow ? kSharedWindow : 0;
        locate_shared16(w, c, named, at, access, offset);
    } else {
        const u32* a = row<u32>(w, c->s[0]);
        for (int l = 0; l < kLanes; ++l) offset[l] = a[l] + u32(c->imm);
        locate_shared16(w, c, named, offset, access, offset);
    }
    if (w.block->worker->count_memory) count_shared(w, c, named, offset, 16, 8);
}

const Code* load_matrix(Warp& w, const Code* c, u32 mask) {
    const Code* next;
    if (!gather_lanes(w, c, mask, kFull, &next)) return next;
    alignas(64) u32 from[kLanes];
    locate_rows(w, c, Access::READ, from);
    const u8* shared = w.block->shared.data();
    for (int r = 0; r < c->n; ++r) {
        const u32* row = from + 8 * r;
        alignas(64) u8 kept[128];
        u8* matrix = mask == kFull ? w.regs + c->list[r] : kept;
        if (c->has(flag::TRANS)) {
            transpose_halves(shared, row, matrix);
        } else {
            for (int i = 0; i < 8; ++i) std::memcpy(matrix + 16 * i, shared + row[i], 16);
        }
        if (mask != kFull) keep(w, mask, c->list[r], kept);
    }
    return c + 1;
}

const Code* store_matrix(Warp& w, const Code* c, u32 mask) {
    const Code* next;
    if (!gather_lanes(w, c, mask, kFull, &next)) return next;
    alignas(64) u32 to[kLanes];
    locate_rows(w, c, Access::WRITE, to);
    u8* shared = w.block->shared.data();
    Suspect suspect = w.suspect;
    w.suspect = Suspect{};
    for (int r = 0; r < c->n; ++r) {
        alignas(64) u8 matrix[128];
        std::memcpy(matrix, w.regs + c->list[r], 128);
        if (c->has(flag::TRANS)) transpose_halves(matrix);
        for (int i = 0; i < 8; ++i) {
            u8* row = shared + to[8 * r + i];
            if (suspect.instruction != kNone && std::memcmp(row, matrix + 16 * i, 16) != 0) {
                throw Fault{Kind::RACE, suspect.lane, suspect.at,
                            "writes shared memory at " + std::to_string(suspect.at) +
                                ", which warp " + std::to_string(suspect.warp) +
                                " wrote with no barrier in between",
                            suspect.instruction};
            }
            std::memcpy(row, matrix + 16 * i, 16);
        }
    }
    return c + 1;
}

const Code* move_matrix(Warp& w, const Code* c, u32 mask) {
    const Code* next;
    if (!gather_lanes(w, c, mask, kFull, &next)) return next;
    alignas(64) u32 x[kLanes];
    std::memcpy(x, w.regs + c->s[0], 128);
    transpose_halves(reinterpret_cast<u8*>(x));
    fill<u32>(w, c->d[0], mask, [&](int l) { return x[l]; });
    return c + 1;
}

bool eight_bits(Type t) { return t == Type::E4M3 || t == Type::E5M2; }

Form resolve_mma(const Code& c) {
    Shape s = shape_of(c);
    Type a = c.type2, b = static_cast<Type>(c.sub < static_cast<u8>(Type::COUNT) ? c.sub : 0);
    Form f;
    if (a == Type::F64) {
        bool fits = b == Type::F64 && c.type == Type::F64 && s.m == 8 && s.n == 8 && s.k == 4;
        return {fits ? mma_double : nullptr, "--", "----", "BB2222"};
    }
    if (s.n != 8 || (s.m != 8 && s.m != 16)) return f;
    int per = 16 / bytes_of(a), halves = s.m / 8;
    if (s.k % per != 0 || (s.k != per && s.k != 2 * per)) return f;
    int chunks = s.k / per, sources = halves * chunks + chunks;
    if (a == Type::S8 || a == Type::U8) {
        if ((b != Type::S8 && b != Type::U8) || c.type != Type::S32) return f;
        f.run = mma_integer;
    } else if (a == Type::F16 || a == Type::BF16) {
        if (a != b || s.m != 16 || (c.type != Type::F32 && (c.type != Type::F16 || a != Type::F16)))
            return f;
        f.run = c.type == Type::F16 ? mma_float
                : a == Type::BF16   ? mma_half<true>
                                    : mma_half<false>;
    } else if (a == Type::TF32) {
        if (a != b || s.m != 16 || c.type != Type::F32) return f;
        f.run = mma_float;
    } else if (eight_bits(a)) {
        if (!eight_bits(b) || s.m != 16 || (c.type != Type::F32 && c.type != Type::F16)) return f;
        f.run = mma_float;
    }
    if (c.space != Space::GENERIC && static_cast<Type>(c.space) != c.type)
        f.run = nullptr;  // C of another type
    int results = c.type == Type::F16 ? halves : 2 * halves;
    f.list = std::string(results, 'A') + std::string(sources + results, '1');
    return f;
}

}  // namespace

bool takes_same_left(const Code& c, const Code& before) {
    bool half = c.run == mma_half<true> || c.run == mma_half<false>;
    if (!half || c.run != before.run || c.aux != before.aux || c.guard || before.guard)
        return false;
    // Four results, then A.
    const u32 n = 2 * (c.aux & 0xFF) / 8;
    for (u32 r = 0; r < n; ++r) {
        if (c.list[4 + r] != before.list[4 + r]) return false;
        for (u32 k = 0; k < 4; ++k)
            if (before.list[k] == c.list[4 + r]) return false;
    }
    return true;
}

Form resolve_matrix(const Code& c) {
    if (c.op == Op::MMA) return resolve_mma(c);
    if (c.op == Op::MOVMATRIX) return {move_matrix, "1-", "1---"};
    if ((c.n != 1 && c.n != 2 && c.n != 4) || c.aux != 0 || c.n_list != c.n) return {};
    bool is_load = c.op == Op::LDMATRIX;
    return {is_load ? load_matrix : store_matrix, "--", c.has(flag::A64) ? "2---" : "1---",
            std::string(c.n, is_load ? 'A' : '1')};
}

}  // namespace ptx
