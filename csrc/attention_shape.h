// Shapes and options of attention, packed batches, and which keys a query sees.
#pragma once

#include <algorithm>
#include <vector>

#include "array.h"
#include "philox.h"

namespace mg {

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

}  // namespace mg
