// What attention's forward and backward share. Everything is arranged so that vector lanes are
// queries:
//
//   Sᵀ (keys × queries) = K Qᵀ     K's rows read in place, Qᵀ packed once per query tile
//   Pᵀ = exp(Sᵀ - lse)             maximum, sum and rescaling are per lane: no sums across lanes
//   O  (queries × D)    = Pᵀᵀ V    V's rows read in place
//
// so no key tile is ever transposed (attention_tiles.h has the products, attention_pairs.h those of
// bfloat16). Tiles are anchored at query 0 and key 0; a lane's arithmetic depends on its own query
// and the keys it can see, in order, and on nothing else.
#pragma once

#include <limits>

#include "attention_shape.h"
#include "matmul_kernel.h"
#include "vmath.h"

namespace mg {

// 64 × 64: Sᵀ and its gradient take 16 KB each, a K or V tile of 64 features another 16 KB.
constexpr int64_t kQueries = 64;
constexpr int64_t kKeys = 64;

// A tile of n queries and m keys of which query i sees the first i + offset (no key beyond, by
// causality): what need not be done of it. Scores beyond are left as they were.
struct Stairs {
    int64_t n, m, offset;
    int64_t seen(int64_t i) const { return std::clamp<int64_t>(i + offset, 0, m); }
};

// e^x for x <= 8, within 2 ULP while |x| is small; 0 below -87.7, NaN stays NaN. Two thirds
// of the operations of exp_nonpositive, in powers of two.
MG_INLINE vf weight_of(vf x) {
    // Adding 1.5 * 2^23 rounds to the integer n; with it, the exponent's bias: n + 127, in the low
    // bits of the sum, are 2^n's exponent, 0 for n = -127.
    vf magic = broadcast(12582912.0f + 127.0f);
    vf y = larger(broadcast(-127.0f), x * broadcast(1.44269504f)), shifted = y + magic;
    vf r = y - (shifted - magic), whole = as_float(as_int(shifted) << 23);
    // 2^r - 1 over r for |r| <= 1/2, of least relative error.
    constexpr float c[] = {6.931470037e-1f, 2.402224243e-1f, 5.550733581e-2f, 9.671512991e-3f,
                           1.326472731e-3f};
    return fma(whole * r, polynomial(r, c), whole);
}

// body(j, slot, hide) for the keys that some query of [i, i + VL) sees; hide(scores) makes those of
// the other queries -infinity. Four at a time, so that their chains of operations overlap; slot is
// j % 4, a constant to the compiler, for sums that do not chain them.
template <class Body>
MG_INLINE void for_keys_seen(const Stairs& s, int64_t i, Body&& body) {
    int64_t all = s.seen(i), some = s.seen(i + VL - 1), j = 0;
    for (; j + 4 <= all; j += 4)
#pragma GCC unroll 4
        for (int slot = 0; slot < 4; slot++) body(j + slot, slot, [](vf x) { return x; });
    for (; j < some; j += 4)
#pragma GCC unroll 4
        for (int slot = 0; slot < 4; slot++)
            if (int64_t key = j + slot; key < some)
                body(key, slot, [&](vf x) {
                    return first_of(key + 1 - i - s.offset, broadcast(-kInfinity), x);
                });
}

// Weights of 0 for the keys behind those, as far as products of kMR rows, of pairs of keys, reach
// beyond what their queries see.
MG_INLINE void clear_behind(const Stairs& s, int64_t i, float* weights) {
    int64_t some = s.seen(i + VL - 1);
    for (int64_t j = some, end = std::min(s.m, some + kMR); j < end; j++)
        store(weights + j * kQueries + i, vf{});
}

// keys × queries, a sum over k features
struct StairsOfScores {
    Stairs s;
    int64_t k;
    int64_t rows(int64_t j) const { return s.seen(j + kNR - 1); }
    int64_t first(int64_t) const { return 0; }
    int64_t last(int64_t) const { return k; }
};
// queries × features, a sum over keys
struct StairsOfQueries {
    Stairs s;
    int64_t rows(int64_t) const { return s.n; }
    int64_t first(int64_t) const { return 0; }
    int64_t last(int64_t i) const { return s.seen(i); }
};
// keys × features, a sum over queries
struct StairsOfKeys {
    Stairs s;
    int64_t rows(int64_t) const { return s.m; }
    int64_t first(int64_t j) const { return std::clamp<int64_t>(j + 1 - s.offset, 0, s.n); }
    int64_t last(int64_t) const { return s.n; }
};

// Of the keys [j0, j0 + nj) and the queries [i0, i0 + n).
inline Stairs stairs_of(const AttentionShape& s, const AttentionOptions& o, int64_t i0, int64_t n,
                        int64_t j0, int64_t nj) {
    return {n, nj, o.causal ? i0 + s.n_keys - s.n_queries - j0 + 1 : nj};
}

inline double number_at(const Array& x, int64_t offset) {
    switch (x.dtype) {
        case DType::f32:
            return x.ptr<float>()[offset];
        case DType::f64:
            return x.ptr<double>()[offset];
        case DType::bf16:
            return to_float(x.ptr<bf16>()[offset]);
        case DType::f16:
            return to_float(x.ptr<f16>()[offset]);
        default:
            return x.ptr<uint8_t>()[offset] != 0;
    }
}

// Whether anything but causality changes or hides scores of the tile: that comes as an addend.
inline bool needs_addend(const AttentionOptions& o, const AttentionMask& m, bool all_seen) {
    return m.mask || m.bias || (o.window >= 0 && !all_seen);
}

// tile[j][i] = join(tile[j][i], x[i][j]) for queries i and keys j, x(i, j) at x[i * row + j * col].
template <class T, class Join>
void join_turned(const T* x, int64_t row, int64_t col, int64_t ni, int64_t nj, float* tile,
                 Join&& join) {
    alignas(64) float turned[kKeys * kNR];
    for (int64_t i = 0; i < ni; i += kNR) {
        pack_panel<kNR>(x + i * row, row, col, std::min<int64_t>(kNR, ni - i), nj, turned);
        for (int64_t j = 0; j < nj; j++)
            for (int64_t v = 0; v < kNR; v += VL) {
                float* at = tile + j * kQueries + i + v;
                store(at, join(load(at), load(turned + j * kNR + v)));
            }
    }
}

// What is added to the scaled scores of a tile, addend[j][i]: bias where a key is seen, -infinity
// elsewhere.
inline void fill_addend(const AttentionShape& s, const AttentionOptions& o, const AttentionMask& m,
                        int64_t b, int64_t h, int64_t i0, int64_t ni, int64_t j0, int64_t nj,
                        float* addend) {
    int64_t shift = s.n_keys - s.n_queries;
    for (int64_t j = 0; j < nj; j++) {
        float* row = addend + j * kQueries;
        // Query i sees this key for low <= i <= high.
        int64_t key = j0 + j - shift - i0, low = 0, high = kQueries;
        if (o.causal) low = std::max(low, key);
        if (o.window >= 0) {
            high = std::min(high, key + o.window - 1);
            if (!o.causal) low = std::max(low, key - o.window + 1);
        }
        for (int64_t i = 0; i < kQueries; i++)
            row[i] = (i >= low) & (i <= high) ? 0.0f : -kInfinity;
    }
    if (m.bias) {
        const int64_t* step = m.bias.strides;
        int64_t at = b * step[0] + h * step[1] + i0 * step[2] + j0 * step[3];
        for_float_dtype("attention", m.bias.dtype, [&](auto type) {
            join_turned(m.bias.ptr<decltype(type)>() + at, step[2], step[3], ni, nj, addend,
                        [](vf sum, vf x) { return sum + x; });
        });
    }
    if (m.mask) {
        const int64_t* step = m.mask.strides;
        const uint8_t* at =
            m.mask.ptr<uint8_t>() + b * step[0] + h * step[1] + i0 * step[2] + j0 * step[3];
        alignas(64) float seen[kQueries * kKeys];
        for (int64_t i = 0; i < ni; i++, at += step[2])
            for (int64_t j = 0; j < nj; j++) seen[i * kKeys + j] = at[j * step[3]];
        // Not a sum: the bias of a key that is hidden may be NaN.
        join_turned(seen, kKeys, 1, ni, nj, addend,
                    [](vf sum, vf x) { return select(x == vf{}, broadcast(-kInfinity), sum); });
    }
}

// factor[j][i]: 0 where a weight is dropped, 1 / (1 - p) where it stays; by the weight's logical
// index. Of the keys that some query of a vector sees.
inline void fill_dropout(const AttentionShape& s, const AttentionOptions& o, const Stairs& stairs,
                         int64_t b, int64_t h, int64_t i0, int64_t j0, float* factor) {
    uint32_t words[kKeys], threshold = dropout_threshold(o.dropout);
    auto kept = static_cast<float>(1.0 / (1.0 - o.dropout));
    auto n_keys = static_cast<uint64_t>(s.n_keys);
    auto first_of_row = [&](int64_t i) {
        int64_t row = (b * s.heads + h) * s.n_queries + i0 + i;
        return static_cast<uint64_t>(s.first_weight + j0) + static_cast<uint64_t>(row) * n_keys;
    };
    // Keys, by a query of i's vector.
    auto some_seen = [&](int64_t i) { return stairs.seen(i / VL * VL + VL - 1); };
    if ((n_keys | first_of_row(0)) % 4 == 0) {  // whole blocks of four: queries side by side
        for (int64_t i = 0; i < stairs.n; i += kPhiloxLanes)
            for (int64_t j = 0, n = some_seen(i + kPhiloxLanes - 1); j < n; j += 4)
                keep_words(o.key, (first_of_row(i) + static_cast<uint64_t>(j)) / 4, n_keys / 4,
                           threshold, kept, factor + j * kQueries + i, kQueries);
        return;
    }
    for (int64_t i = 0; i < stairs.n; i++) {
        int64_t n = some_seen(i);
        philox_words(o.key, first_of_row(i), n, words);
        for (int64_t j = 0; j < n; j++)
            factor[j * kQueries + i] = words[j] >= threshold ? kept : 0.0f;
    }
}

// Weights times the factors of dropout, of the same keys.
inline void drop_weights(const Stairs& stairs, int64_t lanes, const float* factor, float* weights) {
    for (int64_t i = 0; i < lanes; i += VL)
        for (int64_t j = 0, n = stairs.seen(i + VL - 1); j < n; j++) {
            float* at = weights + j * kQueries + i;
            store(at, load(at) * load(factor + j * kQueries + i));
        }
}

template <class T>
T* head_of(const Array& x, int64_t b, int64_t h, int64_t t) {
    return x.ptr<T>() + b * x.strides[0] + h * x.strides[1] + t * x.strides[2];
}

}  // namespace mg
