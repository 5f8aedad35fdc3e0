// What attention's forward and backward share. Everything is arranged so that vector lanes are
// queries:
//
//   Sᵀ (keys × queries) = K Qᵀ     K's rows read in place, Qᵀ packed once per query tile
//   Pᵀ = exp(Sᵀ - lse)             maximum, sum and rescaling are per lane: no sums across lanes
//   O  (queries × D)    = Pᵀᵀ V    V's rows read in place
//
// so no key tile is ever transposed. Tiles are anchored at query 0 and key 0; a lane's arithmetic
// depends on its own query and the keys it can see, in order, and on nothing else.
#pragma once

#include <limits>
#include <vector>

#include "matmul_kernel.h"
#include "philox.h"
#include "vmath.h"

namespace mg {

// 64 × 64: Sᵀ and its gradient take 16 KB each, a K or V tile of 64 features another 16 KB.
constexpr int64_t kQueries = 64;
constexpr int64_t kKeys = 64;

struct AttentionShape {
    int64_t batch, heads, kv_heads, n_queries, n_keys, dim;
    int64_t first_weight = 0;  // the index of its first weight in the stream of dropout
    int64_t group() const { return heads / kv_heads; }
};

struct AttentionOptions {
    double scale;
    bool causal;
    int64_t window;
    double dropout;
    PhiloxKey key;
};

struct AttentionMask {
    Array mask, bias;
};

AttentionShape attention_shape(const char* kernel, const Array& q, const Array& k, const Array& v);

// ---- packed batches: arrays (total, H, D), sequence after sequence ----

// A sequence as a batch of one, and where its queries and keys start.
struct Sequence {
    AttentionShape shape;
    int64_t q_start, k_start;
};
std::vector<Sequence> packed_sequences(const char* kernel, const Array& q, const Array& k,
                                       const Array& v, const Array& cu_seqlens_q,
                                       const Array& cu_seqlens_k);

// The tokens [start, start + length) of (total, H, D) as (1, H, length, D).
inline Array sequence_of(const Array& x, int64_t start, int64_t length) {
    Array y = x;
    y.ndim = 4;
    y.data = x.data + start * x.strides[0] * itemsize(x.dtype);
    const int64_t shape[] = {1, x.shape[1], length, x.shape[2]};
    const int64_t strides[] = {0, x.strides[1], x.strides[0], x.strides[2]};
    for (int d = 0; d < 4; d++) {
        y.shape[d] = shape[d];
        y.strides[d] = strides[d];
    }
    return y;
}

// ---- float64, plain: attention_f64.cpp ----

void attention_fwd_f64(const AttentionShape& s, const Array& q, const Array& k, const Array& v,
                       const AttentionMask& m, const Array& out, const Array& lse,
                       const AttentionOptions& o);
void attention_bwd_f64(const AttentionShape& s, const Array& g, const Array& q, const Array& k,
                       const Array& v, const AttentionMask& m, const Array& lse, const Array& dq,
                       const Array& dk, const Array& dv, const AttentionOptions& o);

// ---- which keys a query sees ----

// The keys [first, last) that some query of [i0, i1) sees by causality and window.
struct KeyRange {
    int64_t first, last;
};
inline KeyRange keys_seen(const AttentionShape& s, const AttentionOptions& o, int64_t i0,
                          int64_t i1) {
    int64_t shift = s.n_keys - s.n_queries, first = 0, last = s.n_keys;
    if (o.causal) last = std::min(last, i1 + shift);
    if (o.window >= 0) {
        first = std::max<int64_t>(0, i0 + shift - o.window + 1);
        if (!o.causal) last = std::min(last, i1 - 1 + shift + o.window);
    }
    return {first, std::max(first, last)};
}

// Whether every query of the tile sees every key of it, as far as causality and window go.
inline bool all_seen(const AttentionShape& s, const AttentionOptions& o, int64_t i0, int64_t i1,
                     int64_t j0, int64_t j1) {
    int64_t shift = s.n_keys - s.n_queries;
    if (o.causal && j1 - 1 > i0 + shift) return false;
    if (o.window >= 0) {
        if (j0 <= i1 - 1 + shift - o.window) return false;
        if (!o.causal && j1 - 1 >= i0 + shift + o.window) return false;
    }
    return true;
}

inline bool is_seen(const AttentionShape& s, const AttentionOptions& o, int64_t i, int64_t j) {
    int64_t at = i + s.n_keys - s.n_queries;
    if (o.causal && j > at) return false;
    if (o.window >= 0 && (j <= at - o.window || (!o.causal && j >= at + o.window))) return false;
    return true;
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
        for (int64_t j = 0; j < nj; j++)
            for (int64_t i = 0; i < ni; i++)
                addend[j * kQueries + i] += static_cast<float>(number_at(
                    m.bias, b * step[0] + h * step[1] + (i0 + i) * step[2] + (j0 + j) * step[3]));
    }
    if (m.mask) {
        const int64_t* step = m.mask.strides;
        const uint8_t* at =
            m.mask.ptr<uint8_t>() + b * step[0] + h * step[1] + i0 * step[2] + j0 * step[3];
        for (int64_t j = 0; j < nj; j++)
            for (int64_t i = 0; i < ni; i++)
                if (!at[i * step[2] + j * step[3]]) addend[j * kQueries + i] = -kInfinity;
    }
}

// factor[j][i]: 0 where a weight is dropped, 1 / (1 - p) where it stays; by the weight's logical
// index.
inline void fill_dropout(const AttentionShape& s, const AttentionOptions& o, int64_t b, int64_t h,
                         int64_t i0, int64_t ni, int64_t j0, int64_t nj, float* factor) {
    uint32_t words[kKeys], threshold = dropout_threshold(o.dropout);
    auto kept = static_cast<float>(1.0 / (1.0 - o.dropout));
    for (int64_t i = 0; i < ni; i++) {
        int64_t row = (b * s.heads + h) * s.n_queries + i0 + i;
        philox_words(o.key,
                     static_cast<uint64_t>(s.first_weight + j0) +
                         static_cast<uint64_t>(row) * static_cast<uint64_t>(s.n_keys),
                     nj, words);
        for (int64_t j = 0; j < nj; j++)
            factor[j * kQueries + i] = words[j] >= threshold ? kept : 0.0f;
    }
}

// ---- tiles ----

// Rows of float32, read in place where they are that already, else converted to a scratch copy
// whose row length is padded with zeros to whole vectors.
struct Rows {
    const float* p;
    int64_t row;
};
inline int64_t padded(int64_t dim) { return (dim + VL - 1) / VL * VL; }

template <class T>
Rows float_rows(const T* x, int64_t row, int64_t n, int64_t dim, float* copy) {
    if constexpr (std::is_same_v<T, float>)
        if (dim % VL == 0) return {x, row};
    int64_t wide = padded(dim);
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < wide; d += VL) {
            int64_t left = dim - d;
            store(copy + i * wide + d,
                  left >= VL ? load(x + i * row + d) : load(x + i * row + d, left));
        }
    return {copy, wide};
}

// packed[d][i] = x[i][d], i < n, zeros up to kQueries: the B operand of the products over features.
inline void transpose_rows(const Rows& x, int64_t n, int64_t dim, float* packed) {
    for (int64_t i = 0; i < kQueries; i += kNR)
        pack_panel<kNR>(x.p + i * x.row, x.row, 1, std::clamp<int64_t>(n - i, 0, kNR), dim,
                        packed + i * dim);
}

// C (m × n) = [C +] A (m × k) B (k × n), n whole vectors; A's element (i, l) at a[i * a_row + l *
// a_col], where one of the two is 1; B's row l at b + l * b_row (next panel of kNR columns at
// b_panel from there).
template <int kRows, int kVectors, bool kUnitRows>
MG_INLINE void tile_block(int64_t k, const float* a, int64_t a_row, int64_t a_col, const float* b,
                          int64_t b_row, float* c, int64_t c_row, bool add) {
    vf sum[kRows][kVectors];
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) sum[r][v] = vf{};
    for (int64_t l = 0; l < k; l++) {
        vf column[kVectors];
        for (int v = 0; v < kVectors; v++) column[v] = load(b + l * b_row + v * VL);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++) {
            vf x = broadcast(kUnitRows ? a[l * a_col + r] : a[r * a_row + l]);
            for (int v = 0; v < kVectors; v++) sum[r][v] = fma(x, column[v], sum[r][v]);
        }
    }
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) {
            float* at = c + r * c_row + v * VL;
            store(at, add ? load(at) + sum[r][v] : sum[r][v]);
        }
}

template <int kVectors, bool kUnitRows>
void tile_columns(int64_t m, int64_t k, const float* a, int64_t a_row, int64_t a_col,
                  const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
    int64_t i = 0, step = kUnitRows ? 1 : a_row;
    for (; i + kMR <= m; i += kMR)
        tile_block<kMR, kVectors, kUnitRows>(k, a + i * step, a_row, a_col, b, b_row, c + i * c_row,
                                             c_row, add);
    if constexpr (kMR > 8)
        for (; i + 8 <= m; i += 8)
            tile_block<8, kVectors, kUnitRows>(k, a + i * step, a_row, a_col, b, b_row,
                                               c + i * c_row, c_row, add);
    for (; i + 4 <= m; i += 4)
        tile_block<4, kVectors, kUnitRows>(k, a + i * step, a_row, a_col, b, b_row, c + i * c_row,
                                           c_row, add);
    for (; i < m; i++)
        tile_block<1, kVectors, kUnitRows>(k, a + i * step, a_row, a_col, b, b_row, c + i * c_row,
                                           c_row, add);
}

template <bool kUnitRows>
void tile_product(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, int64_t a_col,
                  const float* b, int64_t b_row, int64_t b_panel, float* c, int64_t c_row,
                  bool add) {
    int64_t j = 0;
    for (; j + kNR <= n; j += kNR, b += b_panel)
        tile_columns<2, kUnitRows>(m, k, a, a_row, a_col, b, b_row, c + j, c_row, add);
    if (j < n) tile_columns<1, kUnitRows>(m, k, a, a_row, a_col, b, b_row, c + j, c_row, add);
}

// Whether some element of the rows is infinite or NaN: such a value must not meet a weight of 0.
inline bool any_not_finite(const Rows& x, int64_t n, int64_t dim) {
    vf sum{};
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < dim; d += VL) {
            int64_t left = dim - d;
            sum +=
                (left >= VL ? load(x.p + i * x.row + d) : load(x.p + i * x.row + d, left)) * vf{};
        }
    float total = sum_lanes(sum);
    return total != total;
}

// C (queries × D) [+]= W B for weights W[q][j] at w[j * kQueries + q], skipping weights of 0.
inline void weighted_rows_skipping(int64_t n_queries, int64_t n_keys, int64_t dim, const float* w,
                                   const Rows& b, float* c, int64_t c_row) {
    for (int64_t j = 0; j < n_keys; j++)
        for (int64_t i = 0; i < n_queries; i++)
            if (float x = w[j * kQueries + i]; x != 0)
                for (int64_t d = 0; d < dim; d++) c[i * c_row + d] += x * b.p[j * b.row + d];
}

template <class T>
void store_rows(const float* x, int64_t x_row, int64_t n, int64_t dim, T* out, int64_t row) {
    for (int64_t i = 0; i < n; i++) {
        int64_t d = 0;
        for (; d + VL <= dim; d += VL) store(out + i * row + d, load(x + i * x_row + d));
        if (d < dim) store(out + i * row + d, load(x + i * x_row + d, dim - d), dim - d);
    }
}

template <class T>
T* head_of(const Array& x, int64_t b, int64_t h, int64_t t) {
    return x.ptr<T>() + b * x.strides[0] + h * x.strides[1] + t * x.strides[2];
}

}  // namespace mg
