// Fused multi-head attention, forward: a running softmax over key tiles (Milakov and Gimelshein
// 2018; Dao et al. 2022). q (B, Hq, Tq, D), k and v (B, Hkv, Tk, D), out (B, Hq, Tq, D), all with
// unit stride in D; lse (B, Hq, Tq).
#include "attention.h"

namespace mg {

AttentionShape attention_shape(const char* kernel, const Array& q, const Array& k, const Array& v) {
    auto fail = [&](const char* what) {
        throw std::invalid_argument(std::string(kernel) + ": " + what);
    };
    for (const Array* x : {&q, &k, &v}) {
        if (x->ndim != 4) fail("expected q, k, v of four dimensions (B, H, T, D)");
        if (x->dtype != q.dtype) fail("expected q, k, v of one dtype");
        if (x->shape[3] > 1 && x->strides[3] != 1) fail("expected unit stride in D");
    }
    AttentionShape s{q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3]};
    for (int d = 0; d < 4; d++)
        if (k.shape[d] != v.shape[d]) fail("k and v differ in shape");
    if (k.shape[0] != s.batch || k.shape[3] != s.dim) fail("q and k differ in batch or head_dim");
    if (s.kv_heads == 0 || s.heads % s.kv_heads) fail("Hq is not a multiple of Hkv");
    return s;
}

std::vector<Sequence> packed_sequences(const char* kernel, const Array& q, const Array& k,
                                       const Array& v, const Array& cu_seqlens_q,
                                       const Array& cu_seqlens_k) {
    auto fail = [&](const char* what) {
        throw std::invalid_argument(std::string(kernel) + ": " + what);
    };
    for (const Array* x : {&q, &k, &v})
        if (x->ndim != 3) fail("expected q, k, v of three dimensions (total, H, D)");
    for (const Array* x : {&cu_seqlens_q, &cu_seqlens_k})
        if (x->ndim != 1 || x->dtype != DType::i64 || !x->contiguous() || x->shape[0] < 1)
            fail("expected contiguous cu_seqlens of int64");
    if (cu_seqlens_q.shape[0] != cu_seqlens_k.shape[0])
        fail("expected cu_seqlens_q and cu_seqlens_k of one length");
    AttentionShape whole =
        attention_shape(kernel, sequence_of(q, 0, q.shape[0]), sequence_of(k, 0, k.shape[0]),
                        sequence_of(v, 0, v.shape[0]));
    const int64_t *at_q = cu_seqlens_q.ptr<int64_t>(), *at_k = cu_seqlens_k.ptr<int64_t>();
    std::vector<Sequence> out;
    int64_t weights = 0;
    for (int64_t b = 0; b + 1 < cu_seqlens_q.shape[0]; b++) {
        AttentionShape s = whole;
        s.n_queries = at_q[b + 1] - at_q[b];
        s.n_keys = at_k[b + 1] - at_k[b];
        s.first_weight = weights;
        bool inside = at_q[b] >= 0 && at_k[b] >= 0 && s.n_queries >= 0 && s.n_keys >= 0 &&
                      at_q[b + 1] <= q.shape[0] && at_k[b + 1] <= k.shape[0];
        if (!inside) fail("cu_seqlens run backwards, or beyond the tokens");
        weights += s.heads * s.n_queries * s.n_keys;
        out.push_back({s, at_q[b], at_k[b]});
    }
    return out;
}

namespace {

// Scores to weights, lane by lane: the running maximum and sum of each query, and what the earlier
// output must be scaled by (alpha).
void softmax_tile(int64_t lanes, int64_t nj, float scale, const float* addend, float* scores,
                  float* top, float* sum, float* alpha) {
    vf k = broadcast(scale), lowest = broadcast(-kInfinity);
    for (int64_t i = 0; i < lanes; i += VL) {
        vf before = load(top + i), now = before;
        for (int64_t j = 0; j < nj; j++) {
            float* at = scores + j * kQueries + i;
            vf x = load(at) * k;
            if (addend) {
                vf a = load(addend + j * kQueries + i);
                x = select(a == lowest, lowest, x + a);  // a masked score may be NaN
            }
            store(at, x);
            now = select((x > now) | (x != x), x, now);
        }
        vf safe = select(now == lowest, vf{}, now), total{};
        for (int64_t j = 0; j < nj; j++) {
            float* at = scores + j * kQueries + i;
            vf e = exp_nonpositive(load(at) - safe);
            total += e;
            store(at, e);
        }
        vf factor = exp_nonpositive(before - safe);
        store(top + i, now);
        store(alpha + i, factor);
        store(sum + i, fma(load(sum + i), factor, total));
    }
}

struct ForwardScratch {
    alignas(64) float scores[kKeys * kQueries];
    alignas(64) float extra[kKeys * kQueries];  // addend, then dropout factors
    alignas(64) float top[kQueries], sum[kQueries], alpha[kQueries];
};

template <class T>
void query_tile(const AttentionShape& s, const AttentionOptions& o, const AttentionMask& m,
                const Array& q, const Array& k, const Array& v, const Array& out, const Array& lse,
                int64_t b, int64_t h, int64_t i0) {
    int64_t ni = std::min(kQueries, s.n_queries - i0), dim = s.dim, wide = padded(dim);
    int64_t lanes = (ni + VL - 1) / VL * VL, kv = h / s.group();
    Scratch<float> buffer(kQueries * dim + kQueries * wide + 2 * kKeys * wide);
    float *q_packed = buffer.get(), *acc = q_packed + kQueries * dim;
    float *k_copy = acc + kQueries * wide, *v_copy = k_copy + kKeys * wide;
    ForwardScratch t;
    transpose_rows(float_rows(head_of<T>(q, b, h, i0), q.strides[2], ni, dim, acc), ni, dim,
                   q_packed);
    std::fill_n(acc, kQueries * wide, 0.0f);
    std::fill_n(t.top, kQueries, -kInfinity);
    std::fill_n(t.sum, kQueries, 0.0f);

    KeyRange range = keys_seen(s, o, i0, i0 + ni);
    for (int64_t j0 = range.first / kKeys * kKeys; j0 < range.last; j0 += kKeys) {
        int64_t nj = std::min(kKeys, s.n_keys - j0);
        Rows keys = float_rows(head_of<T>(k, b, kv, j0), k.strides[2], nj, dim, k_copy);
        Rows values = float_rows(head_of<T>(v, b, kv, j0), v.strides[2], nj, dim, v_copy);
        tile_product<false>(nj, lanes, dim, keys.p, keys.row, 1, q_packed, kNR, kNR * dim, t.scores,
                            kQueries, false);
        bool masked = m.mask || m.bias || !all_seen(s, o, i0, i0 + ni, j0, j0 + nj);
        if (masked) fill_addend(s, o, m, b, h, i0, ni, j0, nj, t.extra);
        softmax_tile(lanes, nj, static_cast<float>(o.scale), masked ? t.extra : nullptr, t.scores,
                     t.top, t.sum, t.alpha);
        if (o.dropout > 0) {
            fill_dropout(s, o, b, h, i0, ni, j0, nj, t.extra);
            for (int64_t j = 0; j < nj; j++)
                for (int64_t i = 0; i < ni; i++)
                    t.scores[j * kQueries + i] *= t.extra[j * kQueries + i];
        }
        for (int64_t i = 0; i < ni; i++) {
            vf factor = broadcast(t.alpha[i]);
            for (int64_t d = 0; d < wide; d += VL)
                store(acc + i * wide + d, load(acc + i * wide + d) * factor);
        }
        if ((masked || o.dropout > 0) && any_not_finite(values, nj, dim)) {
            weighted_rows_skipping(ni, nj, dim, t.scores, values, acc, wide);
        } else {
            tile_product<true>(ni, wide, nj, t.scores, 1, kQueries, values.p, values.row, kNR, acc,
                               wide, true);
        }
    }
    for (int64_t i = 0; i < ni; i++) {
        bool unseen = t.top[i] == -kInfinity;
        float inverse = unseen ? 0.0f : 1.0f / t.sum[i], total = t.top[i] + std::log(t.sum[i]);
        if (unseen) total = -kInfinity;
        // A score that is infinite or NaN: the weights have no meaning.
        if (!(t.top[i] < kInfinity)) inverse = total = std::numeric_limits<float>::quiet_NaN();
        for (int64_t d = 0; d < wide; d += VL)
            store(acc + i * wide + d, load(acc + i * wide + d) * broadcast(inverse));
        lse.ptr<float>()[b * lse.strides[0] + h * lse.strides[1] + (i0 + i) * lse.strides[2]] =
            total;
    }
    store_rows(acc, wide, ni, dim, head_of<T>(out, b, h, i0), out.strides[2]);
}

// A batch of sequences of one length.
struct Part {
    AttentionShape s;
    Array q, k, v, out, lse;
};

void forward(const std::vector<Part>& parts, const AttentionOptions& o, const AttentionMask& m,
             DType dtype) {
    if (dtype == DType::f64) {
        for (const Part& p : parts) attention_fwd_f64(p.s, p.q, p.k, p.v, m, p.out, p.lse, o);
        return;
    }
    struct Task {
        const Part* part;
        int64_t head, i0;
    };
    std::vector<Task> tasks;
    int64_t longest = 0;
    for (const Part& p : parts) longest = std::max(longest, p.s.n_queries);
    // The last query tiles see the most keys: they go first.
    for (int64_t i0 = (longest + kQueries - 1) / kQueries * kQueries; (i0 -= kQueries) >= 0;)
        for (const Part& p : parts)
            for (int64_t head = 0; i0 < p.s.n_queries && head < p.s.batch * p.s.heads; head++)
                tasks.push_back({&p, head, i0});
    for_float_dtype("attention_fwd", dtype, [&](auto type) {
        using T = decltype(type);
        if constexpr (!std::is_same_v<T, double>)
            parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t task) {
                const Task& t = tasks[static_cast<size_t>(task)];
                const Part& p = *t.part;
                query_tile<T>(p.s, o, m, p.q, p.k, p.v, p.out, p.lse, t.head / p.s.heads,
                              t.head % p.s.heads, t.i0);
            });
    });
}

}  // namespace

void attention_fwd(const Array& q, const Array& k, const Array& v, const Array& mask,
                   const Array& bias, const Array& out, const Array& lse, double scale, bool causal,
                   int64_t window, double dropout_p, const Array& rng) {
    AttentionShape s = attention_shape("attention_fwd", q, k, v);
    AttentionOptions o{scale, causal, window, dropout_p, rng ? philox_key(rng) : PhiloxKey{}};
    forward({{s, q, k, v, out, lse}}, o, {mask, bias}, q.dtype);
}

// q (total_q, Hq, D), k and v (total_k, Hkv, D), out as q, lse (total_q, Hq, 1); sequence b is the
// queries [cu_seqlens_q[b], cu_seqlens_q[b + 1]) and the keys likewise.
void attention_varlen_fwd(const Array& q, const Array& k, const Array& v, const Array& cu_seqlens_q,
                          const Array& cu_seqlens_k, const Array& out, const Array& lse,
                          double scale, bool causal, int64_t window, double dropout_p,
                          const Array& rng) {
    AttentionOptions o{scale, causal, window, dropout_p, rng ? philox_key(rng) : PhiloxKey{}};
    std::vector<Part> parts;
    for (const Sequence& x :
         packed_sequences("attention_varlen_fwd", q, k, v, cu_seqlens_q, cu_seqlens_k)) {
        int64_t nq = x.shape.n_queries, nk = x.shape.n_keys;
        parts.push_back({x.shape, sequence_of(q, x.q_start, nq), sequence_of(k, x.k_start, nk),
                         sequence_of(v, x.k_start, nk), sequence_of(out, x.q_start, nq),
                         sequence_of(lse, x.q_start, nq)});
    }
    forward(parts, o, {Array{}, Array{}}, q.dtype);
}

}  // namespace mg
